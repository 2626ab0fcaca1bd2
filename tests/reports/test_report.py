from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from torchrl_flow.evaluation import EvaluationResult
from torchrl_flow.figures import tile_episodes, write_video
from torchrl_flow.functional.statistics import wilson_interval
from torchrl_flow.reports import write_report


def result(successes, n=20, policy_ms=3.0):
    once = torch.arange(n) < successes
    return EvaluationResult(
        seeds=tuple(range(10_000, 10_000 + n)),
        returns=once.double() * 7,
        lengths=torch.full((n,), 50),
        success_once=once,
        success_at_end=torch.arange(n) < successes - 1,
        wall_s=12.0,
        policy_ms=policy_ms,
        policy_calls=100,
    )


class Page(HTMLParser):
    """Collects tags and attributes, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "circle"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def report(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    video = write_video(tmp_path / "episodes.mp4", frames)
    steps = list(range(0, 1000))
    return write_report(
        tmp_path / "report.html",
        title="ShortCut flow <PushCube-v1>",
        subtitle="state, seed 0",
        results={"final": result(17), "best": result(19)},
        num_steps={k: result(10 + k, policy_ms=2.0 * k) for k in (1, 2, 4, 8)},
        curves={
            "train/loss": (steps, [1 / (1 + step) for step in steps]),
            "eval/success_once": ([0, 500, 999], [0.1, 0.5, 0.85]),
            "eval/success_once_low": ([0, 500, 999], [0.0, 0.3, 0.64]),
            "eval/success_once_high": ([0, 500, 999], [0.3, 0.7, 0.95]),
        },
        video=video,
        notes=["A note & more."],
        config={"lr": 1e-3, "betas": (0.9, 0.95)},
        versions={"torch": "2.13.0"},
        command="python examples/shortcut_flow_bc.py --seed 0",
    )


def test_report_holds_everything(report):
    text = report.read_text()
    low, high = wilson_interval(17, 20)
    for part in (
        "ShortCut flow &lt;PushCube-v1&gt;",
        f'0.850 <span class="interval">[{low:.3f}, {high:.3f}]</span>',
        "85.0 %",
        "A note &amp; more.",
        "Sampling steps",
        "0.9, 0.95",
        "2.13.0",
        "python examples/shortcut_flow_bc.py --seed 0",
        "data:video/mp4;base64,",
    ):
        assert part in text
    for k in (1, 2, 4, 8):
        assert f"<td>{k}</td>" in text
        assert f'<td class="number">{2.0 * k:.2f}</td>' in text
    for seed in (10_000, 10_019):
        assert f'<td class="number">{seed}</td>' in text


def test_report_is_well_formed_and_needs_nothing_else(report):
    text = report.read_text()
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 2
    without_data = re.sub(r"data:[^\"]+", "", text)
    assert not re.search(r"https?:|//|@import|<script|<link", without_data)
    addresses = [value for name, value in page.attributes if name in ("src", "href")]
    assert addresses
    assert [value for value in addresses if not value.startswith(("data:", "#"))] == []
    identifiers = [value for name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    targets = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert {a or b for a, b in targets} <= set(identifiers)


def test_report_of_a_task_without_success(tmp_path):
    bandit = EvaluationResult((1,), torch.tensor([2.5]), torch.tensor([10]), None, None, 1.0, 1.0, 5)
    text = write_report(tmp_path / "r.html", title="Slates", results={"final": bandit}).read_text()
    assert "2.5" in text
    assert "success" not in text[text.index("<main>") :].lower()
    assert "Curves" not in text


def test_video_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4"):
        write_report(tmp_path / "r.html", title="x", video=tmp_path / "a.avi")


def moving_square(n=12, size=32):
    frames = np.zeros((n, size, size, 3), dtype=np.uint8)
    for i in range(n):
        frames[i, 8:24, i : i + 8] = (255, 120, 0)
    return frames


def test_mp4_can_be_read_back(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    frames = moving_square()
    path = write_video(tmp_path / "a.mp4", torch.from_numpy(frames).permute(0, 3, 1, 2), fps=10, min_side=64)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["size"] == (64, 64)
    assert meta["fps"] == 10
    assert meta["codec"].startswith("h264")
    read = [np.frombuffer(frame, np.uint8).reshape(64, 64, 3) for frame in reader]
    assert len(read) == len(frames)
    enlarged = frames.repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(np.stack(read).astype(int) - enlarged).mean() < 12


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_can_be_read_back(tmp_path, suffix):
    image = pytest.importorskip("PIL.Image")
    path = write_video(tmp_path / f"a{suffix}", moving_square(), fps=10, min_side=0)
    with image.open(path) as animation:
        assert animation.n_frames == 12
        assert animation.size == (32, 32)


def test_odd_sides_and_a_missing_suffix(tmp_path):
    path = write_video(tmp_path / "a", np.zeros((2, 33, 17, 3), np.uint8), min_side=0)
    assert path.suffix == ".mp4"
    assert path.stat().st_size > 0


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_flow.figures.video._has_ffmpeg", False)
    monkeypatch.setattr("torchrl_flow.figures.plots._has_matplotlib", False)
    assert write_video(tmp_path / "a", moving_square()).suffix == ".webp"
    monkeypatch.setattr("torchrl_flow.figures.video._has_pillow", False)
    for suffix in ("", ".mp4", ".gif"):
        with pytest.raises(RuntimeError, match=r"torchrl-flow\[plot\]"):
            write_video(tmp_path / f"b{suffix}", moving_square())
    # A report at the end of a long training is not lost for want of matplotlib.
    page = write_report(tmp_path / "r.html", title="x", curves={"loss": ([0], [1.0])}).read_text(encoding="utf-8")
    assert "torchrl-flow[plot]" in page
    assert "<svg" not in page


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((2, 8, 8, 4), np.uint8), "shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one frame"),
    ],
)
def test_bad_frames_are_refused(tmp_path, frames, reason):
    with pytest.raises(ValueError, match=reason):
        write_video(tmp_path / "a.mp4", frames)


def test_tiles_hold_the_last_frame():
    one, two = (
        np.full((1, 4, 4, 3), 10, np.uint8),
        np.stack([np.full((4, 4, 3), v, np.uint8) for v in (1, 2, 3)]),
    )
    grid = tile_episodes([one, two, one], columns=2, border=1)
    assert grid.shape == (3, 9, 9, 3)
    assert grid[:, 0, 0, 0].tolist() == [10, 10, 10]
    assert grid[:, 0, 5, 0].tolist() == [1, 2, 3]
    assert grid[0, 5, 5, 0] == 255
    with pytest.raises(ValueError, match="one size"):
        tile_episodes([one, np.zeros((1, 5, 4, 3), np.uint8)])
