"""Checks of arguments; each error is one sentence with the argument's name, its allowed values and its value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_at_least", "check_fraction", "check_mask", "check_one_of", "check_positive", "check_same_shape"]
__all__ += ["check_shape", "listed"]


def listed(shape: Sequence[int]) -> str:
    """Format a shape as in docstrings, ``[2, 3]``."""
    return str(list(shape))


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise an error for a name that is not allowed."""
    if value not in allowed:
        names = [repr(one) for one in allowed]
        raise ValueError(f"{name} must be {', '.join(names[:-1])} or {names[-1]}, got {value!r}.")


def check_at_least(name: str, value: float, low: float) -> None:
    """Raise an error for a number below a bound."""
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")


def check_positive(name: str, value: float, none: str = "") -> None:
    """Raise an error for a number that is not above 0; ``none`` is the meaning of None in the message, if allowed."""
    if value <= 0:
        raise ValueError(f"{name} must be above 0{none and f', or None for {none}'}, got {value}.")


def check_fraction(name: str, value: float) -> None:
    """Raise an error for a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}.")


def check_same_shape(layout: str, ndim: int = 0, **tensors: Tensor) -> None:
    """Raise an error for tensors of different shapes or with fewer than ``ndim`` dimensions; nothing is broadcast."""
    shapes = [tensor.shape for tensor in tensors.values()]
    if any(shape != shapes[0] for shape in shapes) or len(shapes[0]) < ndim:
        names, given = list(tensors), ", ".join(listed(shape) for shape in shapes)
        joined = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(f"{joined} must have one shape {layout}, got {given}: nothing is broadcast here.")


def check_shape(name: str, value: Tensor, shape: Sequence[int], layout: str) -> None:
    """Raise an error for a tensor whose shape differs from ``shape``, which ``layout`` describes."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {layout} = {listed(shape)}, got {listed(value.shape)}.")


def check_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> None:
    """Raise an error for a mask that is not bool or has another shape; None is allowed."""
    if mask is not None and (tuple(mask.shape) != tuple(shape) or mask.dtype != torch.bool):
        raise ValueError(f"{name} must be bool of shape {listed(shape)}, got {mask.dtype} of {listed(mask.shape)}.")
