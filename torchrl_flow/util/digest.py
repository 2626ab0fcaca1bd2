"""Hashes of networks and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["file_digest", "json_digest", "module_digest"]


def module_digest(module: nn.Module, *, layout: bool = True) -> str:
    """Return the SHA-256 of a module's state dict: names, shapes, types and bits.

    Args:
        module: the network.
        layout: include shapes and types in the hash. False hashes only names and bits, as in files of slates.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(1, 1)
        >>> before = module_digest(layer)
        >>> _ = layer.bias.data.add_(1.0)
        >>> module_digest(layer) == before
        False
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update((f"{name} {value.dtype} {tuple(value.shape)}" if layout else name).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def json_digest(content: Mapping[str, Any], *, without: Collection[str] = ("digest",)) -> str:
    """Return the SHA-256 of a JSON object, independent of indentation and field order.

    Args:
        content: plain values, as read from JSON.
        without: fields that are not hashed, such as the field that holds the digest.

    Examples:
        >>> json_digest({"a": [1.5], "digest": "x"}) == json_digest({"a": [1.5]})
        True
    """
    own = {name: value for name, value in content.items() if name not in without}
    return hashlib.sha256(json.dumps(own, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
