"""Tasks of other packages, where those are installed: what policies see, and that the demonstrations show the task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import make_task_env, task_info


class TestFetch:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("gymnasium_robotics")

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
        pytest.importorskip("gym_pusht")

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
