"""Values against returns, in an environment whose returns are known."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.evaluation import values_and_returns, values_within_states
from torchrl_flow.evaluation.chunk_values import _within_state_figures
from torchrl_flow.modules import FlowActorConfig, make_flow_actor


def make_actor():
    torch.manual_seed(0)
    sizes = {"action_dim": 3, "state_dim": 12, "obs_horizon": 1, "pred_horizon": 4, "act_horizon": 4}
    return make_flow_actor(FlowActorConfig(**sizes, width=8, depth=1, num_steps=1))


def make_env(num_envs):
    env = PlanarPickPlaceEnv(num_envs, max_episode_steps=8, ignore_terminations=True)
    return make_chunk_env(env, obs_horizon=1, act_horizon=4, gamma=0.5)


class RewardOfOne:
    """Gives a chunk environment the reward 1 for each chunk."""

    def __init__(self, env):
        self.env, self.batch_size = env, env.batch_size

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, data):
        data = self.env.step(data)
        data["next"].set("reward", torch.ones_like(data["next", "reward"]))
        return data


def critic(data):
    """Value the sum of the state, by a first member that is one too low and a second that is one too high."""
    total = data["observation"].sum((-1, -2)).unsqueeze(-1)
    return {"state_action_value": torch.stack([total - 1, total + 1])}


CRITIC: Any = critic


def test_returns_are_discounted_by_executed_steps_and_padding_is_not_counted():
    env, gamma = cast(Any, RewardOfOne(make_env(2))), 0.5
    values, returns = values_and_returns(env, make_actor(), CRITIC, 3, gamma=gamma)
    # Three episodes of two chunks of 4 steps each: the first chunk returns 1 + gamma^4, the second 1.
    assert sorted(returns.tolist()) == pytest.approx([1.0] * 3 + [1 + gamma**4] * 3)
    assert values.shape == returns.shape


def test_chunks_of_one_state_are_compared_with_one_another():
    env = make_env(6)
    options = {"states": 3, "candidates": 3, "rollouts": 2, "gamma": 0.5}
    figures = values_within_states(env, make_actor(), CRITIC, **options)
    # Episodes have two chunks: the third state comes after the second chunk, which ended the episode.
    assert figures["within_states"] == 2
    # This critic sees the state alone.
    assert figures["within_state_q_std"] == pytest.approx(0.0, abs=1e-5)
    assert values_within_states(env, make_actor(), CRITIC, **{**options, "states": 0}) == {}


def test_figures_within_states_are_those_of_a_hand_computed_case():
    q = torch.tensor([[1.0, 3.0], [10.0, 8.0]])
    returns = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[5.0, 5.0], [1.0, 1.0]]])
    figures = _within_state_figures(q, returns)
    # Less their state's mean: q -1, 1, 1, -1; mean returns -2, 2, 2, -2; first halves -2, 2, 2, -2; second the same.
    assert figures["within_state_correlation"] == pytest.approx(1.0)
    assert figures["within_state_agreement"] == pytest.approx(1.0)
    assert figures["within_state_q_std"] == pytest.approx((4 / 3) ** 0.5)
    assert figures["within_state_return_std"] == pytest.approx((16 / 3) ** 0.5)
    assert _within_state_figures(-q, returns)["within_state_correlation"] == pytest.approx(-1.0)
