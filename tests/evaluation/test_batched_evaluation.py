"""Evaluation of ManiSkill's tasks gives the same episodes for any number of environments, grasps included."""

from __future__ import annotations

import pytest
import torch

from tests.envs.scripted_pick import pick_cube_action
from torchrl_flow.envs import ManiSkillEnv, default_num_envs, filming_env, make_chunk_env, make_evaluation_env
from torchrl_flow.envs.maniskill.requirements import maniskill_installed
from torchrl_flow.evaluation import evaluate

needs_maniskill = pytest.mark.skipif(not maniskill_installed(), reason="needs ManiSkill")


def policy(td):
    action = pick_cube_action(td["observation"][..., -1, :])
    return td.set("action", action.unsqueeze(-2).expand(*action.shape[:-1], 4, 7).clone())


def played(num_envs: int | None, seeds: list[int], steps: int = 36):
    options = {"ignore_terminations": True, "max_episode_steps": steps, "seed": 0}
    base = ManiSkillEnv("PickCube-v1", num_envs=num_envs, **options)
    env = make_chunk_env(base, obs_horizon=2, act_horizon=4, gamma=0.99)
    result = evaluate(env, policy, seeds, progress=False)
    columns = zip(result.returns, result.success_once, result.success_at_end, result.lengths, strict=True)
    return dict(zip(seeds, [tuple(float(v) for v in row) for row in columns], strict=True))


@needs_maniskill
def test_any_number_and_order_of_environments_plays_the_same_episodes():
    seeds = [10_000, 10_001, 10_002, 10_003, 10_004]
    one = played(None, seeds)
    assert any(once for _, once, _, _ in one.values()), "nothing is grasped: it must be in contact"
    assert played(3, seeds) == one
    assert played(5, seeds[::-1]) == one


@needs_maniskill
@pytest.mark.slow
def test_fifty_episodes_for_1_8_and_50_environments():
    seeds = list(range(10_000, 10_050))
    one = played(1, seeds, steps=60)
    assert played(8, seeds, steps=60) == one
    assert played(50, seeds, steps=60) == one
    assert torch.tensor([row[1] for row in one.values()]).mean() > 0.8


def test_the_default_number_divides_the_episodes():
    assert [default_num_envs("PickCube-v1", episodes=n, visuals=False) for n in (100, 50, 30, 7)] == [25, 25, 15, 7]
    assert default_num_envs("PickCube-v1", "rgb", episodes=100) is None
    assert default_num_envs("PickCube-v1", visuals=True) is None


@needs_maniskill
def test_a_task_that_cannot_be_batched_is_evaluated_alone():
    env = make_evaluation_env(
        "MS-HopperHop-v1", obs_horizon=1, act_horizon=1, gamma=0.99, visuals=False, reward_mode="none",
        control_mode="pd_joint_delta_pos", max_episode_steps=5,
    )  # fmt: skip
    assert env.batch_size == ()


@needs_maniskill
@pytest.mark.rgb
def test_a_batch_is_filmed_by_a_single_environment_with_equal_episodes():
    options = {"obs_horizon": 2, "act_horizon": 4, "gamma": 0.99, "max_episode_steps": 36}
    env = make_evaluation_env("PickCube-v1", episodes=50, **options)
    assert env.batch_size == (25,), "a machine that renders evaluates in a batch too"
    with filming_env(env) as films:
        assert films.batch_size == ()
        assert films.base_env.has_visuals
        filmed = evaluate(films, policy, [10_000, 10_001], num_videos=2, progress=False)
    assert len(filmed.videos) == 2
    assert filmed.videos[0].std() > 10, "nothing is to be seen"
    batch = evaluate(env, policy, range(10_000, 10_025), progress=False)
    assert torch.equal(torch.as_tensor(batch.returns[:2]), torch.as_tensor(filmed.returns))


@needs_maniskill
def test_an_environment_that_films_for_itself_is_left_alone(monkeypatch):
    options = {"obs_horizon": 2, "act_horizon": 4, "gamma": 0.99}
    with filming_env(make_evaluation_env("planar", **options)) as films:
        assert films.batch_size == (50,)
    monkeypatch.setattr("torchrl_flow.envs.tasks.maniskill_renders", lambda: False)
    env = make_evaluation_env("PickCube-v1", num_envs=2, **options)
    with filming_env(env) as films:
        assert films is env, "without a renderer the batch draws the poses"
