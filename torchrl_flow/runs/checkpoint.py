"""The checkpoint format of all algorithms, and its atomic writer.

A checkpoint is one zip archive written by :class:`torchrl.checkpoint.Checkpoint`. Its components are modules
by role (``module.policy``, ``module.ema_policy``, ``module.critic``, ...), optimisers (``optimizer.<name>``),
other objects with a state (``state.<name>``: schedulers, samplers, replay buffers) and the generators (``rng``). JSON
values (config, task, actor config, counters, versions) are in the manifest, which is readable without loading a tensor.
Tensors are read with ``weights_only=True``. The reader is in ``torchrl_flow.runs.checkpoint_reader``, the checks before
reading in ``torchrl_flow.runs.checkpoint_check``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState

from torchrl_flow.runs.checkpoint_check import (
    METRIC_PREFIX,
    CheckedDumpAdapter,
    CheckedStateDictAdapter,
    require_readable_manifest,
)
from torchrl_flow.runs.names import SUFFIX
from torchrl_flow.util.files import named_write_errors, staged
from torchrl_flow.util.plain_config import PlainConfig
from torchrl_flow.util.task_info import TaskInfo
from torchrl_flow.util.versions import collect_versions

__all__ = ["CheckpointDirectory", "as_json", "save_checkpoint"]

FORMAT = "torchrl_flow.checkpoint"
FORMAT_VERSION = 1
"""Version of the checkpoint format."""

SUBSTITUTES = {"eval/success_once": "eval/return"}
"""Metric that determines the best checkpoint where no checkpoint has the first one: tasks without success."""


def as_json(name: str, value: Any) -> Any:
    """Return ``value`` as JSON would restore it; dataclasses, paths and tuples are converted.

    Args:
        name: name of the value in the error.
        value: dataclass, mapping, sequence or scalar.

    Raises:
        ValueError: if a part of the value is not JSON-able. The error names it.

    Examples:
        >>> as_json("config", {"betas": (0.9, 0.95), "out": Path("runs")})
        {'betas': [0.9, 0.95], 'out': 'runs'}
    """

    def fallback(item: Any) -> Any:
        if isinstance(item, PlainConfig):
            return item.to_dict()
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, (np.generic, torch.Tensor)) and item.ndim == 0:
            return item.item()
        raise ValueError(f"{name} holds {item!r} of type {type(item).__name__}, which JSON cannot represent.")

    return json.loads(json.dumps(value, default=fallback))


def save_checkpoint(
    path: str | Path,
    *,
    modules: Mapping[str, Any] | None = None,
    optimizers: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    config: Any = None,
    task: Mapping[str, Any] | None = None,
    actor_config: Any = None,
    counters: Mapping[str, int] | None = None,
    metrics: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    rng: bool = True,
) -> Path:
    """Write a checkpoint atomically: if the process dies, the previous file is unchanged.

    The archive is written beside ``path``, flushed to the disk and renamed to ``path``. TorchRL's own method moves the
    old file away first, so that a kill between its two renames leaves no file; a single rename avoids this.

    Args:
        path: file to write; ``.torchrl`` is the usual suffix.
        modules: modules by role: ``policy``, ``ema_policy``, ``critic``, ``target_critic``, ``loss``, ...; normalisers
            belong to the state of their module.
        optimizers: optimisers by name.
        state: other objects by name, with ``state_dict`` and ``load_state_dict`` (schedulers, samplers) or ``dump`` and
            ``load`` (replay buffers).
        config: dataclass or mapping with the script's arguments.
        task: identity of the task (:func:`~torchrl_flow.envs.task_info` of an environment), as a
            :class:`~torchrl_flow.envs.TaskInfo` or a mapping; :func:`require_task` compares it.
        actor_config: dataclass or mapping from which the actor can be rebuilt.
        counters: integers such as ``step`` and ``env_steps``.
        metrics: scalars measured at this step, such as ``eval/success_once``; they determine the best checkpoint.
        metadata: further JSON-able values.
        rng: save the state of the global generators of Python, NumPy, torch and the accelerators.

    Returns:
        The path written.

    Raises:
        ValueError: if a name is not allowed, a value is not JSON-able, or a replay buffer dumps a file that the reader
            refuses (a pickled queue of prefetched batches).
        OSError: if the file cannot be written, such as on a full disk.

    Examples:
        >>> import tempfile
        >>> policy = torch.nn.Linear(2, 1)
        >>> from torchrl_flow.runs import load_checkpoint
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = save_checkpoint(
        ...         f"{directory}/a.torchrl", modules={"policy": policy}, counters={"step": 3})
        ...     checkpoint = load_checkpoint(path)
        >>> checkpoint.roles, checkpoint.step
        (('policy',), 3)
    """
    path = Path(path).expanduser().absolute()
    checkpoint = Checkpoint(format="archive")
    for group, parts in (("module", modules), ("optimizer", optimizers), ("state", state)):
        for name, part in (parts or {}).items():
            has_state = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
            dumps = hasattr(part, "dump") and hasattr(part, "load") and group == "state"
            if not has_state and not dumps:
                raise ValueError(
                    f"{group} {name!r} is a {type(part).__name__}, which has no state_dict() and load_state_dict()."
                )
            adapter = CheckedDumpAdapter() if dumps else CheckedStateDictAdapter()
            checkpoint.register(f"{group}.{name}", part, adapter=adapter)
    if rng:
        checkpoint.register("rng", GlobalRNGState(), adapter=CheckedStateDictAdapter())
    described = {"config": config, "task": TaskInfo.of(task), "actor_config": actor_config, "counters": counters}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **{name: as_json(name, value or {}) for name, value in (described | {"metadata": metadata}).items()},
        "versions": collect_versions(),
        # Flat, since TorchRL's rotation reads the metric of the best checkpoint at the top level.
        **{METRIC_PREFIX + name: float(value) for name, value in (metrics or {}).items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path) as part, named_write_errors(path):
        checkpoint.save(part, metadata=manifest)
    return path


class CheckpointDirectory:
    """The checkpoints of one run, named by step; the last few and the best one are kept.

    Retention, ``latest`` and ``best`` are those of :class:`torchrl.checkpoint.CheckpointRotation`; saving is
    :func:`save_checkpoint`, since the rotation's own ``save`` requires the metric at every save.

    Args:
        directory: directory, which is created at the first save.
        keep_last: number of newest checkpoints to keep, at least 1.
        keep_best: metric whose best checkpoint is also kept, looked up in the metadata of the checkpoints. If it is
            ``"eval/success_once"`` and no checkpoint has it, as for a task without success, ``"eval/return"`` is used.
        mode: ``"max"`` or ``"min"``: whether the best metric is the largest or the smallest.
    """

    def __init__(
        self, directory: str | Path, *, keep_last: int = 2, keep_best: str | None = None, mode: str = "max"
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}.")
        self.directory = Path(directory)
        names = [name for name in (keep_best, SUBSTITUTES.get(keep_best or "")) if name is not None]
        kept: list[Any] = [(METRIC_PREFIX + name, mode) for name in names] or [None]
        self._rotations = [CheckpointRotation(directory, keep_last=keep_last, keep_best=best) for best in kept]
        self._rotation = self._rotations[0]

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of ``step``."""
        return self.directory / f"{self._rotation.prefix}-{step:012d}{SUFFIX}"

    def save(self, step: int, *, counters: Mapping[str, int] | None = None, **parts: Any) -> Path:
        """Write the checkpoint of ``step`` (see :func:`save_checkpoint`) and remove those no longer kept."""
        path = save_checkpoint(self.path(step), counters={**(counters or {}), "step": step}, **parts)
        self._rotation_with_best().prune()
        return path

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None.

        Raises:
            CheckpointError: if the manifest of a file is too large or nested too deeply to be read.
        """
        self._check_manifests()
        return self._rotation.latest()

    def best(self) -> Path | None:
        """Return the checkpoint with the best metric, or None; raises as :meth:`latest` does."""
        self._check_manifests()
        return self._rotation_with_best().best()

    def _rotation_with_best(self) -> CheckpointRotation:
        """Return the rotation of the first metric that a checkpoint has."""
        return next((each for each in self._rotations if each.best() is not None), self._rotation)

    def _check_manifests(self) -> None:
        """Refuse manifests that the rotation could not parse; the rotation itself skips files that are not archives."""
        for path in sorted(self.directory.glob(f"{self._rotation.prefix}-*")):
            require_readable_manifest(path)

    def remove_leftovers(self) -> None:
        """Remove the files left by a killed save; do not call it while another process saves to the directory."""
        for path in self.directory.glob(f".{self._rotation.prefix}-*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
