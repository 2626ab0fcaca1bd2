from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from torchrl_flow.sweeps import (
    Variant,
    format_statuses,
    plan_sweep,
    run_status,
    run_sweep,
    select_variants,
    summarise_sweep,
    write_sweep_report,
)
from torchrl_flow.sweeps import plan as sweep_plan

# A run that leaves what a recipe leaves. It counts its starts, and fails or dies where it is told to.
SCRIPT = """
import argparse, json, os, pathlib, signal
parser = argparse.ArgumentParser()
for name in ("runs", "name", "seed", "label", "gain", "fail"):
    parser.add_argument("--" + name)
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
folder = pathlib.Path(args.runs) / args.name
folder.mkdir(exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("x")
print("hello from", args.name)
if args.fail == "status":
    raise SystemExit("this one fails")
if args.fail == "kill":
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
gain = float(args.gain)
rows = ["step,metric,value"]
for step in range(1, 5):
    rows += [f"{step},train/env_steps,{100 * step}", f"{step},train/epoch_s,{0.5 * gain}"]
    rows += [f"{step},eval/success_once,{min(1.0, gain * step / 4)}"]
(folder / "metrics.csv").write_text("\\n".join(rows) + "\\n")
(folder / "config.json").write_text(json.dumps({"eval_episodes": 20, "num_steps": 4}))
result = {"4": {"success_once": min(1.0, gain)}, "1": {"success_once": 0.0}, "noise 0.5": {"success_once": 0.1}}
(folder / "evaluation.json").write_text(json.dumps(result))
"""
VARIANTS = [
    Variant("baseline", "baseline", {"gain": 0.5}),
    Variant("better", "gain", {"gain": 1.0}),
    Variant("broken", "gain", {"gain": 1.0, "fail": "status"}),
    Variant("worse", "gain", {"gain": 0.25}),
]


def plan(folder, variants=VARIANTS, seeds=(0, 1)):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return plan_sweep(variants, seeds, program=[sys.executable, str(script)], directory=folder / "sweep")


def starts(run):
    return len((run.directory / "starts").read_text())


@pytest.fixture(params=["ray", "plain"])
def backend(request, monkeypatch):
    if request.param == "ray":
        pytest.importorskip("ray")
        return {"workers": 2, "poll_s": 0.5}
    monkeypatch.setattr(sweep_plan, "_has_ray", False)
    return {}


def test_a_crash_stops_no_other_run_and_a_restart_leaves_finished_ones_alone(backend, tmp_path):
    runs, seen = plan(tmp_path), []
    statuses = run_sweep(runs, on_change=seen.append, **backend)
    states = [status.state for status in statuses]
    assert states == ["finished", "finished", "crashed", "finished"] * 2
    assert "exit status 1" in statuses[2].detail
    assert "this one fails" in statuses[2].detail
    assert runs[2].log.read_text().startswith("hello from broken-0")
    assert [status.state for status in seen[0]] == ["waiting"] * 8
    assert [status.state for status in seen[-1]] == states
    again = run_sweep(runs, **backend)
    assert [status.state for status in again] == states
    assert [starts(run) for run in runs] == [1, 1, 2, 1] * 2


def test_a_worker_that_is_killed_stops_no_other_run(tmp_path):
    pytest.importorskip("ray")
    variants = [Variant("killer", "gain", {"gain": 1.0, "fail": "kill"}), *VARIANTS[:2]]
    statuses = run_sweep(plan(tmp_path, variants, (0,)), workers=1, poll_s=0.5)
    assert [status.state for status in statuses] == ["crashed", "finished", "finished"]
    assert statuses[0].detail == "killed"


def test_a_running_run_is_known_by_its_process(tmp_path):
    (run, *_) = plan(tmp_path)
    assert run_status(run).state == "waiting"
    run.record.parent.mkdir(parents=True)
    record = {"pid": os.getpid(), "host": platform.node(), "started": 0.0}
    run.record.write_text(json.dumps(record))
    assert run_status(run).state == "running"
    assert run_sweep([run])[0].state == "running"
    assert not run.directory.exists()
    run.record.write_text(json.dumps({**record, "pid": 2**22 - 1}))
    assert run_status(run).state == "crashed"


def test_the_report_compares_with_the_baseline(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_plan, "_has_ray", False)
    runs = plan(tmp_path)
    statuses = run_sweep(runs)
    baseline, better, broken, worse = summarise_sweep(statuses)
    assert (baseline.success, better.success, broken.success, worse.success) == (0.5, 1.0, None, 0.25)
    assert (baseline.seeds, broken.seeds, broken.crashed) == (2, 0, 2)
    # 40 episodes over two seeds; the baseline ends at 0.5, which the better one evaluates to after half the steps.
    assert baseline.success_interval == pytest.approx((0.352, 0.648), abs=1e-3)
    assert (baseline.steps_to_baseline, better.steps_to_baseline, worse.steps_to_baseline) == (400, 200, None)
    assert better.curve == ([100, 200, 300, 400], [0.25, 0.5, 0.75, 1.0])
    assert better.curve_variance == pytest.approx(0.0)
    assert better.epoch_s == 0.5
    page = write_sweep_report(tmp_path / "sweep", [baseline, better, broken, worse], title="A sweep")
    assert page.read_text().count("<svg") == 1
    assert "xmlns" in (page.parent / "gain.svg").read_text()
    rows = list(csv.reader((page.parent / "report.csv").open()))
    table = (page.parent / "report.md").read_text().splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if "---" not in line] == rows
    assert rows[2] == ["better", "gain", "2", "0", "1", "0.9124", "1", "200", "0", "0.5"]
    assert rows[3] == ["broken", "gain", "0", "2", "", "", "", "", "", ""]
    table = format_statuses(statuses)
    assert len(table.splitlines()) == 9
    assert "better-0    finished         400    1.000" in table


def test_the_noise_of_a_curve_is_not_its_trend():
    from torchrl_flow.sweeps.report import _noise

    assert _noise([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.0)
    assert _noise([0.5, 0.7, 0.5, 0.7, 0.5]) == pytest.approx(0.02)


def test_commands_carry_options_seeds_and_names(tmp_path):
    variants = [Variant("a", "x", {"lr": 3e-5, "resume": False, "steps": (1, 2), "left": None, "flag": False})]
    (run,) = plan_sweep(variants, [3], program=["python", "s.py"], directory=tmp_path, options={"lr": 1.0, "k": 4})
    assert run.command == (
        *("python", "s.py", "--lr", "3e-05", "--k", "4", "--resume", "--steps", "1", "2", "--no-flag"),
        *("--runs", str(tmp_path), "--name", "a-3", "--label", "a", "--seed", "3"),
    )
    assert run.directory == tmp_path / "a-3"


def test_selection_by_name_and_category_and_refusals(tmp_path):
    assert [v.name for v in select_variants(VARIANTS, ["gain"])] == ["better", "broken", "worse"]
    assert [v.name for v in select_variants(VARIANTS, ["worse", "baseline"])] == ["baseline", "worse"]
    assert len(select_variants(VARIANTS, [])) == 4
    with pytest.raises(ValueError, match=r"no configurations \['best'\].*baseline, better"):
        select_variants(VARIANTS, ["best"])
    with pytest.raises(ValueError, match="at least one"):
        plan_sweep([], [0], program=["x"], directory=tmp_path)
    with pytest.raises(ValueError, match="once"):
        plan_sweep(VARIANTS, [0, 0], program=["x"], directory=tmp_path)


def test_a_cluster_without_ray_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_plan, "_has_ray", False)
    with pytest.raises(RuntimeError, match=r"torchrl-flow\[sweep\]"):
        run_sweep(plan(tmp_path), address="auto")


def test_a_path_may_be_given_as_text(tmp_path):
    (run, *_) = plan_sweep(VARIANTS, [0], program=["x"], directory=str(tmp_path))
    assert run.log == Path(tmp_path) / "logs" / "baseline-0.log"


def test_a_run_whose_sweep_was_killed_is_waited_for_and_done_by_the_next_start(tmp_path, monkeypatch):
    run, *_ = plan(tmp_path)
    run.record.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:
        gone = {"pid": orphan.pid, "parent": 2**22 - 1, "host": platform.node(), "started": 0.0}
        run.record.write_text(json.dumps(gone))
        monkeypatch.setattr("torchrl_flow.sweeps.plan._ORPHAN_S", 0.3)
        with pytest.raises(RuntimeError, match=f"still at work.*{orphan.pid}"):
            run_sweep([run])
        # A run of a sweep that is going on is its own.
        run.record.write_text(json.dumps({**gone, "parent": os.getpid()}))
        assert run_sweep([run])[0].state == "running"
        run.record.write_text(json.dumps(gone))
        monkeypatch.setattr("torchrl_flow.sweeps.plan._ORPHAN_S", 60.0)
        threading.Timer(0.5, orphan.kill).start()
        threading.Timer(0.6, orphan.wait).start()  # or it stays in the table of processes
        assert run_sweep([run])[0].state == "finished"
