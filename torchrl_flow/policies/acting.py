"""Rebuilding of a run's policy of any kind from its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.checkpoint import CheckpointError

from torchrl_flow.modules import SingleStepActor
from torchrl_flow.policies.rebuild import LATENT_POLICY, flow_config, open_checkpoint, rebuild_flow
from torchrl_flow.policies.steering import load_steered
from torchrl_flow.recsys.task import load_state_policy
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.util.numbers import refuse_implausible

__all__ = [
    "POLICY_KINDS",
    "PolicyKind",
    "RunLabels",
    "load_acting_policy",
    "load_flow_checkpoint",
    "policy_kind",
    "run_labels",
]

STATE_POLICY = "state_policy"
"""Key of the configuration of an offline baseline's policy in checkpoints."""


@dataclasses.dataclass(frozen=True)
class PolicyKind:
    """A kind of policy that checkpoints hold.

    Attributes:
        name: name of the kind in messages.
        holds: function that returns whether a checkpoint holds such a policy.
        load: function that rebuilds the policy from the checkpoint.
        recipe: name of the recipe in tables of results.
        stage: stage of the recipe; ``None`` if it has only one.
        on_logged_data: True for a policy that acts in the environment of logged transitions (:func:`offline_task`), one
            action at a time; False for one that acts in the environment of a task, one chunk at a time.
        samples: whether evaluations sample actions. False uses the mode.
    """

    name: str
    holds: Callable[[TrainingCheckpoint], bool]
    load: Callable[[TrainingCheckpoint], nn.Module]
    recipe: Callable[[TrainingCheckpoint], str]
    stage: Callable[[TrainingCheckpoint], str | None] = lambda checkpoint: None
    on_logged_data: bool = False
    samples: bool = True


@dataclasses.dataclass(frozen=True)
class RunLabels:
    """Labels of a run in tables of results: recipe, stage (``None`` if there is only one) and seed."""

    recipe: str
    stage: str | None
    seed: int


def load_acting_policy(
    source: str | Path | TrainingCheckpoint, *, which: Which = "last", device: torch.device | str = "cpu"
) -> tuple[Any, TrainingCheckpoint]:
    """Rebuild the policy that a run trained and evaluated for its report.

    The kinds are: a flow, averaged if the checkpoint has an average; a flow with its latent policy; a flow trained with
    noise in its sampling steps, rebuilt without that noise; the state policy of an offline baseline; a single-step flow
    trained on logged data. Sampling steps, bounds and other options are those of the run.

    Args:
        source: checkpoint, its file, or the directory of a run.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
        device: device of the policy.

    Returns:
        the policy in evaluation mode, and the checkpoint. The policy raises a ``NonFiniteError``, which names key and
        row, for an observation that is not finite or above 1e9 in absolute value.

    Raises:
        CheckpointError: if the checkpoint holds no known kind of policy.
    """
    checkpoint = open_checkpoint(source, which)
    policy = policy_kind(checkpoint).load(checkpoint)
    policy.register_forward_pre_hook(refuse_implausible, with_kwargs=True)
    return policy.to(device).eval(), checkpoint


def load_flow_checkpoint(source: str | Path | TrainingCheckpoint, *, which: Which = "last") -> TrainingCheckpoint:
    """Open the checkpoint of a flow policy of action chunks, steered or not, as the start of a later stage.

    Args:
        source: checkpoint, its file, or the directory of a run.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.

    Raises:
        CheckpointError: if the checkpoint holds another kind of policy, or describes one that does not fit into it.
    """
    checkpoint = open_checkpoint(source, which)
    kind = policy_kind(checkpoint)
    if kind.on_logged_data:
        raise CheckpointError(
            f"{checkpoint.path} holds a {kind.name}, and a flow policy of action chunks is needed here: name a run "
            "of shortcut_flow_bc or of a stage after it."
        )
    flow_config(checkpoint)  # a recipe builds the flow from it
    return checkpoint


def policy_kind(checkpoint: TrainingCheckpoint) -> PolicyKind:
    """Return the kind of a checkpoint's policy, the first match in :data:`POLICY_KINDS`.

    Raises:
        CheckpointError: if no kind matches.
    """
    for kind in POLICY_KINDS:
        if kind.holds(checkpoint):
            return kind
    known = ", ".join(kind.name for kind in POLICY_KINDS)
    roles, configs = ", ".join(checkpoint.roles) or "nothing", ", ".join(checkpoint.module_configs) or "no module"
    raise CheckpointError(
        f"{checkpoint.path} holds no known kind of policy ({known}): it holds {roles} and configurations of "
        f"{configs}. Name a run that trained a policy."
    )


def run_labels(checkpoint: TrainingCheckpoint) -> RunLabels:
    """Return recipe, stage and seed of the run of a checkpoint, as in tables of results."""
    kind, config = policy_kind(checkpoint), checkpoint.config
    recipe = config.get("recipe") or kind.recipe(checkpoint)
    parts = (kind.stage(checkpoint), config.get("label"))
    return RunLabels(recipe, " ".join(part for part in parts if part) or None, int(config.get("seed") or 0))


def _steers(checkpoint: TrainingCheckpoint) -> bool:
    return LATENT_POLICY in checkpoint.module_configs


def _load_steered(checkpoint: TrainingCheckpoint) -> nn.Module:
    return load_steered(checkpoint)[0]


def _steered_recipe(checkpoint: TrainingCheckpoint) -> str:
    if "sac" not in checkpoint.roles:
        return "dsrl_ppo"
    return "dsrl_na" if checkpoint.config.get("na", True) else "dsrl_sac"


def _stage_by_steps(offline: str, online: str) -> Callable[[TrainingCheckpoint], str]:
    """Return a function that names the stage: offline if the run has no environment steps, otherwise online."""
    return lambda checkpoint: online if "env_steps" in checkpoint.counters else offline


def _has_state_policy(checkpoint: TrainingCheckpoint) -> bool:
    return STATE_POLICY in checkpoint.module_configs


def _load_state_policy(checkpoint: TrainingCheckpoint) -> nn.Module:
    return load_state_policy(checkpoint)[0]


def _baseline_recipe(checkpoint: TrainingCheckpoint) -> str:
    config = checkpoint.config
    if "min_q_weight" in config:
        return "cql"
    if "expectile" in config:
        return "iql"
    return "td3_bc" if config.get("alpha", True) else "bc"


def _is_flow(checkpoint: TrainingCheckpoint) -> bool:
    return bool(checkpoint.actor_config) and "policy" in checkpoint.roles


def _is_flow_of_logged_data(checkpoint: TrainingCheckpoint) -> bool:
    horizons = [checkpoint.actor_config.get(f"{name}_horizon") for name in ("obs", "pred", "act")]
    return _is_flow(checkpoint) and horizons == [1, 1, 1] and "data" in checkpoint.config


def _load_single_step(checkpoint: TrainingCheckpoint) -> nn.Module:
    return SingleStepActor(rebuild_flow(checkpoint))


def _has_noise(checkpoint: TrainingCheckpoint) -> bool:
    return _is_flow(checkpoint) and "noise_net" in checkpoint.module_configs


def _load_flow(checkpoint: TrainingCheckpoint) -> nn.Module:
    return rebuild_flow(checkpoint)


def _chain_stage(checkpoint: TrainingCheckpoint) -> str | None:
    return None if checkpoint.config.get("label") else f"K={checkpoint.actor_config['num_steps']}"


def _is_weighted(checkpoint: TrainingCheckpoint) -> bool:
    return _is_flow(checkpoint) and "critic" in checkpoint.module_configs


POLICY_KINDS: list[PolicyKind] = [
    PolicyKind("steered flow", _steers, _load_steered, _steered_recipe, _stage_by_steps("1", "2")),
    PolicyKind(
        "policy of states",
        _has_state_policy,
        _load_state_policy,
        _baseline_recipe,
        on_logged_data=True,
        samples=False,
    ),
    PolicyKind(
        "flow of logged data",
        _is_flow_of_logged_data,
        _load_single_step,
        lambda checkpoint: "bc_slates",
        on_logged_data=True,
    ),
    PolicyKind("noisy flow", _has_noise, _load_flow, lambda checkpoint: "reinflow", _chain_stage),
    PolicyKind("weighted flow", _is_weighted, _load_flow, lambda checkpoint: "awsc", _stage_by_steps("2", "3")),
    PolicyKind("flow", _is_flow, _load_flow, lambda checkpoint: "shortcut_flow"),
]
"""The kinds of policies, in the order in which they are tested. Insert a user-defined kind at the front."""
