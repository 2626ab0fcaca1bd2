"""Tasks of other packages, where those are installed: what policies see, and that the demonstrations show the task.

``pip install -e '.[outside]'`` installs them. Where the environment variable ``REQUIRE_OUTSIDE`` is set, a
missing package is a failure.
"""

from __future__ import annotations

import csv
import importlib
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_flow.data import DemoStore
from torchrl_flow.envs import make_task_env, task_info
from torchrl_flow.envs.own import TRUSTED
from torchrl_flow.evaluation import evaluate
from torchrl_flow.policies import checkpoint_env, load_acting_policy
from torchrl_flow.runs import load_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


def play(script, **options):
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    example["main"](example["Args"](**options))
    return Path("runs") / options["name"]


def require(package):
    if os.environ.get("REQUIRE_OUTSIDE"):
        importlib.import_module(package)
    pytest.importorskip(package)


class TestFetch:
    @pytest.fixture(autouse=True)
    def package(self):
        require("gymnasium_robotics")

    def test_the_expert_brings_the_cube_to_the_goal(self):
        from benchmarks.fetch import STEPS, episodes

        (episode,) = episodes(1, noise=0.0)
        assert episode["observation"].shape == (STEPS + 1, 28)
        assert episode["action"].shape == (STEPS, 4)
        assert not episode["success"][0]
        assert episode["success"][-1]
        distance = np.linalg.norm(episode["observation"][:, 3:6] - episode["observation"][:, 25:28], axis=-1)
        assert distance[-1] < 0.05 < distance[0]
        assert np.array_equal(episode["reward"] > 0, episode["success"])

    def test_it_is_a_task_of_the_recipes(self):
        env = make_task_env("benchmarks.fetch:make_env")
        check_env_specs(env)
        assert task_info(env)["name"] == "FetchPickAndPlace-v4"
        data = env.rollout(60, break_when_any_done=True)
        assert data["next", "truncated"].sum() == 1
        assert len(data) == 50


class TestPushT:
    @pytest.fixture(autouse=True)
    def package(self):
        require("gym_pusht")

    def test_a_simulated_push_is_what_the_environment_does(self):
        from benchmarks.push_t import corners, make_gym, push, simulated

        env, scratch, rng = make_gym(), make_gym(), np.random.default_rng(3)
        env.reset(seed=4)
        scratch.reset(seed=0)
        moved = 0.0
        for _ in range(4):
            targets = push(env.unwrapped, rng)
            before = corners(env.unwrapped.block)
            foreseen = simulated(scratch.unwrapped, env.unwrapped, targets)
            for target in targets:
                env.step(target / 256 - 1)
            found = corners(env.unwrapped.block)
            moved += np.linalg.norm(found - before, axis=-1).mean()
            assert np.linalg.norm(found - foreseen, axis=-1).max() < 5
        assert moved > 20

    def test_a_plan_brings_the_block_closer(self):
        from benchmarks.push_t import episodes

        (episode,) = episodes(1, noise=0.0, pushes=20)
        assert episode["observation"].shape[-1] == 20
        assert episode["reward"][-20:].mean() > episode["reward"][:20].mean() + 0.2

    def test_it_is_a_task_of_the_recipes(self):
        env = make_task_env("benchmarks.push_t:make_env")
        check_env_specs(env)
        assert task_info(env)["name"] == "gym_pusht/PushT-v0"
        data = env.rollout(5)
        assert data["observation"].abs().max() <= 3
        assert data["action"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "recording"),
    [("fetch", "gymnasium_robotics", {"noise": 0.1}), ("push_t", "gym_pusht", {"noise": 0.1, "pushes": 2})],
)
def test_a_clone_is_fine_tuned_online_and_evaluated(name, package, recording, tmp_path, monkeypatch):
    """The commands of docs/tutorials/outside_tasks.md, as small as they run."""
    require(package)
    module, task = importlib.import_module(f"benchmarks.{name}"), f"benchmarks.{name}:make_env"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUSTED, task)
    DemoStore.from_episodes(module.episodes(2, **recording), "demos", task_info=module.TASK)
    short = {"results": "r.csv", "eval_episodes": 1, "num_videos": 0}
    sizes = {"width": 16, "depth": 1, "pred_horizon": 8, "act_horizon": 8, "num_steps": 1, "compare_steps": ()}
    options = {"task": task, "demos": "demos", "iterations": 3, "batch_size": 16, **sizes, **short}
    play("shortcut_flow_bc", name="bc", **options)
    options = {"num_envs": 2, "rollout": 2, "iterations": 2, "minibatch": 4, "hidden_sizes": (8,), "eval_every": 0}
    run = play("dsrl_ppo", name="ppo", policy="runs/bc", **options, **short)
    checkpoint = load_checkpoint(run)
    assert checkpoint.task.task == task
    assert checkpoint.counters["env_steps"] == 2 * 2 * 2 * 8
    policy, _ = load_acting_policy(checkpoint)
    result = evaluate(checkpoint_env(checkpoint), policy, [0], progress=False)
    assert result.episodes == 1
    assert result.success_once is not None
    with open("r.csv", encoding="utf-8") as file:
        assert {row["task"] for row in csv.DictReader(file)} == {task}
