"""The parts of an advantage-weighted flow, and those of SAC over latents."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.modules import BestOfN, CriticConfig, FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss
from torchrl_flow.policies import (
    aw_flow_modules,
    collecting_policy,
    critic_config,
    make_aw_flow_actor,
    make_aw_flow_loss,
    make_aw_flow_stepper,
)
from torchrl_flow.runs import load_checkpoint, save_checkpoint

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=5, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=4
)
CRITIC = CriticConfig(num_qs=2, hidden_sizes=(16,))


@pytest.fixture
def actor():
    torch.manual_seed(0)
    return make_flow_actor(CONFIG)


@pytest.fixture
def loss(actor):
    return make_aw_flow_loss(actor, CRITIC)


def test_the_actor_has_the_checkpoint_s_sizes_and_one_step_for_the_gradient_of_q(tmp_path, actor):
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"policy": actor}, actor_config=CONFIG)
    checkpoint = load_checkpoint(path)
    assert make_aw_flow_actor(checkpoint, {"act_horizon": 4, "obs_horizon": None}).config == CONFIG
    assert make_aw_flow_actor(checkpoint, {}, extraction="q_gradient").num_steps == 1
    with pytest.raises(CheckpointError, match="act_horizon"):
        make_aw_flow_actor(checkpoint, {"act_horizon": 5})


def test_the_loss_has_the_values_of_its_preset_where_none_are_given(actor):
    assert make_aw_flow_loss(actor, CRITIC).weights.beta == 20
    published = make_aw_flow_loss(actor, CRITIC, preset="published", weight_clip=3.0)
    assert (published.weights.beta, published.weights.weight_clip, published.baseline) == (100, 3, "batch")
    assert published.critic_network.num_qs == 2


def test_the_stepper_has_the_rates_that_are_given(loss):
    stepper = make_aw_flow_stepper(
        loss, lr=0.1, critic_lr=0.2, tau=0.3, ema=0.4, actor_every=5, critic_warmup=6, utd_ratio=0.5
    )
    critic, actor = stepper.groups
    assert [group.optimizer.param_groups[0]["lr"] for group in (critic, actor)] == [0.2, 0.1]
    assert (critic.every, critic.warmup, actor.every, actor.warmup) == (1, 0, 5, 6)
    assert (critic.max_grad_norm, actor.max_grad_norm) == (None, 1.0)
    assert [cast(Any, group.target_updater).eps for group in (critic, actor)] == pytest.approx([0.7, 0.4])
    assert stepper.updates_due(10) == 5


def test_the_modules_are_those_of_a_checkpoint(actor, loss):
    assert list(aw_flow_modules(loss)) == ["policy", "ema_policy", "critic", "target_critic"]
    anchored = make_aw_flow_loss(actor, CRITIC, extraction="q_gradient")
    assert aw_flow_modules(anchored)["reference_policy"] is anchored.reference_actor


def test_the_collecting_policy_is_the_actor_or_a_variant_with_its_weights(loss: AWFlowLoss):
    assert collecting_policy(loss) is loss.actor_network
    best = collecting_policy(loss, best_of=3)
    assert isinstance(best, BestOfN)
    assert best.num_samples == 3
    quiet = collecting_policy(loss, noise_scale=0.0)
    assert quiet.out_keys == loss.actor_network.out_keys
    assert {*quiet.parameters()} == {*loss.actor_network.parameters()}
    with pytest.raises(ValueError, match=r"best_of=2 and noise_scale=0\.5"):
        collecting_policy(loss, best_of=2, noise_scale=0.5)


def test_the_critic_s_description_is_the_checkpoint_s_or_none():
    found: Any = SimpleNamespace(path=Path(__file__), module_configs={"critic": {"num_qs": 2, "hidden_sizes": [16]}})
    assert critic_config(found) == CRITIC
    found.module_configs = {}
    assert critic_config(found) is None
