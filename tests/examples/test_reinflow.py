from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.modules import FlowActorConfig, NoiseNetConfig, StateValueConfig, make_flow_actor
from torchrl_flow.policies import load_policy
from torchrl_flow.runs import Run, load_checkpoint, read_metrics

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
# Rollouts of 5 chunks: iterations end in the middle of episodes.
SMALL = ["--num-envs", "8", "--rollout-steps", "5", "--minibatch-size", "16", "--epochs", "2", "--num-videos", "0"]
SMALL += ["--num-steps", "2", "--total-env-steps", "1920", "--critic-warmup-steps", "640", "--eval-episodes", "10"]
SMALL += ["--noise-decay-steps", "1000"]


def write_policy(folder):
    """A run that leaves an untrained policy of the planar task."""
    torch.manual_seed(0)
    config = FlowActorConfig(action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, width=16, depth=1)
    actor = make_flow_actor(config, action_low=-torch.ones(3), action_high=torch.ones(3))
    for parameter in actor.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    task = PlanarPickPlaceEnv(1).task_info
    with Run(folder / "bc", {}, task=task, actor_config=config, progress=False) as run:
        run.track(modules={"policy": actor})
        for _ in run.steps(1):
            pass
    return folder / "bc"


def start(folder, *options, script="examples/reinflow.py"):
    command = [sys.executable, str(ROOT / script), "--policy", str(folder / "bc"), *SMALL]
    command += ["--runs", str(folder / "runs"), "--results", str(folder / "results.csv"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **pipes)


def finish(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_policy(folder)
    out = finish(start(folder, "--name", "a", "--eval-every", "3", "--save-every", "2"))
    return folder / "runs" / "a", out


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    write_policy(tmp_path)
    options = ("--name", "a", "--eval-every", "3", "--save-every", "2")
    process, run = start(tmp_path, *options), tmp_path / "runs" / "a"
    while not list(run.glob("checkpoints/checkpoint-*2.torchrl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert load_checkpoint(run).step < 6
    finish(start(tmp_path, *options, "--resume"))
    resumed, reference = load_checkpoint(run), load_checkpoint(whole[0])
    assert resumed.step == reference.step == 6
    assert resumed.counters == reference.counters
    for role in ("policy", "noise_net", "value"):
        ours, theirs = resumed.state_dict(role), reference.state_dict(role)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), role
    ours, theirs = (read_metrics(path / "metrics.csv") for path in (run, whole[0]))
    timed = ("_s", "_ms")
    assert {k: v for k, v in ours.items() if not k.endswith(timed)} == {
        k: v for k, v in theirs.items() if not k.endswith(timed)
    }


def test_the_policy_stands_still_in_the_warm_up_and_moves_after(whole):
    before, _ = load_policy(whole[0].parents[1] / "bc")
    after, checkpoint = load_policy(whole[0])
    metrics = read_metrics(whole[0] / "metrics.csv")
    assert metrics["train/gradient_norm_flow"][1][:2] == [0.0, 0.0]
    assert min(metrics["train/gradient_norm_flow"][1][2:]) > 0
    assert metrics["train/sigma_max"][1][0] == pytest.approx(0.3)
    assert metrics["train/sigma_max"][1][-1] == pytest.approx(0.05)
    assert not all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))
    assert set(checkpoint.roles) == {"policy", "noise_net", "value"}
    assert NoiseNetConfig.from_dict(checkpoint.module_configs["noise_net"]) == NoiseNetConfig(sigma_min=0.05)
    assert StateValueConfig.from_dict(checkpoint.module_configs["value"]) == StateValueConfig()
    assert after.num_steps == 2
    assert checkpoint.counters["env_steps"] <= 1920


def test_the_whole_warm_up_leaves_the_policy_to_the_bit(tmp_path):
    path = write_policy(tmp_path)
    finish(start(tmp_path, "--name", "a", "--critic-warmup-steps", "100000"))
    before, after = load_policy(path)[0], load_policy(tmp_path / "runs" / "a")[0]
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values()))


def test_the_run_ends_with_its_report_and_its_row(whole):
    run, out = whole
    assert out.strip().splitlines()[-1] == str((run / "report.html").resolve())
    (row,) = csv.DictReader((run.parents[1] / "results.csv").open())
    assert (row["recipe"], row["task"], row["episodes"]) == ("reinflow", "planar", "10")
    assert 0 < int(row["env_steps"]) <= 1920


def test_the_fine_tuned_policy_can_be_fine_tuned_again_with_anchor_and_early_stop(whole):
    folder = whole[0].parents[1]
    options = ("--anchor-coef", "0.1", "--target-kl", "1e-12", "--log-prob-reduction", "sum", "--policy", str(whole[0]))
    finish(start(folder, "--name", "b", *options))
    metrics = read_metrics(folder / "runs" / "b" / "metrics.csv")
    assert metrics["train/loss_anchor"][1][-1] > 0
    assert metrics["train/epochs"][1] == [2, 2, 1, 1, 1, 1]


def test_the_best_policy_is_kept_and_taken(whole):
    run, _ = whole
    steps, values = read_metrics(run / "metrics.csv")["eval/success_once"]
    assert steps == [1, 3, 6]  # the first, each third and the last iteration
    best = load_checkpoint(run, which="best")
    assert best.step in [step for step, value in zip(steps, values, strict=True) if value == max(values)]
    assert load_checkpoint(run).step == 6


def test_a_finished_run_is_made_longer_and_has_one_row(tmp_path):
    write_policy(tmp_path)
    rows = []
    for steps, options in (("640", ()), ("640", ("--resume",)), ("1280", ("--resume",))):
        finish(start(tmp_path, "--name", "a", *options, "--total-env-steps", steps))
        assert load_checkpoint(tmp_path / "runs" / "a").step == int(steps) // 320
        (row,) = csv.DictReader((tmp_path / "results.csv").open())
        rows.append(int(row["env_steps"]))
    assert rows[0] == rows[1] < rows[2]


BROKEN = """
import runpy, sys
from torchrl_flow.envs import PlanarPickPlaceEnv

step, calls, key = PlanarPickPlaceEnv._step, [0], sys.argv[1]

def broken(self, tensordict):
    out = step(self, tensordict)
    training = self.num_envs == 8  # the evaluations have another number of environments
    calls[0] += training
    if training and calls[0] > 3 * 40:
        out[key][2] = float("nan")
    return out

PlanarPickPlaceEnv._step = broken
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("key", ["reward", "observation"])
def test_a_number_of_the_env_that_is_none_stops_the_run_by_name(whole, tmp_path, key):
    write_policy(tmp_path)
    script = tmp_path / "broken.py"
    script.write_text(BROKEN, encoding="utf-8")
    command = [sys.executable, str(script), key, str(ROOT / "examples" / "reinflow.py")]
    command += ["--policy", str(tmp_path / "bc"), *SMALL, "--runs", str(tmp_path / "runs"), "--name", "a"]
    command += ["--results", str(tmp_path / "results.csv"), "--save-every", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert f"next.{key}" in done.stderr
    assert "row 2" in done.stderr
    checkpoint = load_checkpoint(tmp_path / "runs" / "a")
    assert checkpoint.step == 3
    for role in checkpoint.roles:
        tensors = checkpoint.state_dict(role).values()
        assert not any(torch.isnan(value).any() for value in tensors if value.is_floating_point())
    assert not (tmp_path / "results.csv").exists()
    assert not (tmp_path / "runs" / "a" / "evaluation.json").exists()
