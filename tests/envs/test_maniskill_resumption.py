"""A ManiSkill environment goes on in the middle of its episodes, in contact, as if it had not been stopped."""

from __future__ import annotations

import io

import pytest
import torch

from tests.envs.scripted_pick import pick_cube_action
from torchrl_flow.envs import ManiSkillEnv, make_chunk_env
from torchrl_flow.envs.maniskill.replay import EpisodeLog
from torchrl_flow.envs.maniskill.requirements import maniskill_installed
from torchrl_flow.training import ChunkRollouts

needs_maniskill = pytest.mark.skipif(not maniskill_installed(), reason="needs ManiSkill")


def test_the_log_keeps_what_running_episodes_need_and_nothing_more():
    log = EpisodeLog(2)
    log.reset(None, {"seed": 0})
    for value in range(4):
        log.step(torch.full((2, 1), float(value)))
        if value == 1:
            log.reset([1], {"seed": 1})
    assert len(log.state_dict()["actions"]) == 4
    log.reset([0], {"seed": 2})
    state = log.state_dict()
    assert [entry["arguments"]["seed"] for entry in state["resets"]] == [1, 2]
    assert [entry["step"] for entry in state["resets"]] == [0, 2]
    assert state["actions"].flatten().tolist() == [2, 2, 3, 3]
    played = []
    other = EpisodeLog(2)
    other.load_state_dict(state)
    other.play(lambda rows, arguments: played.append((rows, arguments["seed"])), lambda a: played.append(float(a[0])))
    assert played == [([1], 1), 2.0, 3.0, ([0], 2)]


def rollouts(num_envs: int | None) -> ChunkRollouts:
    base = ManiSkillEnv("PickCube-v1", num_envs=num_envs, max_episode_steps=26, seed=3, visuals=None)

    def policy(td):
        action = pick_cube_action(td["observation"][..., -1, :])
        return td.set("action", action.unsqueeze(-2).expand(*action.shape[:-1], 3, 7).clone())

    return ChunkRollouts(make_chunk_env(base, obs_horizon=2, act_horizon=3, gamma=0.9), policy, 3, seed=3)


@needs_maniskill
@pytest.mark.parametrize("num_envs", [None, 3])
def test_rollouts_go_on_bit_for_bit(num_envs):
    first = rollouts(num_envs)
    for _ in range(4):  # past the first resets, some of them of one sub-environment alone
        first.collect()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    expected = [first.collect() for _ in range(3)]
    assert expected[0]["next", "observation"][..., 18].any(), "nothing is grasped: it must be in contact"
    file.seek(0)
    second = rollouts(num_envs)
    second.load_state_dict(torch.load(file, weights_only=True))
    for wanted in expected:
        found = second.collect()
        for key in wanted.keys(True, True):
            assert torch.equal(found[key], wanted[key]), key


@needs_maniskill
def test_what_cannot_be_told_is_not_kept():
    env = ManiSkillEnv("PickCube-v1", clean_resets=False, seed=0)
    env.reset()
    assert not env.supports_resumption
    assert env.state_dict() == {}
