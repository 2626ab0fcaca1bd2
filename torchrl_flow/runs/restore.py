"""Restoring one module of a checkpoint from its description and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torchrl.checkpoint import CheckpointError

from torchrl_flow.runs.checkpoint_check import building
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.runs.names import Which

__all__ = ["ACTOR_CONFIG", "module_config", "open_checkpoint", "restore_module"]

ACTOR_CONFIG = "actor_config"
"""Name of the actor's description, which is a separate field of a checkpoint."""

_ABSENT = "{path} holds no {name}, only {roles}."
_Config = TypeVar("_Config")
_Module = TypeVar("_Module")


def open_checkpoint(source: str | Path | TrainingCheckpoint, which: Which = "last") -> TrainingCheckpoint:
    """Return a given checkpoint, or open the checkpoint of a file or run.

    Args:
        source: checkpoint, its file, or the directory of a run.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
    """
    if isinstance(source, TrainingCheckpoint):
        return source
    return load_checkpoint(source, which=which)


def module_config(
    checkpoint: TrainingCheckpoint,
    name: str,
    read: Callable[[Mapping[str, Any]], _Config],
    *,
    absent: str = _ABSENT,
) -> _Config:
    """Return the description of a module.

    Args:
        checkpoint: the checkpoint.
        name: :data:`ACTOR_CONFIG`, or the module's name among the checkpoint's ``module_configs``.
        read: function that makes the description from plain values, such as ``CriticConfig.from_dict``.
        absent: message if there is no such module; ``{path}``, ``{name}`` and ``{roles}`` are filled in.

    Raises:
        CheckpointError: if the checkpoint does not describe such a module, or the description is invalid.
    """
    values = checkpoint.actor_config or None if name == ACTOR_CONFIG else checkpoint.module_configs.get(name)
    if values is None:
        roles = ", ".join(checkpoint.roles) or "nothing"
        raise CheckpointError(absent.format(path=checkpoint.path, name=name, roles=roles))
    with building(checkpoint.path, _field(name)):
        return read(values)


def restore_module(
    checkpoint: TrainingCheckpoint,
    name: str,
    read: Callable[[Mapping[str, Any]], _Config],
    make: Callable[[_Config], _Module],
    *,
    roles: tuple[str, ...] | None = None,
    absent: str = _ABSENT,
) -> _Module:
    """Build a module from its description in a checkpoint and load its weights.

    Args:
        checkpoint: the checkpoint.
        name: see :func:`module_config`.
        read: function that makes the description from plain values, such as ``CriticConfig.from_dict``.
        make: function that builds the module from its description.
        roles: roles whose weights may be loaded; the first role in the checkpoint is used. Defaults to ``name``.
        absent: message if there is no such module; ``{path}``, ``{name}`` and ``{roles}`` are filled in.

    Raises:
        CheckpointError: if the module has no description, cannot be built, has no weights, or the weights do not match.
    """
    config = module_config(checkpoint, name, read, absent=absent)
    with building(checkpoint.path, _field(name)):
        module = make(config)
    roles = roles or (name,)
    role = next((role for role in roles if role in checkpoint.roles), roles[-1])
    checkpoint.restore(modules={role: module})
    return module


def _field(name: str) -> str:
    return name if name == ACTOR_CONFIG else f"module_configs.{name}"
