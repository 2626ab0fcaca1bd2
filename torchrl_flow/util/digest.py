"""Hashes of networks and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["file_digest", "module_digest"]


def module_digest(module: nn.Module, *, layout: bool = True) -> str:
    """Return the SHA-256 of a module's state dict: names, shapes, types and every bit of it.

    Args:
        module: the network.
        layout: shapes and types are part of the hash; without them it is that of names and bits, which files of
            slates carry.

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


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
