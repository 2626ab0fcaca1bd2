"""Checks of checkpoint files before TorchRL unpacks them, and adapters that read components without running code."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor
from torchrl.checkpoint import CheckpointError, DumpLoadCheckpointAdapter, StateDictCheckpointAdapter

from torchrl_flow.data.checks.archive import check_zip, load_torch
from torchrl_flow.data.checks.json import MAX_JSON_BYTES, parse_json, read_json
from torchrl_flow.data.checks.replay import PREFETCH, check_dump, is_empty_prefetch
from torchrl_flow.data.errors import DataError

__all__ = [
    "CheckedDumpAdapter",
    "CheckedStateDictAdapter",
    "building",
    "check_checkpoint",
    "check_manifest_fields",
    "read_manifest",
    "require_archive",
    "require_readable_manifest",
    "require_same_shapes",
]

MANIFEST = "manifest.json"
METRIC_PREFIX = "metric/"
_STATE = StateDictCheckpointAdapter.state_torch
_FIELDS: Mapping[str, type] = {
    "config": dict,
    "task": dict,
    "actor_config": dict,
    "counters": dict,
    "metadata": dict,
    "versions": dict,
}


def require_archive(path: Path) -> None:
    """Refuse a file that is not an archive of TorchRL's ``Checkpoint``; the error describes the apparent format.

    Raises:
        CheckpointError: if the file is empty, truncated or of another format. The error names the file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: a checkpoint is a single regular file.")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): it was not written completely.")
    with path.open("rb") as file:
        header = file.read(30)
        first_name = file.read(int.from_bytes(header[26:28], "little"))
    if header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint: it is not a zip archive (it starts with {header[:4]!r}).")
    damaged = f"{path} is truncated or damaged ({size} bytes)"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            manifest = read_manifest(archive, path) if MANIFEST in names else None
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{damaged}: {error}.") from error
    # torch.save also writes archives: a truncated checkpoint looks like the last one inside of it.
    if first_name.decode("utf-8", "replace") not in names:
        raise CheckpointError(f"{damaged}: its table of contents is missing.")
    if manifest is None:
        hint = " It looks like a file of torch.save." if any(name.endswith("/data.pkl") for name in names) else ""
        raise CheckpointError(f"{path} is not a checkpoint: a zip archive without manifest.json.{hint}")


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Check a checkpoint's table of contents and manifest, and return the manifest.

    The archive must hold, uncompressed, exactly the manifest and the files that it lists for its components. A state
    dict component consists only of its ``state.pt``.

    Raises:
        CheckpointError: if the check fails. The error names the file and the member or field.
        zipfile.BadZipFile: if the file is not a zip archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = check_zip(archive, str(path), compressed=False)
            manifest = read_manifest(archive, path)
            if not isinstance(manifest.get("components"), dict):
                raise DataError(f"{path}: {MANIFEST} lists no components.")
            listed = {MANIFEST}
            for name, record in manifest["components"].items():
                listed |= set(_component_files(name, record, path))
            for member in members:
                if member not in listed:
                    raise DataError(f"{path} has the member {member!r}, which its manifest does not list.")
            for member in sorted(listed - set(members)):
                raise DataError(f"{path} lacks the member {member!r}, which its manifest lists.")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return manifest


def require_readable_manifest(path: Path) -> None:
    """Refuse a file or a directory whose manifest is too large or nested too deeply to be parsed.

    Other damage is detected when the file is opened.

    Raises:
        CheckpointError: if the check fails. The error names the file.
    """
    try:
        if path.is_dir():
            if (path / MANIFEST).is_file():
                read_json(path / MANIFEST)
            return
        with zipfile.ZipFile(path) as archive:
            if MANIFEST in archive.namelist():
                read_manifest(archive, path)
    except DataError as error:
        if not isinstance(error.__cause__, ValueError):
            raise CheckpointError(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError):
        return


def read_manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """Return the manifest of an archive.

    Raises:
        DataError: if the manifest is missing, too large, nested too deeply or not a JSON object. The error names the
            file.
    """
    if MANIFEST not in archive.namelist():
        raise DataError(f"{path} is not a checkpoint: a zip archive without {MANIFEST}.")
    size = archive.getinfo(MANIFEST).file_size
    if size > MAX_JSON_BYTES:
        raise DataError(f"{path}: {MANIFEST} has {size} bytes, more than {MAX_JSON_BYTES}.")
    manifest = parse_json(archive.read(MANIFEST), f"{path}: {MANIFEST}")
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: {MANIFEST} must be a JSON object, got {type(manifest).__name__}.")
    return manifest


def _component_files(name: str, record: Any, path: Path) -> Iterator[str]:
    where = f"{path}: component {name!r}"
    folder = record.get("path") if isinstance(record, dict) else None
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(folder, str) or not isinstance(files, list) or not all(isinstance(f, str) for f in files):
        raise DataError(f"{where} must give its path and files in the manifest.")
    if record.get("adapter") == StateDictCheckpointAdapter.adapter_id:
        if files != [_STATE]:
            raise DataError(f"{where} must consist of {_STATE} alone, got {files[:6]}: nothing else is read.")
    elif record.get("adapter") != DumpLoadCheckpointAdapter.adapter_id or not name.startswith("state."):
        raise DataError(f"{where} has the adapter {str(record.get('adapter'))[:80]!r}, which is not supported.")
    for file in files:
        member = f"{folder}/{file}"
        parts = PurePosixPath(member).parts
        if member != "/".join(parts) or parts[0] != "components" or ".." in parts:
            raise DataError(f"{where} lists {member!r}, which is outside of components/.")
        yield member


def check_manifest_fields(manifest: Mapping[str, Any], path: Path) -> None:
    """Validate that a manifest has the fields of a checkpoint of this package.

    Raises:
        CheckpointError: if the check fails. The error names the field.
    """
    own = manifest["metadata"]
    for field, kind in _FIELDS.items():
        if not isinstance(own.get(field), kind):
            found = type(own[field]).__name__ if field in own else "nothing"
            raise CheckpointError(f"{path}: the manifest's {field!r} must be an object, got {found}.")
    if not isinstance(manifest.get("created_at"), str):
        raise CheckpointError(f"{path}: the manifest's 'created_at' must be a text.")
    for name, count in own["counters"].items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise CheckpointError(f"{path}: the counter {name!r} must be a whole number from 0 on, got {count!r}.")
    for name, value in own.items():
        if name.startswith(METRIC_PREFIX) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise CheckpointError(f"{path}: {name!r} of the manifest must be a number, got {str(value)[:80]!r}.")
    configs = own["metadata"].get("module_configs", {})
    if not isinstance(configs, dict):
        raise CheckpointError(f"{path}: the manifest's 'module_configs' must be an object.")


@contextmanager
def building(path: Path, field: str) -> Iterator[None]:
    """Add the file and the field to the error if a network cannot be built from its description.

    Args:
        path: path of the checkpoint.
        field: field of the manifest that describes the network.

    Raises:
        CheckpointError: instead of an error about types, values or missing fields.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, MemoryError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(f"{path}: no network can be built from {field!r} ({reason}).") from error


def require_same_shapes(path: Path, role: str, state: Mapping[str, Any], network: Any) -> None:
    """Raise an error for the weights of another network, such as a critic with another number of members.

    Args:
        path: checkpoint file, for the error.
        role: name of the network in the checkpoint.
        state: state dict in the checkpoint.
        network: network that the state dict is loaded into, or another object with a state dict.

    Raises:
        CheckpointError: if an entry of both has another shape. Names that one of them lacks are left to
            ``load_state_dict``, which knows the names of earlier versions.
    """
    own = network.state_dict() or {}  # A receiver that only collects the entries has none.
    unequal = [
        f"{name} {list(value.shape)} in the file, {list(own[name].shape)} in the network"
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor) and value.shape != own[name].shape
    ]
    if unequal:
        more = f" (and {len(unequal) - 1} more entries)" if len(unequal) > 1 else ""
        raise CheckpointError(
            f"{path}: module.{role} does not fit, size mismatch: {unequal[0]}{more}. Build the network from the "
            "configuration in the checkpoint (`actor_config` or `module_configs`)."
        )


@contextmanager
def _named_as(path: Path) -> Iterator[None]:
    """Make errors name a component by its path in the archive, not by the path where TorchRL unpacks it."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(path), f"components/{path.name}")) from error


class CheckedStateDictAdapter(StateDictCheckpointAdapter):
    """Adapter with one ``torch.save`` file for each component, which is read only with ``weights_only=True``.

    TorchRL's default writes one file per tensor, hundreds for an optimiser, which has no benefit inside an archive. If
    a component has no ``state.pt``, its ``load`` uses a loader that unpickles.
    """

    def __init__(self) -> None:
        super().__init__(payload_format="torch")

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Read ``state.pt`` and load it into the component."""
        with _named_as(path):
            state = load_torch(path / self.state_torch, map_location=map_location)
        component.load_state_dict(state, *args, **kwargs)


class CheckedDumpAdapter(DumpLoadCheckpointAdapter):
    """Adapter for the dump of a replay buffer; its files are checked after writing and before reading."""

    def save(self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Write the component; its files must pass the checks of :meth:`load`."""
        result = super().save(component, path, args=args, kwargs=kwargs)
        if is_empty_prefetch(path / PREFETCH):
            (path / PREFETCH).unlink()
        try:
            check_dump(path)
        except DataError as error:
            raise ValueError(
                f"the dump of a {type(component).__name__} could not be read again: {error} TorchRL pickles "
                "prefetched batches: make a stock buffer with prefetch=None."
            ) from error
        return result

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Check every file and let the component read them."""
        with _named_as(path):
            check_dump(path)
            component.load(path, *args, **kwargs)
