"""Checks for NaN, infinities, and numbers that are too large for float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["MAX_MAGNITUDE", "NonFiniteError", "first_implausible", "refuse_implausible", "require_plausible"]

MAX_MAGNITUDE = 1e9
"""The largest absolute value of an observation, action or reward that is accepted, so that sums of squares are
finite."""


class NonFiniteError(RuntimeError):
    """Error for a NaN or infinite loss, gradient, weight or observation, raised before any change or save."""


def first_implausible(value: Tensor) -> tuple[tuple[int, ...], str] | None:
    """Return the index of the first number that is not finite or too large, and a description of it.

    Args:
        value: tensor of any shape. Values that are not floating point are plausible; the limit is
            :data:`MAX_MAGNITUDE`.

    Returns:
        The index and the description; None if all values are plausible.

    Examples:
        >>> import torch
        >>> first_implausible(torch.tensor([0.0, 1e30]))
        ((1,), 'above 1e+09 in size')
    """
    if not value.is_floating_point() or value.numel() == 0:
        return None
    if float(value.detach().abs().max()) <= MAX_MAGNITUDE:  # False for NaN
        return None
    wrong = ~(value.abs() <= MAX_MAGNITUDE)
    place = tuple(int(i) for i in wrong.nonzero()[0]) if value.ndim else ()
    return place, (f"above {MAX_MAGNITUDE:g} in size" if value[place].isfinite() else "not finite")


def require_plausible(tensordict: TensorDictBase, keys: Iterable[Any] | None) -> None:
    """Raise an error for observations that are not finite or above :data:`MAX_MAGNITUDE`, before a policy acts on them.

    Args:
        tensordict: input of the policy.
        keys: keys to check; keys that are missing are ignored. ``None`` checks all entries.

    Raises:
        NonFiniteError: if the check fails. The error names key, row (of the flattened batch) and number.
    """
    names = list(tensordict.keys(True, True)) if keys is None else list(keys)
    for key in names:
        value = tensordict.get(key, None)
        if not isinstance(value, Tensor):
            continue
        found = first_implausible(value.reshape(-1, *value.shape[tensordict.ndim :]))
        if found is not None:
            (row, *_), what = found
            name = key if isinstance(key, str) else ".".join(key)
            raise NonFiniteError(
                f"{name!r} is {what} in row {row}: no action is chosen. Check the environment or sensor that it "
                "comes from."
            )


def refuse_implausible(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check the inputs of a policy, as its forward pre-hook; see :func:`require_plausible`."""
    if torch.compiler.is_compiling():
        return
    keys = getattr(module, "in_keys", None)
    for value in (*args, *kwargs.values()):
        if isinstance(value, TensorDictBase):
            require_plausible(value, keys)
        elif isinstance(value, Tensor):
            found = first_implausible(value)
            if found is not None:
                raise NonFiniteError(f"an observation is {found[1]} at {list(found[0])}: no action is chosen.")
