from __future__ import annotations

import io
import os

import pytest
import torch

from torchrl_flow.runs import RunLogger, read_metrics
from torchrl_flow.util import Progress


def fill(logger, steps):
    for step in steps:
        logger.log(step, {"train/loss": 1 / (step + 2), "lr": torch.tensor([0.1], requires_grad=True)})
        if step % 2 == 0:
            logger.log(step, {"eval/success_once": float("nan")})


@pytest.mark.filterwarnings("error")
def test_rows_are_exact_and_in_order(tmp_path):
    with RunLogger(tmp_path) as logger:
        fill(logger, range(4))
        # Complete on the disk before it is closed: a kill loses no row.
        text = (tmp_path / "metrics.csv").read_text()
    assert text.startswith("step,metric,value\n0,train/loss,0.5\n0,lr,")
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["lr"][1] == [torch.tensor(0.1).item()] * 4
    assert metrics["train/loss"] == ([0, 1, 2, 3], [1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert metrics["eval/success_once"][0] == [0, 2]


@pytest.mark.parametrize("half_a_row", ["", "9,train/lo", "9"])
def test_resumed_file_equals_uninterrupted_file(tmp_path, half_a_row):
    with RunLogger(tmp_path / "whole") as logger:
        fill(logger, range(10))
    with RunLogger(tmp_path / "cut") as logger:
        fill(logger, range(8))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write(half_a_row)
    with RunLogger(tmp_path / "cut", resume_step=4) as logger:
        fill(logger, range(5, 10))
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_refusals(tmp_path):
    with RunLogger(tmp_path):
        pass
    with pytest.raises(ValueError, match="exists already"):
        RunLogger(tmp_path)
    with pytest.raises(ValueError, match="'online', 'offline' or None"):
        RunLogger(tmp_path / "b", wandb="cloud")  # pyright: ignore[reportArgumentType]
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a metrics file"):
        read_metrics(tmp_path / "metrics.csv")


def test_tensorboard_forgets_what_the_resumed_run_does_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLogger(tmp_path, tensorboard=True) as logger:
        for step in range(6):
            logger.log(step, {"loss": 10.0})
    with RunLogger(tmp_path, tensorboard=True, resume_step=3) as logger:
        for step in range(4, 8):
            logger.log(step, {"loss": 20.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert scalars == [(0, 10), (1, 10), (2, 10), (3, 10), (4, 20), (5, 20), (6, 20), (7, 20)]


@pytest.mark.slow
def test_wandb_offline_writes_below_the_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", os.environ.get("WANDB_MODE", "offline"))
    for resume_step in (None, 1):
        with RunLogger(tmp_path, wandb="offline", config={"lr": 0.1}, resume_step=resume_step) as logger:
            logger.log(2, {"train/loss": 0.5})
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert len({run.name.rsplit("-", 1)[-1] for run in runs}) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_quiet_without_a_terminal():
    stream = io.StringIO()
    with Progress(100, description="train", interval=1e9, stream=stream) as progress:
        for _ in range(100):
            progress.update()
        progress.show({"train/loss": 0.25})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 100/100 it, ")
    assert lines[0].endswith("loss=0.25")


def test_progress_lines_tell_rate_and_time_left():
    stream = io.StringIO()
    with Progress(100, initial=90, description="train", interval=0.0, stream=stream) as progress:
        progress.update(5, loss=0.5)
    first, last = stream.getvalue().splitlines()
    assert "95/100" in first
    assert "it/s" in first
    assert "left" in first
    assert "loss=0.5" in last


def test_progress_bar_on_a_terminal():
    stream = Terminal()
    with Progress(10, description="train", stream=stream) as progress:
        progress.update(5, loss=0.5)
        progress.update(5, loss=0.25)
    assert "train: 100%" in stream.getvalue()
    assert "loss=0.25" in stream.getvalue()


def test_progress_can_be_switched_off():
    stream = Terminal()
    with Progress(10, enabled=False, stream=stream) as progress:
        progress.update(10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1,x,0.2\x15\n", r"line 2: .* must be a step, a metric and a number"),
        (b"one,x,0.2\n", r"line 2: .* must be a step"),
        (b"1,\rx,0.2\n", r"line 2: not a row of a CSV file"),
        (b"1,x\n", "line 2: 2 cells"),
        (b"1,\xff,0.2\n", "line 2: byte 0xff is not UTF-8 text"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,metric,value\n" + line)
    with pytest.raises(ValueError, match=rf"metrics\.csv, {message}"):
        read_metrics(path)
