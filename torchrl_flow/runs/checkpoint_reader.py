"""Reader of checkpoints, which loads the manifest at once and other parts on demand."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import Checkpoint, CheckpointAdapter, CheckpointError, GlobalRNGState

from torchrl_flow.runs.checkpoint import FORMAT, FORMAT_VERSION, CheckpointDirectory, as_json
from torchrl_flow.runs.checkpoint_check import (
    METRIC_PREFIX,
    CheckedDumpAdapter,
    CheckedStateDictAdapter,
    check_checkpoint,
    check_manifest_fields,
    require_archive,
    require_same_shapes,
)
from torchrl_flow.runs.names import SUFFIX, Which
from torchrl_flow.training.finite import buffers_of, require_finite
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.task_info import TaskInfo

_KINDS = {"module": "role", "optimizer": "optimiser", "state": "state"}

__all__ = ["TrainingCheckpoint", "latest_checkpoint", "load_checkpoint", "require_task"]


class _Receiver:
    """Placeholder that stores a state dict, so that a part can be read without its object."""

    state: Any = None

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


class TrainingCheckpoint:
    """A checkpoint file, whose manifest is read at once and whose tensors on demand.

    Use :func:`load_checkpoint` to open one. No code from the file is executed: its members are checked before they are
    unpacked, and tensors are read with ``weights_only=True``.

    Args:
        path: the file.
        manifest: manifest written by TorchRL's ``Checkpoint``.
        map_location: device of the tensors; None for the device that they were saved from.

    Raises:
        CheckpointError: if the manifest lacks a field, or its task has a field that is not allowed.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], map_location: Any = None) -> None:
        check_manifest_fields(manifest, path)
        self.path = path
        self.map_location = map_location
        self.created_at: str = manifest["created_at"]
        self._components: Mapping[str, Any] = manifest["components"]
        own = manifest["metadata"]
        self.config: dict[str, Any] = own["config"]
        self.task = _task_of(own["task"], path)
        self.actor_config: dict[str, Any] = own["actor_config"]
        self.counters: dict[str, int] = own["counters"]
        self.metadata: dict[str, Any] = own["metadata"]
        self.versions: dict[str, str] = own["versions"]
        self.metrics: dict[str, float] = {
            key.removeprefix(METRIC_PREFIX): value for key, value in own.items() if key.startswith(METRIC_PREFIX)
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, step={self.step}, roles={self.roles})"

    @property
    def step(self) -> int:
        """The counter ``step``, or 0 if it is missing."""
        return self.counters.get("step", 0)

    @property
    def run_directory(self) -> Path:
        """Directory of the run that wrote the checkpoint, or that of the file if it is not in a run's directory."""
        folder = self.path.parent
        return folder.parent if folder.name == "checkpoints" else folder

    @property
    def module_configs(self) -> dict[str, Any]:
        """Descriptions from which the modules other than the actor are rebuilt, by role."""
        return self.metadata.get("module_configs", {})

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the modules."""
        return self._names("module")

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names of the optimisers."""
        return self._names("optimizer")

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the other objects with a state."""
        return self._names("state")

    @property
    def has_rng(self) -> bool:
        """Whether the checkpoint has the state of the global generators."""
        return "rng" in self._components

    def _names(self, group: str) -> tuple[str, ...]:
        prefix = f"{group}."
        return tuple(sorted(key.removeprefix(prefix) for key in self._components if key.startswith(prefix)))

    def state_dict(self, role: str) -> dict[str, Any]:
        """Return the state dict of the module with this role.

        Raises:
            CheckpointError: if the role is missing (the error names the existing roles), the state dict holds values
                that are not finite, or the file is damaged.
        """
        return self._read("module", role)

    def optimizer_state_dict(self, name: str) -> dict[str, Any]:
        """Return the state dict of the optimiser of this name; raises as :meth:`state_dict` does."""
        return self._read("optimizer", name)

    def _read(self, group: str, name: str) -> dict[str, Any]:
        receiver = _Receiver()
        self._restore_into({(group, name): receiver})
        return receiver.state

    def restore(
        self,
        *,
        modules: Mapping[str, Any] | None = None,
        optimizers: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        rng: bool = False,
    ) -> int:
        """Load parts into existing objects; change none of them if a part is missing or not finite.

        Args:
            modules: modules by role; roles that are not named are ignored.
            optimizers: optimisers by name.
            state: other objects by name.
            rng: restore the state of the global generators. Do it last, when everything else is built.

        Returns:
            The step of the checkpoint.

        Raises:
            CheckpointError: if a part is missing (the error names the existing parts), a module or optimiser holds
                values that are not finite (the error names the entry), or a part does not match its object or is
                damaged.
        """
        parts: dict[tuple[str, str], Any] = {}
        for group, given in (("module", modules), ("optimizer", optimizers), ("state", state)):
            parts |= {(group, name): part for name, part in (given or {}).items()}
        if rng and not self.has_rng:
            raise CheckpointError(
                f"{self.path} has no state of the random generators, which an exact resumption needs."
            )
        self._restore_into(parts)
        if rng:
            self._load({"rng": GlobalRNGState()}, map_location="cpu")
        return self.step

    def _restore_into(self, parts: Mapping[tuple[str, str], Any]) -> None:
        for group, name in parts:
            if f"{group}.{name}" not in self._components:
                kind = _KINDS[group]
                there = ", ".join(self._names(group)) or "none"
                raise CheckpointError(f"{self.path} holds no {kind} {name!r}; it holds: {there}.")
        self._load({f"{group}.{name}": part for (group, name), part in parts.items()}, self.map_location)

    def _load(self, components: Mapping[str, Any], map_location: Any) -> None:
        _check_members(self.path)  # again, since the file may have been replaced
        dumped = {
            name for name in components if self._components[name]["adapter"] != CheckedStateDictAdapter.adapter_id
        }
        # All tensors are read and checked before any object is touched.
        receivers = {name: _Receiver() for name in components if name not in dumped}
        self._read_components(receivers, CheckedStateDictAdapter(), map_location)
        for name, receiver in receivers.items():
            group, _, part = name.partition(".")
            if group in ("module", "optimizer"):
                unbounded = buffers_of(components[name])
                require_finite(receiver.state, f"{_KINDS[group]} {part!r}", self.path, unbounded=unbounded)
            if group == "module":
                require_same_shapes(self.path, part, receiver.state, components[name])
        for name, receiver in receivers.items():
            try:
                components[name].load_state_dict(receiver.state)
            except Exception as error:
                raise CheckpointError(f"{self.path}: Failed to load checkpoint component {name!r}: {error}") from error
        self._read_components({name: components[name] for name in dumped}, CheckedDumpAdapter(), map_location)

    def _read_components(self, components: Mapping[str, Any], adapter: CheckpointAdapter, map_location: Any) -> None:
        if not components:
            return
        checkpoint = Checkpoint()
        for name, component in components.items():
            checkpoint.register(name, component, adapter=adapter)
        try:
            checkpoint.load(self.path, map_location=map_location)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, NotImplementedError) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}.") from error


def _task_of(found: Mapping[str, Any], path: Path) -> TaskInfo:
    try:
        return TaskInfo.of_file(found)
    except ValueError as error:
        raise CheckpointError(f"{path}: the manifest's 'task' cannot be read: {error}") from error


def load_checkpoint(
    path: str | Path, *, which: Which = "last", map_location: str | torch.device | None = "cpu"
) -> TrainingCheckpoint:
    """Open a checkpoint file; if it is not a checkpoint, the error names the reason.

    Args:
        path: file written by :func:`save_checkpoint`, or the directory of a run.
        which: which checkpoint of a run to open: ``"last"``, or ``"best"`` by the metric whose best checkpoint the run
            keeps (the last one if the run keeps no best one).
        map_location: device of the tensors; None for the device that they were saved from.

    Raises:
        ValueError: if ``which`` has another value.
        FileNotFoundError: if there is no checkpoint.
        CheckpointError: if the file is empty, truncated, from another program, of another version of the format, or has
            members that are not allowed in a checkpoint (see ``docs/security.md``).
    """
    if which not in ("last", "best"):
        raise ValueError(f"which must be 'last' or 'best', got {which!r}.")
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        newest = latest_checkpoint(path)
        if newest is None:
            raise FileNotFoundError(f"There is no checkpoint (*{SUFFIX}) in {path}.")
        path = (_best_checkpoint(newest) or newest) if which == "best" else newest
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}: give a .torchrl file, or the directory of a run.")
    require_archive(path)
    try:
        manifest = Checkpoint.manifest(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a checkpoint of torchrl_flow: {error}") from error
    own = manifest.get("metadata")
    own = own if isinstance(own, dict) else {}
    if own.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a TorchRL checkpoint, but not one of torchrl_flow: its format is "
            f"{own.get('format')!r}, not {FORMAT!r}."
        )
    version = own.get("format_version")
    if version != FORMAT_VERSION:
        versions = own.get("versions")
        made_by = versions.get("torchrl_flow") if isinstance(versions, dict) else "an unknown version"
        raise CheckpointError(
            f"{path} has version {version!r} of the checkpoint format, this torchrl_flow reads version "
            f"{FORMAT_VERSION}; it was written by torchrl_flow {made_by}."
        )
    _check_members(path)
    return TrainingCheckpoint(path, manifest, map_location)


def _check_members(path: Path) -> None:
    try:
        check_checkpoint(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """Return the newest checkpoint in ``run_dir/checkpoints``, else in ``run_dir``, or None."""
    run_dir = Path(run_dir)
    for directory in (run_dir / "checkpoints", run_dir):
        newest = CheckpointDirectory(directory).latest()
        if newest is not None:
            return newest
    return None


def _best_checkpoint(newest: Path) -> Path | None:
    """Return the best checkpoint in the newest one's directory, by the metric that the newest one names, or None."""
    metric = load_checkpoint(newest).metadata.get("keep_best")
    return None if metric is None else CheckpointDirectory(newest.parent, keep_best=metric).best()


def require_task(
    checkpoint: TrainingCheckpoint,
    task_info: Mapping[str, Any],
    *,
    ignore: Collection[str] = ("max_episode_steps", "num_envs", "reward_mode", "sim_backend"),
    optional: Collection[str] = ("state_dim", "pixels_size", "action_dim"),
) -> None:
    """Refuse a checkpoint that was made for another task, naming both values of each field that differs.

    Args:
        checkpoint: the checkpoint.
        task_info: identity of the current task (:func:`~torchrl_flow.envs.task_info` of an environment), or a mapping
            of the fields to compare.
        ignore: fields that may differ, since a policy does not depend on them.
        optional: fields that the checkpoint may lack, since older checkpoints do not record them.

    Raises:
        CheckpointError: if a field of ``task_info`` differs from the checkpoint's, or is missing there.
    """
    wanted = as_json("task_info", TaskInfo.of(task_info))
    recorded = [name for name in wanted if name in checkpoint.task or name not in optional]
    names = [name for name in recorded if name not in ignore]
    differing = differing_fields(checkpoint.task, wanted, names, absent="not recorded")
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} was made for another task. {'; '.join(differing)}. Give a checkpoint of this task, or "
            "the task of the checkpoint."
        )
