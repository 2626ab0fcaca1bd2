"""Checks of directories of memory-mapped TensorDicts before TensorDict reads them.

TensorDict's own loader builds any class that the directory names and unpickles every entry that is not a tensor, so an
untrusted directory could run code. A directory that passes these checks holds only plain tensors in plain containers,
and no file that could be read past its end.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_flow.data.checks.json import MAX_DEPTH, read_json
from torchrl_flow.data.errors import DataError, reading
from torchrl_flow.util.files import is_leftover
from torchrl_flow.util.torchrl_compat import file_name_of

__all__ = ["MemmapEntry", "check_memmap", "dtype_of", "list_members", "load_memmap", "require_members", "shape_of"]

HEADER = "meta.json"
_CONTAINER = str(TensorDict)
_CLASS = "tensordict:TensorDict"
_NON_TENSOR = "<class 'tensordict.tensorclass.NonTensorData'>"
_NULL = {"_type": _NON_TENSOR, "data": None, "_is_non_tensor": True, "_metadata": None}
_PICKLES = (".pkl", ".pickle", ".pck", ".pt", ".pth", ".bin", ".dill", ".joblib", ".npy", ".npz", ".t")
_DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that desktop programs create in directories; they are ignored."""
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    )
}


@dataclass(frozen=True)
class MemmapEntry:
    """Shape and type of a tensor on disk, from its header, checked against the size of its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def load_memmap(root: str | Path) -> TensorDict:
    """Check a directory and map it.

    Raises:
        DataError: as :func:`check_memmap` does.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = TensorDict({"x": torch.zeros(2, 3)}, [2]).memmap(folder + "/rows")
        ...     load_memmap(folder + "/rows")["x"].shape
        torch.Size([2, 3])
    """
    check_memmap(root)
    return TensorDict.load_memmap(Path(root), allow_pickle=False)


def check_memmap(
    folder: str | Path, *, root: str | Path | None = None, beside: Collection[str] = (), allow_null: bool = False
) -> dict[tuple[str, ...], MemmapEntry]:
    """Check that a directory holds only a memory-mapped TensorDict of plain tensors.

    Args:
        folder: the directory.
        root: directory that errors name; members are named relative to it. Defaults to ``folder``.
        beside: names of further files that the directory may hold; the caller checks them.
        allow_null: accept entries that are None, as TorchRL's samplers write before the first draw.

    Returns:
        The tensors, by nested key.

    Raises:
        DataError: if there is a link, a pickle, a member that the headers do not list, a class other than TensorDict,
            or a file whose size is not that of its shape and type. The error names directory and member.
    """
    found: dict[tuple[str, ...], MemmapEntry] = {}
    folder = Path(folder)
    _check_table(folder, folder if root is None else Path(root), (), (), found, frozenset(beside), allow_null)
    return found


def list_members(folder: Path, root: Path) -> dict[str, os.DirEntry[str]]:
    """Return the members of a directory by name; links and special files raise an error.

    Files left by desktop programs and killed writers are not listed.

    Args:
        folder: the directory.
        root: directory that errors name; members are named relative to it.

    Raises:
        DataError: if a member is refused or the directory cannot be listed. The error names the member or the
            directory.
    """
    with reading(f"{folder} cannot be listed"), os.scandir(folder) as entries:
        members = {entry.name: entry for entry in entries}
    for name, entry in members.items():
        where = (folder / name).relative_to(root).as_posix()
        if entry.is_symlink():
            raise DataError(f"{root} holds the link {where}, and links are not followed: copy what it points at.")
        if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
            raise DataError(f"{root} holds {where}, which is neither a file nor a directory.")
    return {name: entry for name, entry in members.items() if name not in _DROPPINGS and not is_leftover(name)}


def require_members(members: Collection[str], allowed: Collection[str], folder: Path, root: Path) -> None:
    """Refuse unknown members of a directory; the error for a pickle gives the reason."""
    for name in sorted(set(members) - set(allowed)):
        where = (folder / name).relative_to(root).as_posix()
        if name.endswith(_PICKLES):
            raise DataError(
                f"{root} holds {where}, which may be a pickle. Pickles are not read, since reading one can run code."
            )
        raise DataError(f"{root} holds {where}, which is not part of the format. Remove it if you know what it is.")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return a shape read from JSON, or None if it is not a list of non-negative integers."""
    if not isinstance(value, list) or len(value) > MAX_DEPTH:
        return None
    counts = all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**48 for size in value)
    return tuple(value) if counts and math.prod(value) < 2**60 else None


def dtype_of(name: Any) -> torch.dtype | None:
    """Return the tensor dtype for a name such as ``"torch.float32"``, or None if the name is unknown."""
    return _DTYPES.get(name) if isinstance(name, str) else None


def _check_table(
    folder: Path,
    root: Path,
    prefix: tuple[str, ...],
    batch: tuple[int, ...],
    found: dict[tuple[str, ...], MemmapEntry],
    beside: frozenset[str],
    allow_null: bool,
) -> None:
    if len(prefix) > MAX_DEPTH:
        raise DataError(f"{root} is nested more than {MAX_DEPTH} levels deep.")
    members = list_members(folder, root)
    where = (folder / HEADER).relative_to(root).as_posix()
    if HEADER not in members or not members[HEADER].is_file(follow_symlinks=False):
        raise DataError(f"{root} lacks {where}, the header of a memory-mapped TensorDict.")
    header = read_json(folder / HEADER)
    own_batch = _check_header(header, where, root)
    if own_batch[: len(batch)] != batch:
        raise DataError(f"{root}: {where} gives the shape {list(own_batch)}, which must begin with {list(batch)}.")
    expected = {HEADER, *beside}
    for key, entry in header.items():
        if not isinstance(entry, dict):
            continue
        if "type" in entry:
            name = _member_name(key, "", members)
            expected.add(name)
            if not _is_null(entry, folder / name, root, allow_null):
                _require_container(entry, key, where, root)
                if name not in members or not members[name].is_dir(follow_symlinks=False):
                    raise DataError(f"{root} lacks the directory of {key!r}, which {where} lists.")
                _check_table(folder / name, root, (*prefix, key), own_batch, found, frozenset(), allow_null)
            continue
        name = _member_name(key, ".memmap", members)
        expected.add(name)
        leaf = _check_leaf(entry, key, own_batch, where, root)
        _require_size(members.get(name), leaf, folder / name, root)
        found[(*prefix, key)] = leaf
    require_members(members, expected, folder, root)


def _check_header(header: Any, where: str, root: Path) -> tuple[int, ...]:
    if not isinstance(header, dict):
        raise DataError(f"{root}: {where} must be a JSON object, got {type(header).__name__}.")
    if header.get("_type") != _CONTAINER:
        raise DataError(
            f"{root}: {where} names the class {str(header.get('_type'))[:80]!r}. Plain TensorDicts of tensors alone "
            "are read: other classes can hold pickled data."
        )
    if not re.fullmatch(r"None|[a-z]+(:\d+)?", str(header.get("device"))):
        raise DataError(f"{root}: {where} names the device {str(header.get('device'))[:80]!r}, which is unknown.")
    for key, value in header.items():
        if _is_written_since_0_15(key, value):
            continue
        if key not in ("_type", "device", "shape") and not isinstance(value, dict):
            raise DataError(f"{root}: {where} has the entry {key!r}, which describes no tensor.")
    shape = shape_of(header.get("shape", []))
    if shape is None:
        raise DataError(f"{root}: {where} gives the shape {str(header.get('shape'))[:80]}, which is none.")
    return shape


def _is_written_since_0_15(key: str, value: Any) -> bool:
    """Return whether an entry is one of the two that TensorDict 0.15 adds, with the expected class or version."""
    # True equals 1 but is not a version.
    return (key == "_format_version" and type(value) is int and value == 1) or (key == "_class" and value == _CLASS)


def _member_name(key: str, suffix: str, members: Mapping[str, Any]) -> str:
    """Return the file name of a key: TensorDict encodes characters that a file name cannot have."""
    encoded = file_name_of(key) + suffix
    plain = key + suffix
    # Written before keys were encoded. It is the name of a member, so it cannot point outside the directory.
    return plain if encoded not in members and plain in members else encoded


def _require_container(entry: Mapping[str, Any], key: str, where: str, root: Path) -> None:
    if entry.get("type") != "TensorDict" or set(entry) != {"type"}:
        raise DataError(
            f"{root}: {where} lists {key!r} as {str(entry.get('type'))[:80]!r}. Tensors and plain TensorDicts alone "
            "are read: other classes can hold pickled data."
        )


def _is_null(entry: Mapping[str, Any], folder: Path, root: Path, allow_null: bool) -> bool:
    """Return whether an entry is None, stored as JSON: the only accepted value that is not a tensor."""
    if not allow_null or entry != {"type": "NonTensorData"} or folder.is_symlink() or not folder.is_dir():
        return False
    return set(list_members(folder, root)) == {HEADER} and read_json(folder / HEADER) == _NULL


def _check_leaf(entry: Mapping[str, Any], key: str, batch: tuple[int, ...], where: str, root: Path) -> MemmapEntry:
    shape, dtype = shape_of(entry.get("shape")), dtype_of(entry.get("dtype"))
    if shape is None or dtype is None or not set(entry) <= {"device", "shape", "dtype", "is_nested"}:
        raise DataError(f"{root}: {where} describes {key!r} by {str(dict(entry))[:120]}, which is not a plain tensor.")
    if entry.get("is_nested", False) is not False:
        raise DataError(f"{root}: {where} says that {key!r} is a nested tensor, which is not supported.")
    if shape[: len(batch)] != batch:
        raise DataError(f"{root}: {where} gives {key!r} the shape {list(shape)}, which must begin with {list(batch)}.")
    return MemmapEntry(shape, dtype)


def _require_size(member: os.DirEntry[str] | None, leaf: MemmapEntry, path: Path, root: Path) -> None:
    expected = math.prod(leaf.shape) * leaf.dtype.itemsize
    where = path.relative_to(root).as_posix()
    if member is None:
        if expected == 0:  # nothing to store: TensorDict writes no file
            return
        raise DataError(f"{root}: {where} is missing and should have {expected} bytes.")
    if not member.is_file(follow_symlinks=False):
        raise DataError(f"{root}: {where} is not a file.")
    size = member.stat(follow_symlinks=False).st_size
    if size != expected:
        raise DataError(
            f"{root}: {where} has {size} bytes and should have {expected}, for the shape {list(leaf.shape)} of "
            f"{leaf.dtype}."
        )
