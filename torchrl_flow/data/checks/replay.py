"""Checks of the directories that TorchRL's replay buffers dump, before they are read.

TorchRL unpickles ``prefetch.pkl``, reads ``torch.save`` files of samplers and transforms, and maps files with the sizes
given in JSON files. Each file is checked by its kind, and a file of another kind is refused.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

from torchrl_flow.data.checks.archive import load_torch
from torchrl_flow.data.checks.json import MAX_DEPTH, read_json
from torchrl_flow.data.checks.memmap import HEADER, check_memmap, dtype_of, list_members, require_members, shape_of
from torchrl_flow.data.errors import DataError

__all__ = ["PREFETCH", "check_dump", "is_empty_prefetch"]

PREFETCH = "prefetch.pkl"
_TORCH = (".pt", ".t")
_BESIDE = ("storage_metadata.json",)
"""Further files that TorchRL writes into the directory of a memory-mapped TensorDict."""


def check_dump(root: str | Path) -> None:
    """Check the directory of a dumped replay buffer, storage, sampler or writer.

    Args:
        root: the directory.

    Raises:
        DataError: if there is a link, a pickle, a class other than TensorDict, a ``torch.save`` file with more than
            tensors and plain values, a file whose size is not that of its shape and type, or a file of an unknown kind.
            The error names directory and member.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such directory.")
    _check_folder(root, root, 0)


def is_empty_prefetch(path: Path) -> bool:
    """Return whether a ``prefetch.pkl`` is, byte for byte, the pickle of an empty queue."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 256:
        return False
    content = path.read_bytes()
    capacity = re.search(rb"capacity\x94(?:K(.)|M(..))\x8c", content, flags=re.DOTALL)
    if capacity is None:
        return False
    state = {"version": 1, "capacity": int.from_bytes(capacity[1] or capacity[2], "little"), "queue": ()}
    return any(content == pickle.dumps(state, protocol) for protocol in (4, 5))


def _check_folder(folder: Path, root: Path, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise DataError(f"{root} is nested more than {MAX_DEPTH} levels deep.")
    members = list_members(folder, root)
    files = {name for name, entry in members.items() if entry.is_file(follow_symlinks=False)}
    for name in sorted(files):
        if name.endswith(".json"):
            _check_json(folder / name, root)
    if HEADER in members:
        check_memmap(folder, root=root, beside=_BESIDE, allow_null=True)
        return
    sizes = _sizes_from_json(folder, files)
    for name in sorted(files):
        path = folder / name
        if name == PREFETCH and is_empty_prefetch(path):
            continue
        if name in sizes:
            if path.stat().st_size != sizes[name]:
                where = path.relative_to(root).as_posix()
                raise DataError(f"{root}: {where} has {path.stat().st_size} bytes and should have {sizes[name]}.")
        elif name.endswith(_TORCH):
            load_torch(path)
        elif not name.endswith(".json"):
            require_members([name], (), folder, root)
    for name in sorted(set(members) - files):
        _check_folder(folder / name, root, depth + 1)


def _sizes_from_json(folder: Path, files: set[str]) -> dict[str, int]:
    """Return the sizes, from TorchRL's JSON files, of the files that TorchRL maps."""
    sizes: dict[str, int] = {}
    if "sampler_metadata.json" in files:
        sampler = read_json(folder / "sampler_metadata.json")
        rows = shape_of([sampler.get("_max_capacity")]) if isinstance(sampler, dict) else None
        if rows is not None:
            sizes |= dict.fromkeys(("sumtree.memmap", "mintree.memmap"), 8 * rows[0])
    if "metadata.json" in files:
        writer = read_json(folder / "metadata.json")
        if isinstance(writer, dict):
            for name, prefix in (("generation.memmap", "generation_"), ("current_top_values.memmap", "")):
                sizes |= _size(name, writer.get(f"{prefix}shape"), writer.get(f"{prefix}dtype"))
    if "storage_metadata.json" in files:
        storage = read_json(folder / "storage_metadata.json")
        leaves = storage.get("metadata") if isinstance(storage, dict) else None
        for name, leaf in (leaves if isinstance(leaves, dict) else {}).items():
            if isinstance(leaf, dict):
                sizes |= _size(f"{name}.memmap", leaf.get("shape"), leaf.get("dtype"))
    return sizes


def _size(name: str, shape: Any, dtype: Any) -> dict[str, int]:
    counts, kind = shape_of(shape), dtype_of(dtype)
    return {} if counts is None or kind is None else {name: math.prod(counts) * kind.itemsize}


def _check_json(path: Path, root: Path) -> None:
    """Refuse JSON with unknown type names, which TorchRL's storage of compressed items would pass to ``eval``."""
    level = [read_json(path)]
    while level:
        for item in level:
            if isinstance(item, dict) and item.get("__type__") == "torch.dtype" and dtype_of(item.get("value")) is None:
                where = path.relative_to(root).as_posix()
                raise DataError(f"{root}: {where} names the type {str(item.get('value'))[:80]!r}, which is unknown.")
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
