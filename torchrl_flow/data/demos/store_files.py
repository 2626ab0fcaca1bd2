"""Checks of a demo store's files against its metadata before they are mapped."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.memmap import (
    MemmapEntry,
    check_memmap,
    dtype_of,
    list_members,
    require_members,
    shape_of,
)
from torchrl_flow.data.demos.writer import FORMAT, METADATA, VERSION
from torchrl_flow.data.errors import DataError, reading
from torchrl_flow.util.digest import file_digest, json_digest
from torchrl_flow.util.files import write_json
from torchrl_flow.util.numbers import first_implausible

__all__ = ["TABLES", "check_files", "damaged", "read_metadata"]

TABLES = ("frames", "steps", "episodes")
"""Names of a store's directories."""
_ROWS = 65536
"""Rows whose numbers are checked at once, which bounds the memory."""


def read_metadata(root: Path) -> dict[str, Any]:
    """Return the metadata of a store.

    Raises:
        DataError: if the metadata is missing, belongs to another format or version, or was changed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such directory: make the store first, or correct the path.")
    if not os.path.lexists(root / METADATA):
        raise DataError(f"{root} is not a demo store: it has no {METADATA}. Give another directory.")
    try:
        metadata = read_json(root / METADATA)
    except DataError as error:
        raise damaged(root, f"{METADATA} cannot be read: {error}") from error
    found = metadata.get("format") if isinstance(metadata, dict) else type(metadata).__name__
    if found != FORMAT:
        raise DataError(f"{root} is not a demo store: its {METADATA} says format {found!r}, not {FORMAT!r}.")
    if metadata.get("version") != VERSION:
        raise DataError(
            f"{root} is a demo store of version {metadata.get('version')!r}, and this library reads {VERSION}: "
            "make it again."
        )
    # Older stores have no digest of their metadata.
    if "digest" in metadata and metadata["digest"] != json_digest(metadata, without=("digest", "changed_ns")):
        raise damaged(root, f"{METADATA} was changed since it was written")
    return metadata


def check_files(root: Path, metadata: Mapping[str, Any], verify: bool | None) -> None:
    """Check a store's files against its metadata; see :meth:`DemoStore.open <torchrl_flow.data.DemoStore.open>`.

    Raises:
        DataError: if the check fails. The error names the store and the reason.
    """
    with reading(f"{root} cannot be read"):
        _check_files(root, metadata, verify)


def _check_files(root: Path, metadata: Mapping[str, Any], verify: bool | None) -> None:
    unread = _check_shapes(root, metadata)
    if verify is False:
        return
    known = metadata.get("changed_ns")
    known = known if isinstance(known, dict) else {}
    if verify is None:
        unread = {name: sha256 for name, sha256 in unread.items() if known.get(name) != _changed_ns(root, name)}
    before = {name: _changed_ns(root, name) for name in unread}
    for name, sha256 in unread.items():
        if _digest(root, name) != sha256:
            raise damaged(root, f"the checksum of {name}.memmap differs")
        _require_plausible(root, name, metadata)
    if any(known.get(name) != changed for name, changed in before.items()):
        # Opening the store again then skips these files. A store without write permission is read each time.
        with contextlib.suppress(OSError):
            write_json(root / METADATA, {**metadata, "changed_ns": {**known, **before}}, indent=1)


def _changed_ns(root: Path, name: str) -> int:
    path = root / f"{name}.memmap"
    return path.stat().st_mtime_ns if path.exists() else -1


def _digest(root: Path, name: str) -> str:
    path = root / f"{name}.memmap"
    # An empty tensor may have no file.
    return file_digest(path) if path.exists() else hashlib.sha256().hexdigest()


def _require_plausible(root: Path, name: str, metadata: Mapping[str, Any]) -> None:
    """Refuse numbers that no store of this library holds: another program may write them with valid checksums."""
    table, key = name.split("/", 1)
    entry, path = _described(metadata["columns"][table][key]), root / f"{name}.memmap"
    if entry is None or not entry.dtype.is_floating_point or not math.prod(entry.shape) or not path.exists():
        return
    values = torch.from_file(str(path), size=math.prod(entry.shape), dtype=entry.dtype).reshape(entry.shape)
    first = 0
    for rows in values.split(_ROWS):
        found = first_implausible(rows)
        if found is not None:
            (row, *_), what = found
            raise DataError(
                f"{root}: `{key}` is {what} (first at row {first + row} of {table}). Remove its episode, or make the "
                "store anew."
            )
        first += len(rows)


def _check_shapes(root: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Check names, shapes and sizes; return the expected checksum of each file."""
    columns, sums = metadata.get("columns"), {}
    if not isinstance(columns, dict) or set(columns) != set(TABLES):
        raise damaged(root, f"{METADATA} does not list its columns")
    require_members(list_members(root, root), (METADATA, *TABLES), root, root)
    for table, entries in columns.items():
        try:
            found = check_memmap(root / table, root=root)
        except DataError as error:
            raise damaged(root, str(error).removeprefix(f"{root}").lstrip(": ").rstrip(".")) from error
        described = {"/".join(key): entry for key, entry in found.items()}
        unnamed = any("/" in part for key in found for part in key)
        if unnamed or not isinstance(entries, dict) or set(entries) != set(described):
            raise damaged(root, f"{table} holds {sorted(described)}, and {METADATA} lists {sorted(entries)}")
        for key, entry in entries.items():
            expected = _described(entry)
            if expected != described[key]:
                raise damaged(root, f"{table}/{key} is {described[key]} on disk and {entry} in {METADATA}")
            sums[f"{table}/{key}"] = entry["sha256"]
    return sums


def _described(entry: Any) -> MemmapEntry | None:
    shape, dtype = (shape_of(entry.get("shape")), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
    kind = dtype_of(f"torch.{dtype}")
    if shape is None or kind is None or not isinstance(entry.get("sha256"), str):
        return None
    return MemmapEntry(shape, kind)


def damaged(root: Path, reason: str) -> DataError:
    """Return the error for a damaged store."""
    return DataError(f"{root} is a damaged demo store: {reason}. Remove the directory and make it anew.")
