from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.modules import FlowActorConfig, ScaledNoise, make_flow_actor


@pytest.fixture
def actor():
    torch.manual_seed(0)
    return make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=4, act_horizon=2))


def observations(rows=2000):
    return TensorDict({"observation": torch.randn(rows, 2, 5)}, [rows])


def test_noise_has_the_scale_and_the_actor_starts_from_it(actor):
    noise = ScaledNoise(actor, 0.5)
    with set_exploration_type(ExplorationType.RANDOM):
        out = TensorDictSequential(noise, actor)(observations())
    assert out["noise"].std().item() == pytest.approx(0.5, rel=0.05)
    alone = actor(out.select("observation", "noise"))
    torch.testing.assert_close(out["action_chunk"], alone["action_chunk"])


def test_deterministic_actions_are_the_actors_own(actor):
    data = observations(5)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        scaled = TensorDictSequential(ScaledNoise(actor, 0.5), actor)(data.clone())
        torch.testing.assert_close(scaled["action"], actor(data.clone())["action"])


def test_a_sequence_has_the_actors_parameters_once_and_can_hide_the_noise(actor):
    policy = TensorDictSequential(ScaledNoise(actor, 0.5), actor)
    assert len(list(policy.parameters())) == len(list(actor.parameters()))
    policy.select_out_keys(*actor.out_keys)
    assert "noise" not in policy(observations(3))


@pytest.mark.parametrize("scale", [-0.1, float("nan")])
def test_scales_that_are_none_are_refused(actor, scale):
    with pytest.raises(ValueError, match="at least 0"):
        ScaledNoise(actor, scale)


def test_it_follows_the_actor_to_another_type_and_holds_no_network(actor):
    policy = TensorDictSequential(ScaledNoise(actor, 0.5), actor).to(torch.float64)
    data = TensorDict({"observation": torch.randn(3, 2, 5, dtype=torch.float64)}, [3])
    with set_exploration_type(ExplorationType.RANDOM):
        out = policy(data)
    assert out["noise"].dtype == out["action_chunk"].dtype == torch.float64
    assert not list(ScaledNoise(actor, 0.5).parameters())
    assert all(not isinstance(value, torch.nn.Module) for value in vars(ScaledNoise(actor, 0.5)).values())


def test_noise_that_is_there_is_scaled_or_refused(actor):
    given = torch.ones(3, 4, 3)
    noise = ScaledNoise(actor, 0.5)(observations(3).set("noise", given))["noise"]
    assert torch.equal(noise, 0.5 * given)
    with pytest.raises(ValueError, match=r"must have shape \[3, 4, 3\], got \[3, 1, 3\]"):
        ScaledNoise(actor, 0.5)(observations(3).set("noise", given[:, :1]))
