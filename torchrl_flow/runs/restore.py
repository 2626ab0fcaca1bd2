"""Restoring one module of a checkpoint from its description and weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torchrl.checkpoint import CheckpointError

from torchrl_flow.runs.checkpoint_check import building
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.runs.names import Which

__all__ = ["ACTOR_CONFIG", "module_config", "open_checkpoint", "restore_module"]

ACTOR_CONFIG = "actor_config"
"""Name of the actor's description, which is a separate field of a checkpoint."""

UNCHECKED_WEIGHTS = 2**24
"""Weights that a checkpoint may describe without holding them, 64 MiB in float32."""
FACTOR = 4
"""Parameters that are made for a weight in the file, at most: an ensemble is made of its members."""

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
        CheckpointError: if the checkpoint does not describe such a module, or the description is invalid, or is that of
            a network that does not fit into the file.
    """
    values = checkpoint.actor_config or None if name == ACTOR_CONFIG else checkpoint.module_configs.get(name)
    if values is None:
        roles = ", ".join(checkpoint.roles) or "nothing"
        raise CheckpointError(absent.format(path=checkpoint.path, name=name, roles=roles))
    with building(checkpoint.path, _field(name)):
        config = read(values)
    # A stored weight has one byte at least.
    size = checkpoint.path.stat().st_size
    _require_stored(checkpoint, name, getattr(config, "least_weights", 0), size, f"{size} bytes")
    return config


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
        CheckpointError: if the module has no description, cannot be built, has no weights, or the weights do not match;
            before it is built, if it has more than :data:`UNCHECKED_WEIGHTS` weights and more than :data:`FACTOR` times
            those in the checkpoint.
    """
    config = module_config(checkpoint, name, read, absent=absent)
    roles = roles or (name,)
    role = next((role for role in roles if role in checkpoint.roles), roles[-1])
    with building(checkpoint.path, _field(name)), _only_stored_weights(checkpoint, name, role):
        module = make(config)
    checkpoint.restore(modules={role: module})
    return module


@contextmanager
def _only_stored_weights(checkpoint: TrainingCheckpoint, name: str, role: str) -> Iterator[None]:
    """Stop the building of a network once it has more weights than :data:`FACTOR` times those of a role in the file.

    A module registers its parameters before it initialises them, so that the memory of the last one is not used yet.
    """
    built = 0

    def count(module: nn.Module, key: str, parameter: Any) -> None:
        nonlocal built
        if parameter is not None and not is_lazy(parameter):
            built += parameter.numel()
        if built > UNCHECKED_WEIGHTS:
            _require_stored(checkpoint, name, built, FACTOR * stored(), f"{stored()} weights of {role!r}")

    @functools.cache
    def stored() -> int:
        return sum(value.numel() for value in checkpoint.state_dict(role).values() if isinstance(value, Tensor))

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _require_stored(checkpoint: TrainingCheckpoint, name: str, described: int, stored: int, what: str) -> None:
    if described > max(stored, UNCHECKED_WEIGHTS):
        raise CheckpointError(
            f"{checkpoint.path}: {_field(name)!r} describes a network of {described} weights or more, which does not "
            f"fit into the file ({what}): its description is damaged, or it is not to be trusted."
        )


def _field(name: str) -> str:
    return name if name == ACTOR_CONFIG else f"module_configs.{name}"
