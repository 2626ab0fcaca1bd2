from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_flow.training import load_checkpoint, load_critic, load_policy

ROOT = Path(__file__).parents[2]
PIPELINE = ["--task", "planar", "--scale", "0.01", "--num-demos", "20", "--eval-episodes", "10", "--num-videos", "0"]
PIPELINE += ["--best-of", "2"]
ONLINE = ["--batch-size", "32", "--num-videos", "0", "--eval-episodes", "10", "--num-envs", "8", "--best-of"]
ROLES = {"policy", "ema_policy", "critic", "target_critic"}


def start(folder, script, *options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), *options], cwd=folder, env=environment, **pipes
    )


def finish(process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def refused(folder, script, *options):
    process = start(folder, script, *options)
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0, out
    return out


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    return folder, finish(start(folder, "awsc_pipeline.py", *PIPELINE))


def stage(folder, number):
    return folder / "runs" / f"awsc-planar-state-0-{number}"


def test_each_stage_starts_from_the_one_before_and_leaves_its_file(pipeline):
    folder, out = pipeline
    checkpoints = {number: load_checkpoint(stage(folder, number)) for number in (1, 2, 3)}
    assert set(checkpoints[1].roles) == {"policy", "ema_policy"}
    assert set(checkpoints[2].roles) == set(checkpoints[3].roles) == ROLES
    first, last = (load_policy(checkpoints[number])[0] for number in (1, 3))
    # The normalisers are handed over, and the weights have moved on from those of the first stage.
    assert torch.equal(first.action_normalizer.loc, last.action_normalizer.loc)
    weights = [actor.state_dict()["velocity_network.linear_in.weight"] for actor in (first, last)]
    assert 0 < (weights[0] - weights[1]).abs().max() < 0.1
    critic, _ = load_critic(checkpoints[3], last)
    assert critic.num_qs == 10
    assert checkpoints[3].counters["env_steps"] > 100
    rows = list(csv.DictReader((folder / "runs" / "results.csv").open()))
    variants = [f"{stage}{name}" for stage in "123" for name in ("", " noise 0.5", " best of 2")]
    assert [row["stage"] for row in rows] == [name for name in variants if name != "1 best of 2"]
    assert {row["recipe"] for row in rows} == {"awsc"}
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 8
    assert (stage(folder, 3) / "report.html").exists()


def test_what_is_done_is_not_done_again(pipeline):
    folder, _ = pipeline
    files = [stage(folder, number) / "metrics.csv" for number in (1, 2, 3)]
    before = [file.stat().st_mtime_ns for file in files]
    out = finish(start(folder, "awsc_pipeline.py", *PIPELINE, "--results", "again.csv"))
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 2 + 8


def test_a_run_is_looked_into(pipeline):
    folder, _ = pipeline
    out = finish(start(folder, "awsc_diagnose.py", "--run", str(stage(folder, 3)), "--episodes", "20"))
    figures = json.loads((stage(folder, 3) / "diagnosis.json").read_text())
    assert figures["chunks"] >= 20 * 10
    assert abs(figures["q_mean"]) < 2
    assert figures["online_rows"] > 100
    assert 0 < figures["effective_share"] <= 1
    assert (stage(folder, 3) / "diagnosis.svg").read_text().count('<g id="axes_') == 6
    assert "diagnosis.svg" in out
    assert "is not of awsc_online" in refused(folder, "awsc_diagnose.py", "--run", str(stage(folder, 2)))


def test_a_policy_that_does_not_fit_is_refused_with_both_values(pipeline):
    folder, _ = pipeline
    first, second = str(stage(folder, 1)), str(stage(folder, 2))
    offline, online = "aw_shortcut_flow_offline.py", "awsc_online.py"
    assert "task: checkpoint 'planar', here 'PushCube-v1'" in refused(
        folder, offline, "--policy", first, "--task", "PushCube-v1"
    )
    assert "control_mode: checkpoint 'delta_position', here 'pd_joint_pos'" in refused(
        folder, online, "--policy", second, "--control-mode", "pd_joint_pos"
    )
    assert "act_horizon: checkpoint 4, here 8" in refused(folder, offline, "--policy", first, "--act-horizon", "8")
    out = refused(folder, online, "--policy", first, "--load-critic")
    assert "holds no critic and no target_critic" in out
    both = ["--act-best-of", "4", "--act-noise-scale", "0.5"]
    assert "--act-best-of" in refused(folder, online, "--policy", second, *both)
    assert "aw_shortcut_flow_offline" in out
    assert not [run for run in (folder / "runs").iterdir() if run.name.startswith(("awsc-planar-state-0.", "aw_short"))]


def test_stage_three_trains_a_critic_of_its_own_where_none_is_loaded(pipeline):
    folder, _ = pipeline
    options = ["--policy", str(stage(folder, 1)), "--no-load-critic", "--chunks", "16", "--name", "fresh"]
    options += ["--num-qs", "3", "--num-min-qs", "1", "--critic-warmup", "4", "--utd-ratio", "1"]
    finish(start(folder, "awsc_online.py", *options, *ONLINE))
    checkpoint = load_checkpoint(folder / "runs" / "fresh")
    assert set(checkpoint.roles) == ROLES
    assert load_critic(checkpoint, load_policy(checkpoint)[0])[0].num_qs == 3


def test_a_killed_online_run_goes_on_with_its_data_and_counts(pipeline):
    folder, _ = pipeline
    options = ["--policy", str(stage(folder, 2)), "--chunks", "64", "--name", "killed", "--utd-ratio", "2"]
    options += ["--save-every", "1", "--act-noise-scale", "0.5", *ONLINE]
    process = start(folder, "awsc_online.py", *options)
    run = folder / "runs" / "killed"
    while not list(run.glob("checkpoints/checkpoint-*3.torchrl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = load_checkpoint(run)
    finish(start(folder, "awsc_online.py", *options, "--resume"))
    after = load_checkpoint(run)
    assert 3 <= before.step < after.step == 8
    stepper = after._read("state", "stepper")
    assert stepper["num_updates"] == 2 * 64
    assert after.counters["env_steps"] > before.counters["env_steps"]
    steps = [
        int(row["step"]) for row in csv.DictReader((run / "metrics.csv").open()) if row["metric"] == "train/env_steps"
    ]
    assert steps == list(range(1, 9))
