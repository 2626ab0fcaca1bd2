from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.modules import (
    AliasConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseAliaser,
    make_flow_actor,
    make_latent_critics,
    make_latent_policy,
)
from torchrl_flow.modules.critics.config import CriticConfig

H, H_A, A, D = 6, 3, 2, 4


def make(steer_mode="full", bound=None, num_steps=2, **config):
    """A flow that is a smooth, invertible-looking map, and the aliaser over its noise."""
    torch.manual_seed(0)
    flow = make_flow_actor(
        FlowActorConfig(
            action_dim=A, state_dim=D, obs_horizon=1, pred_horizon=H, act_horizon=H_A, width=16, depth=1,
            num_steps=num_steps,
        )
    )  # fmt: skip
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    policy = make_latent_policy(LatentPolicyConfig(steer_mode=steer_mode, latent_bound=bound, hidden_sizes=(8,)), flow)
    return flow, policy, NoiseAliaser(flow, policy, config=AliasConfig(**config))


def demonstrated(flow, policy, rows=12):
    """Chunks of which it is known that the flow can make them."""
    torch.manual_seed(1)
    latent = 0.5 * policy.prior_latent(torch.randn(rows, *policy.latent_shape))
    noise = torch.cat([latent, torch.randn(rows, H - latent.shape[1], A)], 1) if latent.shape[1] > 1 else latent
    noise = noise.expand(rows, H, A)
    data = TensorDict(observation=torch.randn(rows, 1, D), noise=noise, batch_size=[rows])
    return flow(data).exclude("noise")


@pytest.mark.parametrize("mode", ["inversion", "retrieval", "reversal"])
@pytest.mark.parametrize("steer_mode", ["full", "act_horizon", "tied"])
@pytest.mark.parametrize("bound", [None, 2.0])
def test_shapes_bounds_and_an_honest_residual(mode, steer_mode, bound):
    flow, policy, aliaser = make(steer_mode, bound, mode=mode, steps=10, candidates=8, reverse_steps=8)
    data = aliaser(demonstrated(flow, policy).reshape(3, 4), generator=torch.Generator().manual_seed(0))
    assert data["latent"].shape == (3, 4, *policy.latent_shape)
    assert data["alias_residual"].shape == (3, 4, 1)
    assert bound is None or data["latent"].abs().max() < bound
    if steer_mode == "act_horizon":
        return  # the tail is a draw of the search's own
    noise = data["latent"].expand(3, 4, H, A)
    again = flow(data.select("observation").set("noise", noise))
    error = flow.action_normalizer(again["action"]) - flow.action_normalizer(data["action"])
    torch.testing.assert_close(error.square().mean((-2, -1)).sqrt(), data["alias_residual"].squeeze(-1))


def test_inversion_and_retrieval_come_near_and_nearer_with_more():
    flow, policy, _ = make()
    data = demonstrated(flow, policy)

    def residual(**config):
        aliaser = NoiseAliaser(flow, policy, config=AliasConfig(**config))
        return aliaser(data.clone(), generator=torch.Generator().manual_seed(0))["alias_residual"].mean().item()

    assert residual(mode="inversion", steps=100, prior_coef=0.0) < 0.05
    assert residual(mode="inversion", steps=5) > residual(mode="inversion", steps=100)
    assert residual(mode="retrieval", candidates=4) > residual(mode="retrieval", candidates=512)


def test_reversal_of_a_whole_chunk_gives_the_noise_back():
    flow, _, aliaser = make(mode="reversal", num_steps=1)
    torch.manual_seed(2)
    noise = torch.randn(9, H, A)
    observation = torch.randn(9, 1, D)
    flow.num_steps, flow.max_steps = 64, 16  # steps of the instantaneous velocity, as reversal takes them
    data = flow(TensorDict(observation=observation, noise=noise, batch_size=[9]))
    found = aliaser(data.exclude("noise"))
    assert (found["latent"] - noise).abs().max() < 1e-3
    assert found["alias_residual"].max() < 1e-3


def test_the_generator_decides_the_draws():
    flow, policy, aliaser = make(mode="retrieval", candidates=8)
    data = demonstrated(flow, policy)
    one, other, third = (aliaser(data.clone(), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one["latent"], other["latent"])
    assert not torch.equal(one["latent"], third["latent"])


def test_the_flow_gets_no_gradient():
    flow, policy, aliaser = make(steps=3)
    aliaser(demonstrated(flow, policy))
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_identity_names_all_that_matters():
    _, _, one = make("tied", 2.0)
    _, _, other = make("full", 2.0)
    assert one.identity() != other.identity()
    assert one.identity()["mode"] == "inversion"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"mode": "magic"}, "mode must be"), ({"starts": 0}, "starts must be"), ({"lr": 0.0}, "lr > 0")],
)
def test_searches_that_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        AliasConfig(**kwargs)


def test_critics_of_latents_are_independent_and_refuse_the_frozen_encoder():
    flow, policy, _ = make("tied")
    one, other = make_latent_critics(CriticConfig(num_qs=2, hidden_sizes=(8,)), flow, policy)
    data = policy(TensorDict(observation=torch.randn(5, 1, D), batch_size=[5]))
    assert one(data.clone())["state_action_value"].shape == (5, 1)
    assert not torch.equal(one(data.clone())["state_action_value"], other(data.clone())["state_action_value"])
    with pytest.raises(ValueError, match="share_encoder"):
        make_latent_critics(CriticConfig(share_encoder=True), flow, policy)
