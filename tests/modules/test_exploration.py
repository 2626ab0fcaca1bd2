"""One rule for all actors: which exploration types draw noise, and which do not."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.evaluation.group_rollout import GroupRollout
from torchrl_flow.modules import (
    BestOfN,
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    QEnsemble,
    ScaledNoise,
    SteeredFlowActor,
    draws_noise,
    make_flow_actor,
    make_latent_policy,
    make_noise_net,
)

DRAWN = (ExplorationType.RANDOM, None)
ZERO = (ExplorationType.DETERMINISTIC, ExplorationType.MEAN, ExplorationType.MODE)
ACTORS = ("flow", "best_of_n", "one_of_one", "noisy", "steered", "steered_tail", "mixture", "scaled", "latent")


def make(name):
    torch.manual_seed(0)
    flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4, width=16, depth=1))
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if name in ("best_of_n", "one_of_one"):
        critic = QEnsemble.for_actor(flow, num_qs=2, hidden_sizes=(16,))
        return BestOfN(flow, critic, num_samples=3 if name == "best_of_n" else 1), flow
    if name == "noisy":
        return NoisyFlowActor(flow, make_noise_net(NoiseNetConfig(), flow)), flow
    if name == "scaled":
        return TensorDictSequential(ScaledNoise(flow, 0.5), flow), flow
    if name == "flow":
        return flow, flow
    mode = {"steered_tail": "act_horizon"}.get(name, "full")
    config = LatentPolicyConfig(hidden_sizes=(16,), steer_mode=mode, prior_mixing=name == "mixture")
    policy = make_latent_policy(config, flow)
    if name == "mixture":
        policy.set_prior_fraction(0.5)
    return (policy if name == "latent" else SteeredFlowActor(policy, flow)), flow


def act(policy, kind):
    data = TensorDict(observation=torch.linspace(-1, 1, 60).reshape(6, 2, 5), batch_size=[6])
    with torch.no_grad(), set_exploration_type(kind):
        return policy(data)


@pytest.mark.parametrize("name", ACTORS)
@pytest.mark.parametrize("kind", ZERO)
def test_no_noise_is_drawn(name, kind):
    policy, flow = make(name)
    key = "latent" if name == "latent" else "action_chunk"
    state = torch.get_rng_state()
    first, second = act(policy, kind)[key], act(policy, kind)[key]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
    assert torch.equal(first, act(policy, ExplorationType.DETERMINISTIC)[key])
    if name == "latent":
        assert torch.equal(first, torch.zeros_like(first))
    elif name != "best_of_n":
        # A new latent policy is the prior, whose mean is no noise: all of them give the flow's zero-noise sample.
        num_steps = 1 if name == "one_of_one" else flow.num_steps
        zero = TensorDict(observation=torch.linspace(-1, 1, 60).reshape(6, 2, 5), batch_size=[6])
        zero["noise"] = torch.zeros(6, 8, 3)
        assert torch.equal(first, flow(zero, num_steps=num_steps)["action_chunk"])


@pytest.mark.parametrize("name", ACTORS)
@pytest.mark.parametrize("kind", DRAWN)
def test_noise_is_drawn(name, kind):
    policy, _ = make(name)
    key = "latent" if name == "latent" else "action_chunk"
    first, second = act(policy, kind)[key], act(policy, kind)[key]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", [*DRAWN, *ZERO])
def test_given_noise_is_used_under_every_type(kind):
    flow, _ = make("flow")
    data = TensorDict(observation=torch.zeros(6, 2, 5), noise=torch.randn(6, 8, 3), batch_size=[6])
    with set_exploration_type(kind):
        chunk = flow(data.clone())["action_chunk"]
    with set_exploration_type(ExplorationType.RANDOM):
        assert torch.equal(chunk, flow(data.clone())["action_chunk"])


@pytest.mark.parametrize("kind", [*DRAWN, *ZERO])
def test_an_evaluation_gives_noise_by_the_same_rule(kind):
    class Policy:
        noise_shape, noise_key = torch.Size([8, 3]), "noise"

    class Env:
        batch_size = torch.Size([1])

    rollout = GroupRollout(Env(), Policy(), {}, None, None)
    rollout.generators = [torch.Generator()]
    data = TensorDict(batch_size=[1])
    with set_exploration_type(kind):
        rollout._set_noise(data)
        assert ("noise" in data) == draws_noise() == (kind in DRAWN)
