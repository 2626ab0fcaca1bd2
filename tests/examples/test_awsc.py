from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_flow.policies import load_critic, load_policy
from torchrl_flow.runs import load_checkpoint, read_metrics

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
    out = finish(start(folder, "awsc_diagnose.py", "--run", str(stage(folder, 3)), "--episodes", "20", "--states", "4"))
    figures = json.loads((stage(folder, 3) / "diagnosis.json").read_text())
    assert figures["chunks"] >= 20 * 10
    assert abs(figures["q_mean"]) < 2
    assert figures["online_rows"] > 100
    assert 0 < figures["effective_share"] <= 1
    assert (stage(folder, 3) / "diagnosis.svg").read_text().count('<g id="axes_') == 6
    assert figures["within_states"] > 0
    assert -1 <= figures["within_state_correlation"] <= 1
    assert -1 <= figures["within_state_agreement"] <= 1
    assert figures["within_state_q_std"] > 0
    assert "diagnosis.svg" in out
    assert "was not written by awsc_online" in refused(folder, "awsc_diagnose.py", "--run", str(stage(folder, 2)))


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


def test_stage_three_follows_the_gradient_of_q(pipeline):
    folder, _ = pipeline
    options = ["--policy", str(stage(folder, 1)), "--no-load-critic", "--chunks", "64", "--critic-warmup", "2"]
    options += ["--utd-ratio", "0.125", "--extraction", "q_gradient", "--anchor", "start", "--num-qs", "3"]
    options += ["--chunks-per-batch", "4", "--return-chunks", "3", "--name", "gradient", "--eval-every", "1"]
    finish(start(folder, "awsc_online.py", *options, *ONLINE))
    first, checkpoint = load_checkpoint(stage(folder, 1)), load_checkpoint(folder / "runs" / "gradient")
    assert set(checkpoint.roles) == ROLES | {"reference_policy"}
    # The anchor is the policy of before; what acts, here and wherever the checkpoint is loaded, is the one-step map.
    before, anchor = first.state_dict("ema_policy"), checkpoint.state_dict("reference_policy")
    assert all(torch.equal(anchor[name], before[name]) for name in before)
    assert load_policy(checkpoint)[0].num_steps == 1
    assert load_policy(first)[0].num_steps != 1
    metrics = read_metrics(folder / "runs" / "gradient" / "metrics.csv")
    assert 0 < metrics["train/anchor_distance"][1][-1] < 10
    # Two rollouts of 32 chunks, and an update for every eighth chunk.
    assert checkpoint.step == 2
    assert checkpoint._read("state", "stepper")["num_updates"] == 8


def kill_when(process, run, ready):
    """Kill without warning as soon as the run has got so far."""
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def has_checkpoint(run, step):
    return any(int(path.stem.rsplit("-", 1)[1]) >= step for path in run.glob("checkpoints/checkpoint-*.torchrl"))


def same(run, other):
    """Compare weights, counters, metrics and results of two runs, all but what is a time."""
    first, second = load_checkpoint(run), load_checkpoint(other)
    assert first.counters == second.counters
    for role in first.roles:
        ours, theirs = first.state_dict(role), second.state_dict(role)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), role
    metrics = [
        {key: value for key, value in read_metrics(path / "metrics.csv").items() if not key.endswith(("_s", "_ms"))}
        for path in (run, other)
    ]
    assert metrics[0] == metrics[1]
    timed = ("wall_s", "command", "commit", "date")
    tables = [list(csv.DictReader((path / "results.csv").open())) for path in (run, other)]
    for table in tables:
        for row in table:
            for name in timed:
                del row[name]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1]


def online_options(folder, name, *more):
    options = ["--policy", str(stage(folder, 2)), "--chunks", "64", "--name", name, "--utd-ratio", "2"]
    options += ["--save-every", "1", "--eval-every", "3", "--results", f"runs/{name}/results.csv"]
    return [*options, *more, *ONLINE]


@pytest.fixture(scope="module")
def whole(pipeline):
    folder, _ = pipeline
    finish(start(folder, "awsc_online.py", *online_options(folder, "whole")))
    return folder / "runs" / "whole"


def test_a_killed_online_run_goes_on_to_the_same_bits(pipeline, whole):
    folder, _ = pipeline
    run, options = folder / "runs" / "killed", online_options(folder, "killed")
    # Kill in the middle of training, twice, and once more between the evaluation's files.
    for step, resume in ((2, []), (5, ["--resume"])):
        process = start(folder, "awsc_online.py", *options, *resume)
        kill_when(process, run, lambda step=step: has_checkpoint(run, step))
        assert step <= load_checkpoint(run).step < 8
    process = start(folder, "awsc_online.py", *options, "--resume")
    kill_when(process, run, (run / "result_rows.json").exists)
    finish(start(folder, "awsc_online.py", *options, "--resume"))
    assert load_checkpoint(run).step == 8
    assert load_checkpoint(run)._read("state", "stepper")["num_updates"] == 2 * 64
    same(run, whole)
    # A finished run that is resumed writes each row once.
    finish(start(folder, "awsc_online.py", *options, "--resume"))
    same(run, whole)


def test_an_online_run_is_made_longer(pipeline, whole):
    folder, _ = pipeline
    shutil.copytree(whole, whole.with_name("longer"))
    longer = online_options(folder, "longer", "--resume")
    longer[longer.index("--chunks") + 1] = "80"
    finish(start(folder, "awsc_online.py", *longer))
    checkpoint = load_checkpoint(folder / "runs" / "longer")
    assert checkpoint.step == 10
    assert checkpoint._read("state", "stepper")["num_updates"] == 2 * 80


def test_the_best_checkpoint_of_a_run_is_kept(whole):
    best, last = load_checkpoint(whole, which="best"), load_checkpoint(whole)
    evaluated = dict(zip(*read_metrics(whole / "metrics.csv")["eval/success_once"]))
    assert set(evaluated) == {3, 6}
    assert evaluated[best.step] == max(evaluated.values())
    assert last.step == 8


def test_a_policy_that_turns_bad_is_no_result(pipeline):
    folder, _ = pipeline
    out = refused(folder, "awsc_online.py", *online_options(folder, "bad", "--critic-lr", "1e30", "--lr", "1e30"))
    assert "is not finite" in out
    assert "Traceback" not in out
    assert "The batch is finite: the networks have diverged" in out
    run = folder / "runs" / "bad"
    assert not (run / "results.csv").exists()
    assert not (run / "evaluation.json").exists()
    for path in run.glob("checkpoints/*.torchrl"):
        checkpoint = load_checkpoint(path)
        assert all(v.isfinite().all() for role in checkpoint.roles for v in checkpoint.state_dict(role).values())


def test_a_pipeline_of_other_budgets_under_the_same_name_is_refused(pipeline):
    folder, _ = pipeline
    options = list(PIPELINE)
    options[options.index("--scale") + 1] = "0.02"
    out = refused(folder, "awsc_pipeline.py", *options)
    assert "iterations: 20 before, 40 now" in out
    assert "choose another --name" in out
