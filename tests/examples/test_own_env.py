"""Recipes in environments of the user's own: ``--task my_package:make_env``."""

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
from torchrl.checkpoint import CheckpointError

from tests.examples import own_env
from torchrl_flow.data import DataError, DemoStore
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import make_chunk_env, make_evaluation_env, make_task_env, task_info
from torchrl_flow.envs.own import TRUSTED, trusted_tasks
from torchrl_flow.evaluation import evaluate
from torchrl_flow.options.names import _Task
from torchrl_flow.policies import checkpoint_env
from torchrl_flow.runs import load_checkpoint

ROOT = Path(__file__).parents[2]
REACH = "tests.examples.own_env:make_reach"
PLAIN = "tests.examples.own_env:make_plain"


def own(name):
    return f"tests.examples.own_env:{name}"


@pytest.fixture(autouse=True)
def none_is_trusted(monkeypatch):
    monkeypatch.delenv(TRUSTED, raising=False)


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "demos"
    DemoStore.from_episodes(map(own_env.demonstrate, range(12)), path, task_info={"task": "reach"})
    return path


def chunk_env(task, **options):
    return make_evaluation_env(task, obs_horizon=2, act_horizon=4, gamma=0.99, **options)


class TestEnvironment:
    def test_identity_of_a_task_without_one(self):
        info = task_info(chunk_env(REACH))
        sizes = {"state_dim": 4, "pixels_size": None, "action_dim": 2}
        wanted = {"task": REACH, "name": None, "control_mode": None, "obs_mode": "state", "max_episode_steps": None}
        assert info == {**wanted, "reward_mode": None, **sizes}

    def test_identity_of_a_task_with_one(self):
        info = task_info(chunk_env(own("make_named")))
        assert (info["task"], info["name"], info["control_mode"]) == (own("make_named"), "reach", "velocity")

    def test_several_environments_and_a_time_limit(self):
        env = chunk_env(REACH, num_envs=3, max_episode_steps=8)
        result = evaluate(env, env.rand_action, range(3), progress=False)
        assert env.batch_size == (3,)
        assert result.lengths.max() == 8
        alone = chunk_env(PLAIN, max_episode_steps=6)  # its function takes no limit
        assert evaluate(alone, alone.rand_action, range(2), progress=False).lengths.tolist() == [6, 6]

    def test_results_are_those_of_the_seeds_for_any_number(self):
        def act(data):
            return data.set("action", torch.full((*data.batch_size, 4, 2), 0.5))

        found = [
            evaluate(chunk_env(REACH, num_envs=n), act, range(6), progress=False).returns.tolist() for n in (None, 3)
        ]
        assert found[0] == found[1]

    def test_without_success(self):
        result = evaluate(env := chunk_env(PLAIN), env.rand_action, range(2), progress=False)
        assert result.success_once is None
        assert "success" not in result.summary()

    def test_it_is_trusted_once_it_was_named(self):
        assert not trusted_tasks()
        make_task_env(REACH)
        assert trusted_tasks() == {REACH}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "make_float64",
                r"'observation' of .*make_float64 is float64, and networks are float32: convert it with .*Do",
            ),
            (
                "make_unjoined",
                r"gives no 'observation'.*it gives \['goal', 'position'\]. Join entries with .*CatTensors",
            ),
            ("make_discrete", r"actions of .*make_discrete must be a bounded float32 vector, got .* discrete actions"),
            ("make_gym", r"make_gym returned a Reach: return an environment of TorchRL, such as .*GymEnv"),
            ("make_nothing", r"tests.examples.own_env has no function make_nothing; it has \["),
        ],
    )
    def test_what_does_not_fit_is_named(self, name, message):
        with pytest.raises(ValueError, match=message):
            make_task_env(own(name))

    def test_a_name_that_is_none(self):
        with pytest.raises(ValueError, match="the module no_such_package cannot be imported"):
            make_task_env("no_such_package:make_env")
        with pytest.raises(
            ValueError, match=r"must have the form module:function, such as my_package.envs:make_env, got 'a b:c'"
        ):
            make_task_env("a b:c")

    def test_float64_in_an_env_made_by_hand(self):
        with pytest.raises(ValueError, match=r"is float64, and networks are float32: convert it with .*DoubleToFloat"):
            make_chunk_env(own_env.make_float64(), obs_horizon=1, act_horizon=2, gamma=0.99)

    def test_frames_need_a_render_mode(self):
        env = chunk_env(PLAIN)
        with pytest.raises(RuntimeError, match="returned no image: make the environment with render_mode='rgb_array'"):
            evaluate(env, env.rand_action, range(1), num_videos=1, progress=False)
        env = chunk_env(own("make_filmed"))
        (video,) = evaluate(env, env.rand_action, range(1), num_videos=1, progress=False).videos
        assert video.shape == (16, 32, 32, 3)


class TestOptions:
    def test_task_names(self):
        assert _Task().problem(REACH, None) is None
        assert "has no function make_nothing" in _Task().problem(own("make_nothing"), None)
        assert "cannot be imported" in _Task().problem("no_such_package:make_env", None)

    def test_demonstrations_of_the_same_name(self, demos):
        options = {"pred_horizon": 4, "act_horizon": 4, "obs_horizon": 1, "batch_size": 8}
        assert len(DemoSource(str(demos)).load(task_info(chunk_env(own("make_named"))), **options)) > 50
        with pytest.raises(DataError, match=r"task: demonstrations 'reach', here 'tests.examples.own_env:make_reach'"):
            DemoSource(str(demos)).load(task_info(chunk_env(REACH)), **options)
        with pytest.raises(DataError, match=r"demonstrations of tests.examples.own_env:make_reach cannot be made"):
            DemoSource().load(task_info(chunk_env(REACH)), **options)


def run(folder, script, *options, trusted=None, fails=False):
    command = [sys.executable, str(ROOT / f"examples/{script}.py"), "--runs", str(folder / "runs"), "--num-videos", "2"]
    command += ["--results", str(folder / "results.csv"), "--eval-episodes", "2", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    environment |= {} if trusted is None else {TRUSTED: trusted}
    pipes = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, cwd=folder, env=environment, timeout=240, **pipes)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


CLONE = ["--iterations", 20, "--width", 16, "--depth", 1, "--batch-size", 16, "--pred-horizon", 4, "--act-horizon", 4]
CLONE += ["--compare-steps", 1, "--eval-every", 10]


class TestRecipes:
    @pytest.fixture(scope="class")
    def store(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("recipes") / "demos"
        DemoStore.from_episodes(map(own_env.demonstrate, range(12)), path)
        return path

    def test_cloning_without_success(self, store, tmp_path):
        out = run(tmp_path, "shortcut_flow_bc", "--task", PLAIN, "--demos", store, *CLONE)
        assert "2 episodes, return" in out
        name = "shortcut_flow_bc-tests.examples.own_env.make_plain-state-0"
        assert load_checkpoint(tmp_path / "runs" / name).task["task"] == PLAIN
        with (tmp_path / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["success_once"] for row in rows} == {""}
        assert {row["task"] for row in rows} == {PLAIN}

    def test_cloning_then_reinflow(self, store, tmp_path):
        out = run(tmp_path, "shortcut_flow_bc", "--task", REACH, "--demos", store, "--name", "bc", *CLONE)
        assert "success_once" in out
        tiny = ["--policy", tmp_path / "runs/bc", "--name", "reinflow", "--num-envs", 2, "--total-env-steps", 64]
        tiny += ["--rollout-steps", 4, "--minibatch-size", 4]
        refused = run(tmp_path, "reinflow", *tiny, fails=True)
        assert f"If you trust it, set {TRUSTED}={REACH}" in refused
        assert "success_once" in run(tmp_path, "reinflow", *tiny, trusted=REACH)
        checkpoint = load_checkpoint(tmp_path / "runs/bc")
        with pytest.raises(CheckpointError, match="code is not in the file"):
            checkpoint_env(checkpoint)
        assert checkpoint_env(checkpoint, task=REACH).batch_size == ()

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
    def test_a_killed_worker_of_a_parallel_env_is_named_and_the_run_resumed(self, store, tmp_path):
        task = own("make_parallel")
        run(tmp_path, "shortcut_flow_bc", "--task", task, "--demos", store, "--name", "bc", *CLONE, "--num-videos", 0)
        options = [
            "--policy",
            tmp_path / "runs/bc",
            "--name",
            "a",
            "--num-videos",
            0,
            "--num-envs",
            2,
            "--rollout-steps",
            4,
        ]
        options += ["--minibatch-size", 4, "--save-every", 1, "--eval-every", 0]
        command = [sys.executable, ROOT / "examples/reinflow.py", "--runs", tmp_path / "runs", *options]
        command += ["--results", tmp_path / "results.csv", "--eval-episodes", 2]
        command += ["--total-env-steps", 640_000]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", TRUSTED: task}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=environment, **pipes)
        saved = tmp_path / "runs" / "a" / "checkpoints"
        while not list(saved.glob("checkpoint-*.torchrl")):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [
            pid for pid in map(int, below) if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        # Two of the environment for training, then two of that for evaluation.
        os.kill(sorted(workers)[0], signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 1, out
        last = [line for line in out.splitlines() if "has ended" in line]
        assert len(last) == 1, out
        assert "of the 2 of the ParallelEnv has ended (killed by SIGKILL)" in last[0]
        assert "--resume" in last[0]
        assert "Cannot proceed" not in out  # TorchRL's own error, in a traceback
        step = load_checkpoint(tmp_path / "runs" / "a").step
        more = ["--total-env-steps", 2 * 4 * 4 * (step + 2), "--resume"]
        run(tmp_path, "reinflow", *options, *more, trusted=task)
        assert load_checkpoint(tmp_path / "runs" / "a").step == step + 2

    def test_demonstrations_are_asked_for(self, tmp_path):
        out = run(tmp_path, "shortcut_flow_bc", "--task", REACH, *CLONE, fails=True)
        assert f"--demos is missing: demonstrations of {REACH} cannot be made automatically" in out
