from __future__ import annotations

import base64
import re
import sys
import types

import numpy as np
import pytest
import torch

from torchrl_flow.evaluation import EvaluationResult
from torchrl_flow.figures import show_video, write_video
from torchrl_flow.util import Progress
from torchrl_flow.util.progress import in_notebook

ATTACK = "<script>alert(1)</script>\" onerror='x'"


def result(*, success=True, videos=()):
    once = torch.tensor([True, False, True, True]) if success else None
    return EvaluationResult(
        seeds=(7, 8, 9, 10),
        returns=torch.tensor([1.5, 0.0, 2.0, 2.5]).double(),
        lengths=torch.tensor([10, 20, 30, 40]),
        success_once=once,
        success_at_end=once,
        wall_s=3.0,
        policy_ms=2.0,
        policy_calls=5,
        videos=list(videos),
    )


def frames(n=3):
    return np.zeros((n, 16, 16, 3), np.uint8)


def test_a_result_is_a_table_with_every_episode():
    text = result()._repr_html_()
    assert "0.750 [0.301, 0.954]" in text
    assert "25.0 environment steps" in text
    assert "2.00 ms" in text
    assert text.count("<tr>") == 7 + 1 + 4
    assert "<td>10</td><td>True</td><td>True</td><td>2.5</td><td>40</td>" in text
    assert "<video" not in text
    assert "success" not in result(success=False)._repr_html_()


def test_a_filmed_result_shows_its_video_and_no_times():
    text = result(videos=[frames(), frames(2)])._repr_html_()
    assert "data:video/mp4;base64," in text
    assert " ms" not in text


def test_a_result_is_shown_where_no_video_can_be_written(monkeypatch):
    monkeypatch.setattr("torchrl_flow.figures.video._has_ffmpeg", False)
    monkeypatch.setattr("torchrl_flow.figures.video._has_pillow", False)
    assert "0.750" in result(videos=[frames()])._repr_html_()


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_file_is_embedded_and_its_caption_escaped(tmp_path, suffix):
    path = write_video(tmp_path / f"{ATTACK.replace('/', '')}{suffix}", frames())
    html = show_video(path, caption=ATTACK)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    (data,) = re.findall(r'src="data:[a-z0-9/]+;base64,([^"]+)"', html)
    assert base64.b64decode(data) == path.read_bytes()
    assert not re.search(r'\sonerror="|\sonerror=\'', re.sub(r'alt="[^"]*"', "", html.split("<figcaption>")[0]))
    assert ("<video" in html) == (suffix == ".mp4")


def test_frames_and_episodes_are_embedded():
    for video in (frames(), torch.zeros(2, 3, 16, 16, dtype=torch.uint8), [frames(), frames(2)]):
        assert "base64," in show_video(video)._repr_html_()


def test_a_file_of_another_kind_is_refused(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>")
    with pytest.raises(ValueError, match=r"\.mp4.*got '\.html'"):
        show_video(page)


class Shell:
    """A notebook's shell, as far as the check looks at it."""

    config = {"IPKernelApp": {}}  # noqa: RUF012


@pytest.fixture
def notebook(monkeypatch):
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = Shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_a_script_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert "IPython" not in sys.modules


def test_a_terminal_of_ipython_is_no_notebook(monkeypatch):
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(config={"TerminalIPythonApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not in_notebook()


def test_a_notebook_shows_progress(notebook, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            shown.append(options)

        def set_postfix_str(self, text, refresh):
            shown.append(text)

        def update(self, steps):
            shown.append(steps)

        def close(self):
            shown.append("closed")

    monkeypatch.setattr("tqdm.notebook.tqdm", Bar)
    assert in_notebook()
    with Progress(4, initial=1, description="train") as progress:
        progress.update(loss=0.5)
    assert shown[0] == {"total": 4, "initial": 1, "desc": "train", "unit": "it"}
    assert shown[1:] == ["loss=0.5", 1, "closed"]


def test_a_notebook_without_widgets_shows_a_bar_of_text(notebook, monkeypatch, capsys):
    def refuse(**options):
        raise ImportError("IProgress not found. Please update jupyter and ipywidgets.")

    monkeypatch.setattr("tqdm.notebook.tqdm", refuse)
    with Progress(2, description="train") as progress:
        progress.update(2)
    assert "train: 100%" in capsys.readouterr().err


def test_a_notebook_is_quiet_where_progress_is_off_or_goes_elsewhere(notebook, monkeypatch, tmp_path):
    monkeypatch.setattr("tqdm.notebook.tqdm", lambda **options: pytest.fail("a bar"))
    with Progress(2, enabled=False) as progress:
        progress.update(2)
    with (tmp_path / "log").open("w") as stream, Progress(2, stream=stream, description="x") as progress:
        progress.update(2)
    assert "x: 2/2" in (tmp_path / "log").read_text()
