"""No name, value or note becomes markup in what is written as HTML, SVG or Markdown."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from tests.commands.test_runs import write_run
from torchrl_flow.commands.compare import CompareArgs
from torchrl_flow.evaluation.result import EvaluationResult
from torchrl_flow.figures import markdown_table
from torchrl_flow.figures.pages import render_page
from torchrl_flow.figures.plots import curve_svg, curves_svg, standalone_svg
from torchrl_flow.figures.video import write_video
from torchrl_flow.reports import write_report
from torchrl_flow.reports.curves import CurvesArgs, draw_curves
from torchrl_flow.reports.stage_comparison import stages_svg
from torchrl_flow.runs.metrics import RunLogger
from torchrl_flow.sweeps.plan import Variant
from torchrl_flow.sweeps.report import VariantResult, write_sweep_report

ATTACKS = (
    "<script>alert(1)</script>",
    "\" onload='alert(2)' x=\"",
    "' onerror=\"alert(3)\" y='",
    "</svg><img src=x onerror=alert(4)>",
    "--><iframe src=//evil>",
    "]]></style><script>alert(5)</script>",
    "{{ 7 * 191 }}{% raw %}&lt;script&gt;",
    "$\\frac{1}{$ \0\x1b\ud800",
)
EVERYTHING = " ".join(ATTACKS)
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "section", "div", "span", "i", "b"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "video", "img"),
    *("svg", "defs", "g", "path", "use", "text", "rect", "clippath", "clipPath", "tspan"),
}


class Page(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def require_inert(text: str, *shown: str) -> Page:
    page = Page(text)
    assert set(page.tags) <= ALLOWED
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#"))
    for part in shown:
        assert part in page.text
    assert "1337" not in page.text
    return page


def evaluation(episodes=4, success=True) -> EvaluationResult:
    once = torch.arange(episodes) % 2 == 0 if success else None
    return EvaluationResult(
        seeds=tuple(range(episodes)),
        returns=torch.ones(episodes).double(),
        lengths=torch.full((episodes,), 5),
        success_once=once,
        success_at_end=once,
        wall_s=1.0,
        policy_ms=1.0,
        policy_calls=3,
    )


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_report_shows_text_as_text(tmp_path, suffix):
    video = write_video(tmp_path / f"v{suffix}", np.zeros((2, 16, 16, 3), np.uint8), min_side=0)
    names = [f"{attack} {i}" for i, attack in enumerate(ATTACKS)]
    path = write_report(
        tmp_path / "report.html",
        title=f"title {EVERYTHING}",
        subtitle=f"subtitle {EVERYTHING}",
        results={f"label {name}": evaluation() for name in names},
        num_steps={EVERYTHING: evaluation()},  # pyright: ignore
        curves={
            **{f"eval/success {name}": ([0, 1], [0.0, 1.0]) for name in names},
            f"loss{EVERYTHING}": ([0, 1], [0.0, 1.0]),
            f"loss{EVERYTHING}_low": ([0, 1], [0.0, 0.5]),
            f"loss{EVERYTHING}_high": ([0, 1], [0.5, 1.0]),
        },
        video=video,
        video_caption=f"caption {EVERYTHING}",
        notes=[f"note {EVERYTHING}", *ATTACKS],
        config={f"key {EVERYTHING}": f"value {EVERYTHING}", "nested": [EVERYTHING, (EVERYTHING,)]},
        versions={f"package {EVERYTHING}": f"version {EVERYTHING}"},
        command=f"command {EVERYTHING}",
    )
    words = ("subtitle", "caption", "note", "key", "value", "package", "version", "command")
    shown = [f"{word} <script>alert(1)</script> \" onload='alert(2)' x=\" ' onerror" for word in words]
    page = require_inert(path.read_text(encoding="utf-8"), *shown)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert "eval/success <script>alert(1)</script> 0" in labels
    assert "eval/success \" onload='alert(2)' x=\" 1" in labels
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers)) > 0


def test_a_page_has_no_script_and_forbids_it(tmp_path):
    text = write_report(tmp_path / "r.html", title="x").read_text()
    assert "default-src 'none'" in text
    assert "<script" not in text


@pytest.mark.parametrize("attack", [*ATTACKS, EVERYTHING, 'x id="a" url(#b) xmlns="c" version="d" #010203'])
def test_a_drawing_shows_text_as_text(attack):
    for svg in (
        curve_svg([0, 1], [0.0, 1.0], title=attack),
        curves_svg({attack: ([0, 1], [0.0, 1.0]), f"_{attack}": ([0, 1], [1.0, 0.0])}, title=attack),
        standalone_svg(curves_svg({attack: ([0, 1], [0.0, 1.0])}, title=attack)),
    ):
        require_inert(svg)
        root = ElementTree.fromstring(svg)
        kept = attack.replace("\0", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
        assert root.get("aria-label") == kept
        assert [e for e in root.iter() if e.tag.endswith("text") and "".join(e.itertext()) == kept]


def test_curves_of_runs_with_odd_names_are_drawn_as_text(tmp_path):
    metric = "train/<script>alert(1)</script>\"'"
    run = tmp_path / "<b onload=alert(1)>\"'&$x$"
    with RunLogger(run) as logger:
        for step in (1, 2, 3):
            logger.log(step, {metric: float(step)})
    path = draw_curves(CurvesArgs(runs=(str(run),), metric=metric, output=str(tmp_path / "c.svg")))
    text = path.read_text(encoding="utf-8")
    require_inert(text, metric, run.name)
    ElementTree.fromstring(text)


def test_a_sweep_shows_text_as_text_and_writes_into_its_own_directory(tmp_path):
    results = [
        VariantResult(Variant(name, f"../{attack}"), 1, 0.5, (0.1, 0.9), None, None, None, ([1, 2], [0.0, 1.0]))
        for name, attack in zip(["baseline", *ATTACKS], ["", *ATTACKS])
    ]
    page = write_sweep_report(tmp_path / "sweep", results, title=EVERYTHING)
    shown = [attack for attack in ATTACKS if "\0" not in attack]
    require_inert(page.read_text(encoding="utf-8"), *shown)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]
    drawings = sorted((tmp_path / "sweep").glob("*.svg"))
    assert len(drawings) == len(ATTACKS)
    for drawing in drawings:
        require_inert(drawing.read_text(encoding="utf-8"))
    assert "<script" not in (tmp_path / "sweep" / "report.md").read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("success", [True, False])
def test_a_comparison_of_stages_shows_text_as_text(success):
    stages = {f"{attack} {i}": evaluation(success=success) for i, attack in enumerate(ATTACKS)}
    svg = stages_svg(stages, title=EVERYTHING)
    require_inert(svg[svg.index("<svg") :])
    ElementTree.fromstring(svg)


def test_a_comparison_of_runs_shows_text_as_text(tmp_path, capsys):
    folder = tmp_path / "runs"
    for number, attack in enumerate(ATTACKS):
        name = "".join(letter for letter in attack if letter not in "/\0\ud800") + str(number)
        texts = {"recipe": f"{attack} {number}", "task": attack, "label": attack}
        for seed in range(2):
            # Seeds that differ in another setting cause a note that shows the setting.
            write_run(folder / f"{name} {seed}", seed=seed, **texts, **{f"option {attack}": f"{attack} {seed}"})
    write_run(folder / "<script>open", recipe="open <script>", success=None)
    assert CompareArgs((str(folder),), output=str(tmp_path / "found"))() == 0
    printed = capsys.readouterr().out
    shown = [attack for attack in ATTACKS if "\0" not in attack]
    page = require_inert((tmp_path / "found.html").read_text(encoding="utf-8"), *shown)
    assert "differ in more than their seed" in page.text
    require_inert((tmp_path / "found.svg").read_text(encoding="utf-8"))
    for text in (printed, (tmp_path / "found.md").read_text(encoding="utf-8")):
        assert "differ in more than their seed" in text
        assert "<" not in text
        assert not {"\0", "\x1b", "\ud800"} & set(text)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len(rows) == 2 + len(ATTACKS) + 1


def test_only_drawings_are_markup():
    page = render_page("sweep", title="<b>", header=["<i>"], rows=[["<u>"]], drawings=["<svg></svg>"])
    assert "<svg></svg>" in page
    for text in ("&lt;b&gt;", "&lt;i&gt;", "&lt;u&gt;"):
        assert text in page


def test_a_cell_of_a_markdown_table_stays_one():
    table = markdown_table(["a"], [["<script>|\nx"]])
    assert table.splitlines()[2] == r"| &lt;script>\| x |"
