"""The online recipes with ``--collectors 2``: they train, stop and resume, and name a process that has died."""

from __future__ import annotations

import functools
import itertools
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.examples.test_reinflow import ENVIRONMENT, ROOT, SMALL, write_policy
from torchrl_flow.runs import load_checkpoint, read_metrics

SHORT = {"runs": "runs", "results": "r.csv", "eval_episodes": 2, "num_videos": 0, "num_envs": 4, "collectors": 2}
SIZES = {"policy": "runs/bc", "hidden_sizes": (16, 16), "rollout": 2, "iterations": 3, "eval_every": 0}
NA = {**SIZES, "batch_size": 16, "policy_delay": 1, "warm_up": 1, "na": True}
STAGE_3 = {"policy": "runs/aw", "chunks": 24, "batch_size": 16, "act_best_of": 2, "eval_every": 0}


def play(script, **options):
    example = runpy.run_path(str(ROOT / "examples" / f"{script}.py"))
    example["main"](example["Args"](**{**SHORT, **options}))
    return Path("runs") / options["name"]


@pytest.fixture(scope="module", autouse=True)
def bc(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("collectors"), Path.cwd()
    os.chdir(folder)
    sizes = {"width": 16, "depth": 1, "pred_horizon": 8, "act_horizon": 4, "obs_horizon": 2}
    example = runpy.run_path(str(ROOT / "examples" / "shortcut_flow_bc.py"))
    options = {"num_demos": 4, "iterations": 3, "batch_size": 16, "num_steps": 1, "compare_steps": (), **sizes}
    options |= {"runs": "runs", "results": "r.csv", "eval_episodes": 2, "num_videos": 0}
    example["main"](example["Args"](task="planar", name="bc", **options))
    yield
    os.chdir(before)


def weights(run):
    checkpoint = load_checkpoint(run)
    return {(role, name): value for role in checkpoint.roles for name, value in checkpoint.state_dict(role).items()}


def test_dsrl_sac_collects_in_two_processes():
    run = play("dsrl_sac_online", **NA, name="na")
    checkpoint = load_checkpoint(run)
    assert checkpoint.step == 3
    # Three rollouts of 2 processes, 4 environments, 2 chunks of 4 steps, but for those that end an episode.
    assert 0 < checkpoint.counters["env_steps"] <= 3 * 2 * 4 * 2 * 4
    replayed = checkpoint._read("state", "replay")["rows"]["action"]
    assert replayed.shape == (3 * 2 * 4 * 2, 4, 3)
    assert checkpoint._read("state", "rollouts") == {"collected": 3}
    assert read_metrics(run / "metrics.csv")["train/env_steps"][0][-1] == 3


@pytest.mark.slow
@pytest.mark.parametrize(("script", "options"), [("dsrl_ppo", {**SIZES, "minibatch": 16}), ("dsrl_sac_online", NA)])
def test_two_runs_are_equal_and_a_resumed_one_goes_on(script, options):
    runs = [play(script, **options, name=f"{script}-{number}") for number in range(2)]
    one, other = map(weights, runs)
    assert all(torch.equal(one[key], other[key]) for key in one)
    longer = play(script, **{**options, "iterations": 5}, name=f"{script}-0", resume=True)
    assert load_checkpoint(longer).step == 5
    assert load_checkpoint(longer).counters["env_steps"] > load_checkpoint(runs[1]).counters["env_steps"]
    assert any(not torch.equal(value, one[key]) for key, value in weights(longer).items())


@pytest.mark.slow
def test_awsc_collects_in_two_processes():
    stage_2 = runpy.run_path(str(ROOT / "examples" / "aw_shortcut_flow_offline.py"))
    options = {"runs": "runs", "results": "r.csv", "eval_episodes": 2, "num_videos": 0, "batch_size": 16}
    stage_2["main"](stage_2["Args"](policy="runs/bc", name="aw", iterations=2, critic_hidden=(16,), **options))
    # A batch of 2 processes with 4 environments is 8 chunks; that of one process is 4 chunks.
    for sync, steps in ((True, 3), (False, 6)):
        run = play("awsc_online", **STAGE_3, name=f"awsc-{sync}", collector_sync=sync)
        assert load_checkpoint(run).step == steps
        assert load_checkpoint(run).counters["env_steps"] <= 24 * 4


def test_dsrl_sac_collects_asynchronously_and_counts_every_step(tmp_path):
    run = play("dsrl_sac_online", **{**NA, "iterations": 4}, name="async", collector_sync=False)
    checkpoint = load_checkpoint(run)
    # An iteration is the rollout of one process: 4 environments, 2 chunks.
    rows = checkpoint._read("state", "replay")["rows"]
    assert rows["action"].shape == (4 * 4 * 2, 4, 3)
    assert checkpoint.counters["env_steps"] == int(rows["next.steps_to_next_obs"].sum())
    assert checkpoint._read("state", "rollouts") == {"collected": 4}
    longer = play("dsrl_sac_online", **{**NA, "iterations": 6}, name="async", collector_sync=False, resume=True)
    assert load_checkpoint(longer)._read("state", "rollouts") == {"collected": 6}


@pytest.mark.parametrize(("script", "options"), [("dsrl_ppo", SIZES), ("reinflow", {"policy": "runs/bc"})])
def test_recipes_of_ppo_refuse_chunks_of_older_weights(script, options):
    with pytest.raises(SystemExit, match="--no-collector-sync is for off-policy recipes"):
        play(script, **options, name="refused", collector_sync=False)
    assert not Path("runs/refused").exists()


def test_a_simulation_on_a_gpu_is_collected_from_in_one_process(monkeypatch):
    from torchrl_flow.policies.training_env import _cpu_backend

    with pytest.raises(SystemExit, match=r"--collectors 2 simulates on the CPU: leave out --sim-backend physx_cuda"):
        _cpu_backend("PickCube-v1", "physx_cuda", "--collectors 2")
    assert _cpu_backend("PickCube-v1", None, "--collectors 2") == "physx_cpu"
    with pytest.raises(SystemExit, match="--sim-backend physx_cpu applies only to ManiSkill"):
        play("dsrl_ppo", **SIZES, name="refused", sim_backend="physx_cpu")
    with pytest.raises(SystemExit, match="--collectors must be at least 1, got 0"):
        play("dsrl_ppo", **SIZES, name="refused", **{"collectors": 0})
    assert not Path("runs/refused").exists()


REINFLOW = [*SMALL, "--total-env-steps", "64000"]


def start(folder, *options, script="reinflow", given=REINFLOW):
    command = [sys.executable, str(ROOT / "examples" / f"{script}.py"), "--policy", str(folder / "bc"), *given]
    command += ["--runs", str(folder / "runs"), "--results", str(folder / "results.csv"), "--name", "a"]
    command += ["--collectors", "2", "--save-every", "1", "--eval-every", "0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, start_new_session=True, **pipes)


def collectors_of(process):
    """The collector processes that a recipe has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for_step(process, run, step):
    while not any(int(file.stem.split("-")[1]) >= step for file in run.glob("checkpoints/checkpoint-*.torchrl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_reinflow_is_stopped_named_its_dead_process_and_resumed(tmp_path):
    write_policy(tmp_path)
    run = tmp_path / "runs" / "a"
    process = start(tmp_path)
    wait_for_step(process, run, 2)
    pids = collectors_of(process)
    assert len(pids) == 2
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the collectors too
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, out
    assert "Traceback" not in out
    assert "leaked" not in out  # no semaphore and no shared memory is left behind
    stopped = load_checkpoint(run)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    process = start(tmp_path, "--resume")
    wait_for_step(process, run, stopped.step + 2)
    os.kill(collectors_of(process)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    *_, last = out.strip().splitlines()
    assert "collector process 1 of 2 has ended (killed by SIGKILL)" in last
    assert "--resume" in last
    assert "Traceback" not in out
    step = load_checkpoint(run).step
    assert step > stopped.step

    shorter = start(tmp_path, "--resume", "--total-env-steps", str(2 * 8 * 5 * 8 * (step + 2)))
    out, _ = shorter.communicate(timeout=240)
    assert shorter.returncode == 0, out
    finished = load_checkpoint(run)
    assert finished.step == step + 2
    steps, env_steps = read_metrics(run / "metrics.csv")["train/env_steps"]
    assert list(steps) == list(range(1, step + 3))
    assert all(after > before for before, after in itertools.pairwise(env_steps))


def test_asynchronous_collection_is_stopped_named_its_dead_process_and_resumed(tmp_path):
    write_policy(tmp_path)
    run = tmp_path / "runs" / "a"
    sizes = [
        "--hidden-sizes",
        "16",
        "16",
        "--rollout",
        "5",
        "--num-envs",
        "8",
        "--eval-episodes",
        "2",
        "--warm-up",
        "1",
    ]
    sizes += ["--batch-size", "16", "--policy-delay", "1", "--iterations", "2000", "--no-collector-sync"]
    begin = functools.partial(start, tmp_path, script="dsrl_sac_online", given=sizes)
    process = begin()
    wait_for_step(process, run, 2)
    pids = collectors_of(process)
    assert len(pids) == 2
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, out
    assert "Traceback" not in out
    assert "leaked" not in out  # no semaphore and no shared memory is left behind
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    stopped = load_checkpoint(run)

    process = begin("--resume")
    wait_for_step(process, run, stopped.step + 2)
    os.kill(collectors_of(process)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    *_, last = out.strip().splitlines()
    assert "collector process 1 of 2 has ended (killed by SIGKILL)" in last
    assert "Traceback" not in out
    step = load_checkpoint(run).step

    process = begin("--resume", "--iterations", str(step + 2))
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "leaked" not in out
    assert load_checkpoint(run).step == step + 2
