"""Rebuilding of flow actors and critics from a checkpoint."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.modules import CriticConfig, FlowActor, FlowActorConfig, QEnsemble, make_critic, make_flow_actor
from torchrl_flow.runs.checkpoint import as_json
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.runs.restore import ACTOR_CONFIG, module_config, open_checkpoint, restore_module
from torchrl_flow.util.differences import differing_fields

LATENT_POLICY = "latent_policy"
"""Role of the latent policy in checkpoints."""

_NO_FLOW = "{path} does not say how its policy is built (no actor_config)."

__all__ = [
    "LATENT_POLICY",
    "critic_config",
    "flow_config",
    "load_critic",
    "load_policy",
    "open_checkpoint",
    "rebuild_flow",
    "require_actor_config",
]


def flow_config(checkpoint: TrainingCheckpoint) -> FlowActorConfig:
    """Return the configuration of a checkpoint's flow, with the number of sampling steps of its training.

    Raises:
        CheckpointError: if the checkpoint holds no flow policy.
    """
    return _as_trained(checkpoint, module_config(checkpoint, ACTOR_CONFIG, FlowActorConfig.from_dict, absent=_NO_FLOW))


def critic_config(checkpoint: TrainingCheckpoint) -> CriticConfig | None:
    """Return the configuration of a checkpoint's critic of action chunks; None without a critic."""
    if "critic" not in checkpoint.module_configs:
        return None
    return module_config(checkpoint, "critic", CriticConfig.from_dict)


def _as_trained(checkpoint: TrainingCheckpoint, config: FlowActorConfig) -> FlowActorConfig:
    # Older files of steered flows store the K of --num-steps only among the script's arguments.
    steered = LATENT_POLICY in checkpoint.module_configs
    num_steps = checkpoint.config.get("num_steps") if steered else None
    return config if num_steps is None else dataclasses.replace(config, num_steps=num_steps)


def load_policy(
    source: str | Path | TrainingCheckpoint,
    *,
    role: str | None = None,
    which: Which = "last",
    device: torch.device | str = "cpu",
) -> tuple[FlowActor, TrainingCheckpoint]:
    """Rebuild the flow of a checkpoint as the start of a later stage.

    The policy of a run may consist of more than its flow: :func:`~torchrl_flow.policies.load_acting_policy` rebuilds
    the whole policy. The latent policy of a steered flow is not loaded; this raises a warning.

    Args:
        source: checkpoint, its file, or the directory of a run.
        role: role of the weights. Defaults to the averaged weights (``ema_policy``) if present, otherwise ``policy``.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
        device: device of the policy.

    Returns:
        the policy in evaluation mode, and the checkpoint.

    Raises:
        CheckpointError: if the checkpoint holds no flow policy.
    """
    checkpoint = open_checkpoint(source, which)
    if LATENT_POLICY in checkpoint.module_configs:
        message = f"{checkpoint.path} holds a flow and the latent policy that steers it: the flow alone is taken."
        warnings.warn(message, stacklevel=2)
    return rebuild_flow(checkpoint, role=role, device=device), checkpoint


def rebuild_flow(
    checkpoint: TrainingCheckpoint, *, role: str | None = None, device: torch.device | str = "cpu"
) -> FlowActor:
    """Rebuild the flow of a checkpoint, steered or not; see :func:`load_policy`."""
    actor = restore_module(
        checkpoint,
        ACTOR_CONFIG,
        FlowActorConfig.from_dict,
        lambda config: make_flow_actor(_as_trained(checkpoint, config)),
        roles=("ema_policy", "policy") if role is None else (role,),
        absent=_NO_FLOW,
    )
    return actor.to(device).eval()


def require_actor_config(
    checkpoint: TrainingCheckpoint, wanted: FlowActor | Mapping[str, Any], fields: Iterable[str] | None = None
) -> None:
    """Raise an error with both values of each differing field if a checkpoint's policy has another configuration.

    Args:
        checkpoint: the checkpoint.
        wanted: policy made by ``make_flow_actor``, or fields of :class:`FlowActorConfig`. None accepts any value of a
            field.
        fields: fields to compare. Defaults to all fields of ``wanted``.

    Raises:
        CheckpointError: if a field differs.
    """
    given = wanted.config if isinstance(wanted, FlowActor) else wanted
    # As in the checkpoint, with lists in place of tuples.
    values: dict[str, Any] = as_json("wanted", given or {})
    names = [name for name in (values if fields is None else fields) if values.get(name) is not None]
    differing = differing_fields(checkpoint.actor_config, values, names)
    if differing:
        raise CheckpointError(f"{checkpoint.path} was made for another policy. {'; '.join(differing)}.")


def load_critic(
    source: str | Path | TrainingCheckpoint, actor: FlowActor, *, role: str | None = None, which: Which = "last"
) -> tuple[QEnsemble, TrainingCheckpoint]:
    """Rebuild the critic of action chunks from a checkpoint.

    Args:
        source: checkpoint, its file, or the directory of a run.
        actor: policy whose chunks the critic values, see :func:`load_policy`. If the critic shares the encoder, its
            weights are loaded into the encoder of this policy.
        role: role of the weights. Defaults to the averaged weights (``target_critic``) if present, otherwise
            ``critic``.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.

    Raises:
        CheckpointError: if the checkpoint has no critic, or its shapes do not fit the policy.
    """
    checkpoint = open_checkpoint(source, which)

    def make(config: CriticConfig) -> QEnsemble:
        require_actor_config(checkpoint, actor, ("action_dim", "state_dim", "obs_horizon", "act_horizon"))
        return make_critic(config, actor)

    critic = restore_module(
        checkpoint,
        "critic",
        CriticConfig.from_dict,
        make,
        roles=("target_critic", "critic") if role is None else (role,),
        absent="{path} holds no critic, only {roles}: it was written by a stage that trains none. Train one from it, "
        "or name a checkpoint of aw_shortcut_flow_offline or later.",
    )
    return critic, checkpoint
