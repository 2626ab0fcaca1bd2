"""Numbers that no measurement gives: NaN, infinities, and sizes at which float32 computes nothing sensible any more."""

from __future__ import annotations

from torch import Tensor

__all__ = ["MAX_MAGNITUDE", "first_implausible"]

MAX_MAGNITUDE = 1e9
"""The largest absolute value of an observation, action or reward that is read: the squares of many can be summed."""


def first_implausible(value: Tensor) -> tuple[tuple[int, ...], str] | None:
    """Return the place of the first number that is not finite or too large, and what is wrong with it.

    Args:
        value: any shape; what is no floating-point number is plausible. The largest is :data:`MAX_MAGNITUDE`.

    Returns:
        The index, and what the number is; None where all are plausible.

    Examples:
        >>> first_implausible(torch.tensor([0.0, 1e30]))
        ((1,), 'above 1e+09 in size')
    """
    if not value.is_floating_point() or value.numel() == 0:
        return None
    if float(value.abs().max()) <= MAX_MAGNITUDE:  # False for NaN
        return None
    wrong = ~(value.abs() <= MAX_MAGNITUDE)
    place = tuple(int(i) for i in wrong.nonzero()[0]) if value.ndim else ()
    return place, (f"above {MAX_MAGNITUDE:g} in size" if value[place].isfinite() else "not finite")
