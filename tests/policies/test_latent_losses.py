from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from torchrl_flow.modules import (
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    SteeredFlowActor,
    make_critic,
    make_flow_actor,
    make_latent_policy,
)
from torchrl_flow.objectives import DistilledSACLoss, LatentSACLoss
from torchrl_flow.policies import latent_replay, make_latent_losses

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=5, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=1
)
CRITICS = CriticConfig(num_qs=2, hidden_sizes=(16,))
RATES: dict[str, Any] = {"gamma": 0.9, "tau": 0.25}


@pytest.fixture
def actor():
    torch.manual_seed(0)
    flow = make_flow_actor(CONFIG)
    return SteeredFlowActor(make_latent_policy(LatentPolicyConfig(hidden_sizes=(8,)), flow), flow)


def test_without_a_critic_of_actions_the_critics_of_latents_bootstrap_from_their_own_target(actor):
    losses = make_latent_losses(actor, CRITICS, **RATES)
    assert type(losses.sac) is LatentSACLoss
    assert losses.td is None
    assert list(losses.modules()) == ["sac"]
    source = losses.sac.qvalue_network_params.data
    before = losses.sac.target_qvalue_network_params.data.clone()
    source.apply_(lambda x: x + 1)
    losses.target.step()
    moved = losses.sac.target_qvalue_network_params.data - before
    changes = moved.exclude("encoder", "action_normalizer").values(True, True)  # Statistics are not averaged.
    assert all(torch.allclose(change, torch.full_like(change, 0.25)) for change in changes)


def test_with_a_critic_of_actions_the_target_is_that_critic_s(actor):
    losses = make_latent_losses(actor, CRITICS, CRITICS, mode="both", **RATES)
    assert isinstance(losses.sac, DistilledSACLoss)
    assert losses.td is not None
    assert list(losses.modules()) == ["critic", "target_critic", "sac"]
    critic = make_critic(CRITICS, actor.flow)
    given = make_latent_losses(actor, CRITICS, critic, steered_targets=False, **RATES)
    assert given.td is not None
    assert {*given.td.critic_parameters()} == {*critic.parameters()}
    assert (losses.td.latent_policy is None, given.td.latent_policy is None) == (False, True)


def test_each_optimizer_has_the_rate_and_the_parameters_of_its_networks(actor):
    losses = make_latent_losses(actor, CRITICS, CRITICS, **RATES)
    adam = losses.optimizers(actor_lr=0.1, critic_lr=0.2, alpha_lr=0.3)
    assert {name: [group["lr"] for group in one.param_groups] for name, one in adam.items()} == {
        "policy": [0.1, 0.3],
        "critics": [0.2],
        "critic": [0.2],
    }
    assert adam["policy"].param_groups[1]["params"] == [losses.sac.log_alpha]
    assert "critic" not in make_latent_losses(actor, CRITICS, **RATES).optimizers(actor_lr=1, critic_lr=1, alpha_lr=1)


def test_a_replay_without_demonstrations_starts_empty_and_needs_a_capacity(actor):
    checkpoint = cast(Any, None)
    buffer, note = latent_replay(checkpoint, actor, "none", batch_size=4, gamma=0.9, capacity=7)
    assert (len(buffer), buffer.storage.max_size, note) == (0, 7, "No demonstrations in the replay buffer.")
    with pytest.raises(ValueError, match="capacity"):
        latent_replay(checkpoint, actor, "none", batch_size=4, gamma=0.9)
