"""Training with Ray workers: a worker is killed, a run is stopped and resumed, several learners share a batch."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from examples import awsc_online
from tests.examples.test_awsc import finish, has_checkpoint, start
from torchrl_flow.demos import DemoSource
from torchrl_flow.runs import load_checkpoint, read_metrics

pytest.importorskip("ray")

BC = ["--task", "planar", "--num-demos", "4", "--iterations", "3", "--width", "16", "--depth", "1"]
BC += ["--batch-size", "16"]
BC += ["--pred-horizon", "8", "--act-horizon", "4", "--num-steps", "1", "--compare-steps", "--name", "bc"]
AW = ["--policy", "runs/bc", "--name", "aw", "--iterations", "2", "--critic-warmup", "1"]
AW += ["--critic-hidden", "16", "--num-qs", "2"]
SMALL = ["--eval-episodes", "2", "--num-videos", "0", "--results", "r.csv"]
CHUNKS = 4
"""Chunks of a rollout of one worker."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    finish(start(folder, "shortcut_flow_bc.py", *BC, *SMALL))
    finish(start(folder, "aw_shortcut_flow_offline.py", *AW, "--batch-size", "16", *SMALL))
    return folder


def options(name, steps, *more):
    given = ["--policy", "runs/aw", "--num-envs", str(CHUNKS), "--chunks", str(CHUNKS * steps), "--batch-size", "16"]
    return [*given, "--eval-every", "0", "--save-every", "1", "--name", name, *SMALL, *more]


def online_rows(run):
    """The chunks that a run has stored, and how often it has written one."""
    checkpoint = load_checkpoint(run)
    config = {key: value for key, value in checkpoint.config.items() if key in awsc_online.Args.__dataclass_fields__}
    args = awsc_online.Args(**config)
    buffer = awsc_online.make_buffer(args, checkpoint, DemoSource.of_checkpoint(checkpoint, args.demos))
    checkpoint.restore(state={"buffer": buffer})
    return buffer[buffer.num_demo_rows :], buffer.write_count


def require_stored(run, steps):
    """Everything that was delivered is stored, once: each step stored one rollout, and counted its steps."""
    checkpoint = load_checkpoint(run)
    rows, written = online_rows(run)
    assert checkpoint.step == steps
    assert written == len(rows) == CHUNKS * steps == CHUNKS * checkpoint._read("state", "rollouts")["collected"]
    assert int(rows["next", "steps_to_next_obs"].sum()) == checkpoint.counters["env_steps"]
    assert len(rows["action_chunk"].reshape(len(rows), -1).unique(dim=0)) == len(rows)
    env_steps = list(read_metrics(run / "metrics.csv")["train/env_steps"][1])
    assert len(env_steps) == steps
    assert all(0 < after - before <= 4 * CHUNKS for before, after in itertools.pairwise([0, *env_steps]))


def workers_below(pid):
    """Processes of Ray workers that this process has started, directly or not."""
    found, todo = [], [pid]
    while todo:
        for child in children_of(todo.pop()):
            todo.append(child)
            try:
                if b"ray::_Collector" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
            except OSError:
                continue
    return found


def children_of(pid):
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


def wait_until(process, ready):
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_nothing_stored_is_lost(folder):
    run, steps = folder / "runs" / "killed", 60
    process = start(folder, "awsc_distributed.py", *options("killed", steps))
    wait_until(process, lambda: has_checkpoint(run, 3) and len(workers_below(process.pid)) == 2)
    os.kill(workers_below(process.pid)[0], signal.SIGKILL)
    out = finish(process)
    assert "has ended; a new one takes its place (1 so far)" in out
    assert "Traceback" not in out
    require_stored(run, steps)
    replaced = list(read_metrics(run / "metrics.csv")["train/replaced_workers"][1])
    assert len(replaced) == steps
    assert replaced[0] == 0
    assert replaced[-1] == 1
    assert (run / "report.html").exists()


@pytest.mark.slow
def test_a_stopped_run_is_resumed_with_new_workers(folder):
    run = folder / "runs" / "stopped"
    process = start(folder, "awsc_distributed.py", *options("stopped", 2000))
    wait_until(process, lambda: has_checkpoint(run, 3))
    workers = workers_below(process.pid)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, out
    assert "Traceback" not in out
    wait_until_gone(workers)
    step = load_checkpoint(run).step
    require_stored(run, step)
    before = load_checkpoint(run).state_dict("policy")
    finish(start(folder, "awsc_distributed.py", *options("stopped", step + 3, "--resume")))
    # The ring is as long as the run: a shorter one than that of before holds the same rows.
    require_stored(run, step + 3)
    after = load_checkpoint(run).state_dict("policy")
    assert any(not torch.equal(after[name], before[name]) for name in before)


def wait_until_gone(pids):
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


@pytest.mark.slow
def test_several_learners_share_each_batch(folder):
    run = folder / "runs" / "learners"
    finish(start(folder, "awsc_distributed.py", *options("learners", 5, "--workers", "1", "--learners", "2")))
    require_stored(run, 5)
    assert load_checkpoint(run)._read("state", "stepper")["num_updates"] == 5 * CHUNKS


@pytest.mark.slow
def test_reinflow_collects_with_ray_workers_and_replaces_a_killed_one(folder):
    given = [
        "--policy",
        "runs/bc",
        "--num-envs",
        "4",
        "--rollout-steps",
        "2",
        "--minibatch-size",
        "8",
        "--num-steps",
        "2",
    ]
    given += ["--total-env-steps", str(40 * 2 * 4 * 2 * 4), "--eval-every", "0", "--save-every", "1", "--name", "ppo"]
    process = start(folder, "reinflow.py", *given, *SMALL, "--ray-workers", "2")
    run = folder / "runs" / "ppo"
    wait_until(process, lambda: has_checkpoint(run, 3) and len(workers_below(process.pid)) == 2)
    os.kill(workers_below(process.pid)[0], signal.SIGKILL)
    finish(process)
    metrics = read_metrics(run / "metrics.csv")
    assert metrics["train/replaced_workers"][1][-1] == 1
    # An iteration is whole, the one of the killed worker too: 64 steps but for those that end an episode.
    env_steps = list(metrics["train/env_steps"][1])
    assert len(env_steps) == 40
    assert all(0 < after - before <= 64 for before, after in itertools.pairwise([0, *env_steps]))
    assert max(after - before for before, after in itertools.pairwise(env_steps)) == 64
