"""State dicts without NaN and infinities."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.checkpoint import CheckpointError

__all__ = ["non_finite_entry", "require_finite"]


def non_finite_entry(state: Any, *, unbounded: Collection[str] = (), prefix: str = "") -> str | None:
    """Return the name of the first entry of a state dict that holds NaN or an infinity, or None.

    Args:
        state: tensors in mappings and sequences.
        unbounded: names of entries that may hold infinities. The sides of an action's bounds (``action_low``,
            ``action_high``) are infinite where there is no bound, and may be so anyway.
        prefix: put before the names.

    Examples:
        >>> layer = torch.nn.Linear(1, 1)
        >>> non_finite_entry(layer.state_dict()) is None
        True
        >>> _ = layer.bias.data.fill_(torch.nan)
        >>> non_finite_entry(layer.state_dict())
        'bias'
    """
    if isinstance(state, Tensor):
        return None if _is_sound(state, prefix, prefix in unbounded) else prefix
    if isinstance(state, Mapping):
        items = ((str(key), value) for key, value in state.items())
    elif isinstance(state, (list, tuple)):
        items = ((str(key), value) for key, value in enumerate(state))
    else:
        return prefix if isinstance(state, float) and state != state else None
    names = ((f"{prefix}.{key}" if prefix else key, value) for key, value in items)
    found = (non_finite_entry(value, unbounded=unbounded, prefix=name) for name, value in names)
    return next((name for name in found if name is not None), None)


def _is_sound(value: Tensor, name: str, unbounded: bool) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    if value.is_meta:
        return False
    if value.layout == torch.strided:
        # One of the elements that an expanded dimension repeats is enough: a small file may claim a huge tensor.
        for dim, stride in enumerate(value.stride()):
            if stride == 0 and value.shape[dim] > 1:
                value = value.narrow(dim, 0, 1)
        if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 1):
            return False
    if unbounded:
        return not bool(value.isnan().any())
    last = name.rsplit(".", 1)[-1]
    if last in ("action_low", "action_high"):
        wrong = torch.inf if last == "action_low" else -torch.inf
        return not bool((value.isnan() | (value == wrong)).any())
    return bool(value.isfinite().all())


def require_finite(state: Any, what: str, path: Path, *, unbounded: Collection[str] = ()) -> None:
    """Refuse a state dict that holds NaN or an infinity.

    Args:
        state: the state dict.
        what: ``role 'policy'`` or the like, for the error.
        path: the file that it is of.
        unbounded: names of entries that may hold infinities.

    Raises:
        CheckpointError: naming role, entry and file.
    """
    entry = non_finite_entry(state, unbounded=unbounded)
    if entry is not None:
        raise CheckpointError(
            f"{path}: {what} holds values that are not finite in {entry!r}: the training that wrote it had failed. "
            "Take an earlier checkpoint."
        )
