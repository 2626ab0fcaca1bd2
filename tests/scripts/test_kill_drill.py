"""Runs that are killed, also between the evaluation and the report, and resumed."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
import time
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


def test_all_recipes_with_a_run_are_drilled_except_that_with_ray():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py") if "open_run(" in path.read_text("utf-8")}
    assert len(scripts) > 10
    assert {script for script, _, _ in kill_drill.DRILLED.values()} == scripts - {"awsc_distributed"} | {
        "awsc_pipeline"
    }


@pytest.mark.parametrize(
    ("found", "row"),  # kills that happen in each trial
    [([2, 2], ["4", "4", "2 of 2"]), ([1, 0, 2, 1], ["7", "4", "4 of 4"]), ([0] * 99, ["20", "0", "10 of 10"])],
)
def test_trials_are_added_until_the_kills_happened(found, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def trial(name, run, seconds, kills, rng, figures):
        asked.append(kills)
        figures.killed += found[len(asked) - 1]
        figures.tried += kills
        (Path("runs") / run).mkdir(parents=True)

    for name in ("prepare", "finish"):
        monkeypatch.setattr(kill_drill, name, lambda *args: None)
    monkeypatch.setattr(kill_drill, "trial", trial)
    monkeypatch.setattr(kill_drill, "differences_of", lambda *args: [])
    figures = kill_drill.drill("bc", trials=2, kills=2, seed=0)
    assert figures.row() == ["`bc`", *row]
    assert figures.good == (row[1] == "4")


@pytest.mark.parametrize(("name", "last"), [("bc", "run"), ("awsc_pipeline", "run-planar-state-0-3")])
def test_a_kill_after_the_end_of_a_run_does_not_count(name, last, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs" / last / ("evaluation.json" if name == "bc" else "outcome.json")

    def fork(script, options):
        pid = os.fork()
        if not pid:
            time.sleep(600)
        return pid

    monkeypatch.setattr(kill_drill, "fork", fork)
    monkeypatch.setattr(kill_drill, "finish", lambda *args: None)
    figures = kill_drill.Figures(name, 3)
    kill_drill.trial(name, "run", 0.01, 2, random.Random(0), figures)
    assert (figures.tried, figures.killed) == (2, 2)
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    kill_drill.trial(name, "run", 0.01, 2, random.Random(0), figures)
    assert (figures.tried, figures.killed) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", kill_drill.DRILLED)
def test_killed_and_resumed_runs_equal_one_that_was_not_stopped(name):
    command = [sys.executable, str(ROOT / "scripts" / "kill_drill.py"), name, "--trials", "1", "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert re.search(rf"^\| `{name}` \| \d+ \| 2 \| (\d+) of \1 \|$", done.stdout, re.M), done.stdout
