"""Runs that are killed, also between the evaluation and the report, and resumed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fcntl")  # the script forks
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "examples")]
import kill_drill  # noqa: E402

SHORT = ("--iterations", "8", "--eval-every", "0", "--eval-episodes", "2")


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory with a run that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        threads = torch.get_num_threads()
        kill_drill.run_here("bc", "whole", *SHORT)
        yield Path.cwd()
        torch.set_num_threads(threads)


def kill_at(patch, name, after):
    """Have the end of a run killed at a call, before or after it did its work."""
    module = sys.modules["torchrl_flow.reports.conclusion"]
    real = getattr(module, name)

    def killed(*args, **kwargs):
        if after:
            real(*args, **kwargs)
        raise Killed

    patch.setattr(module, name, killed)


@pytest.mark.parametrize(
    ("moment", "after"),  # in the order of the end of a run; after one call is before the next
    [("write_report", False), ("write_report", True), ("record_results", True), ("write_json", True)],
)
def test_a_run_that_is_killed_at_its_end_has_one_row_and_the_same_files(whole, moment, after):
    name = f"killed-{moment}-{after}"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, moment, after)
        with pytest.raises(Killed):
            kill_drill.run_here("bc", name, *SHORT)
    assert (Path("runs") / name / "evaluation.json").exists() == (moment == "write_json" and after)
    for _ in range(1 + (moment == "write_report" and after)):  # and again, after it is finished
        kill_drill.run_here("bc", name, *SHORT, "--resume")
        assert kill_drill.differences(Path("runs") / name, Path("runs/whole")) == []
        with Path(f"runs/{name}.csv").open(newline="") as file:
            stages = [row["stage"] for row in csv.DictReader(file)]
        assert len(stages) == len(set(stages)) > 0
        rows = json.loads((Path("runs") / name / "result_rows.json").read_text())
        assert sorted(rows) == sorted(stages)
    assert (Path("runs") / name / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", kill_drill.RECIPES)
def test_killed_and_resumed_runs_equal_one_that_was_not_stopped(name):
    command = [sys.executable, str(ROOT / "scripts" / "kill_drill.py"), name, "--trials", "1", "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "1 of 1 resumed runs equal the uninterrupted one" in done.stdout
