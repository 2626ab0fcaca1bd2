"""Actor, loss, updates and policy of an advantage-weighted flow, for its offline and online recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from tensordict.nn import TensorDictModuleBase, TensorDictSequential

from torchrl_flow.modules import (
    BestOfN,
    CriticConfig,
    FlowActor,
    FlowActorConfig,
    ScaledNoise,
    make_critic,
    make_flow_actor,
)
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.policies.rebuild import require_actor_config
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.restore import ACTOR_CONFIG, module_config
from torchrl_flow.training import LossGroup, NamedLossStepper

__all__ = ["aw_flow_modules", "collecting_policy", "make_aw_flow_actor", "make_aw_flow_loss", "make_aw_flow_stepper"]


def make_aw_flow_actor(
    checkpoint: TrainingCheckpoint, wanted: Mapping[str, Any], *, extraction: str = "weights", device: str = "cpu"
) -> FlowActor:
    """Build a flow actor with the checkpoint's sizes; :func:`warm_start` loads its weights and their average.

    Args:
        checkpoint: checkpoint of the previous stage.
        wanted: fields that the checkpoint's ``FlowActorConfig`` must have; ``None`` accepts any value.
        extraction: option of :class:`~torchrl_flow.objectives.AWFlowLoss`. With ``"q_gradient"`` the actor takes one
            sampling step, since the gradient of Q is taken through the one-step map.
        device: device of the actor.

    Raises:
        CheckpointError: if a field differs from ``wanted``.
    """
    require_actor_config(checkpoint, wanted)
    config = module_config(checkpoint, ACTOR_CONFIG, FlowActorConfig.from_dict)
    if extraction == "q_gradient":
        config = dataclasses.replace(config, num_steps=1)
    return make_flow_actor(config).to(device)


def make_aw_flow_loss(
    actor: FlowActor,
    critic: CriticConfig,
    *,
    preset: Literal["recommended", "published"] = "recommended",
    **options: Any,
) -> AWFlowLoss:
    """Build the loss of a flow actor and a new critic.

    Args:
        actor: flow actor; the critic is made on its device.
        critic: sizes of the critic.
        preset: source of the values of arguments not in ``options``: ``AWFlowLoss`` or ``AWFlowLoss.published``.
        **options: keyword arguments of :class:`~torchrl_flow.objectives.AWFlowLoss`.
    """
    build: Any = AWFlowLoss.published if preset == "published" else AWFlowLoss
    return build(actor, make_critic(critic, actor), **options)


def make_aw_flow_stepper(
    loss_module: AWFlowLoss,
    *,
    lr: float,
    critic_lr: float,
    tau: float,
    ema: float,
    actor_every: int = 1,
    critic_warmup: int = 0,
    utd_ratio: float | None = None,
    compute: Callable[..., Any] | None = None,
) -> NamedLossStepper:
    """Build the update of critic and actor, each with an optimiser and an average.

    The call copies both networks to their averages: call :func:`warm_start` afterwards.

    Args:
        loss_module: the loss.
        lr: learning rate of the actor (AdamW, weight decay 1e-4, gradient norm at most 1).
        critic_lr: learning rate of the critic (Adam).
        tau: rate at which the target critic follows the critic.
        ema: decay of the averaged actor.
        actor_every: updates of the critic for each update of the actor.
        critic_warmup: updates of the critic before the first update of the actor.
        utd_ratio: updates of the critic per chunk written to the replay buffer; ``None`` if the recipe schedules the
            updates.
        compute: see :class:`~torchrl_flow.training.NamedLossStepper`; for a compiled loss.
    """
    targets = NetworkSoftUpdate(loss_module, "critic_network", tau=tau)
    averages = NetworkSoftUpdate(loss_module, "actor_network", eps=ema)
    actor = torch.optim.AdamW(loss_module.actor_parameters(), lr, weight_decay=1e-4, fused=True)
    critic = torch.optim.Adam(loss_module.critic_parameters(), critic_lr, fused=True)
    schedule: dict[str, Any] = {"every": actor_every, "warmup": critic_warmup, "max_grad_norm": 1.0}
    groups = [
        LossGroup("loss_qvalue", critic, method="qvalue_loss", target_updater=targets),
        LossGroup("loss_actor", actor, method="actor_loss", target_updater=averages, **schedule),
    ]
    return NamedLossStepper(loss_module, groups, utd_ratio=utd_ratio, compute=compute)


def aw_flow_modules(loss_module: AWFlowLoss) -> dict[str, Any]:
    """Return the networks of the loss by their role in a checkpoint, for :meth:`~torchrl_flow.runs.Run.track`."""
    modules = {"policy": loss_module.actor_network, "ema_policy": loss_module.ema_actor}
    modules |= {"critic": loss_module.critic_network, "target_critic": loss_module.target_critic}
    if loss_module.reference_actor is not None:
        modules["reference_policy"] = loss_module.reference_actor
    return modules


def collecting_policy(loss_module: AWFlowLoss, *, best_of: int = 1, noise_scale: float = 1.0) -> TensorDictModuleBase:
    """Return the policy for online collection: the actor, or a variant that shares its weights.

    Args:
        loss_module: the loss of the trained actor and critic.
        best_of: number of candidate chunks, from which the critic selects the best.
        noise_scale: standard deviation of the flow noise; a value below 1 reduces exploration.

    Raises:
        ValueError: if both are given.
    """
    actor = loss_module.actor_network
    if best_of > 1 and noise_scale != 1:
        raise ValueError(f"give best_of or noise_scale, got best_of={best_of} and noise_scale={noise_scale}.")
    if best_of > 1:
        return BestOfN(actor, loss_module.critic_network, num_samples=best_of)
    if noise_scale == 1:
        return actor
    parts: list[Any] = [ScaledNoise(actor, noise_scale), actor]
    policy = TensorDictSequential(*parts)
    policy.select_out_keys(*actor.out_keys)
    return policy
