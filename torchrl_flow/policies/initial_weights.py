"""Weights of the networks of a loss, loaded from the checkpoint of an earlier stage."""

from __future__ import annotations

import warnings

from torchrl.checkpoint import CheckpointError

from torchrl_flow.objectives import AWFlowLoss, ShortCutFlowLoss
from torchrl_flow.policies.rebuild import LATENT_POLICY, require_actor_config
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint

__all__ = ["warm_start"]


def warm_start(
    loss_module: ShortCutFlowLoss | AWFlowLoss, checkpoint: TrainingCheckpoint, *, critic: bool = False
) -> None:
    """Load a checkpoint's policy, its average, and optionally its critic and target critic into a loss.

    Call it after the target updaters are made, since they set the targets to their sources. From a checkpoint without
    an average (``ema_policy``), the policy is loaded into both. The average is also the reference of
    ``extraction="q_gradient"``. The latent policy of a steered flow is not loaded; this raises a warning.

    Args:
        loss_module: the loss.
        checkpoint: checkpoint of the earlier stage.
        critic: load the critic too.

    Raises:
        CheckpointError: if a network is missing or has another size. The error lists the existing ones.
    """
    if LATENT_POLICY in checkpoint.module_configs:
        message = f"{checkpoint.path} holds a flow and the latent policy that steers it: the flow alone is taken."
        warnings.warn(message, stacklevel=2)
    actor = loss_module.actor_network
    # The number of sampling steps does not affect weights.
    require_actor_config(checkpoint, actor, (name for name in checkpoint.actor_config if name != "num_steps"))
    average = "ema_policy" if "ema_policy" in checkpoint.roles else "policy"
    checkpoint.restore(modules={"policy": actor})
    checkpoint.restore(modules={average: loss_module.ema_actor})
    if isinstance(loss_module, AWFlowLoss) and loss_module.reference_actor is not None:
        checkpoint.restore(modules={average: loss_module.reference_actor})
    if not critic:
        return
    if not isinstance(loss_module, AWFlowLoss):
        raise ValueError(
            f"{type(loss_module).__name__} has no critic whose weights could be loaded: give critic=False."
        )
    missing = [role for role in ("critic", "target_critic") if role not in checkpoint.roles]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} holds no {' and no '.join(missing)}, only {', '.join(checkpoint.roles)}: start without "
            "(--no-load-critic), or from a checkpoint of aw_shortcut_flow_offline or later."
        )
    checkpoint.restore(modules={"critic": loss_module.critic_network, "target_critic": loss_module.target_critic})
