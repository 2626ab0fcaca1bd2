"""Learning rates as functions of the step."""

from __future__ import annotations

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(peak: float, step: int, total: int, *, warmup: int = 200, floor: float = 0.01) -> float:
    """Return the learning rate of a step: a linear warm-up times a half cosine that falls to ``floor * peak``.

    Args:
        peak: learning rate at the top of the cosine.
        step: number of the step, from 1 to ``total``.
        total: steps of the cosine.
        warmup: steps of the linear warm-up, a factor of the cosine.
        floor: fraction of ``peak`` at step ``total``.

    Examples:
        >>> [round(warmup_cosine(1.0, step, 1000), 4) for step in (100, 500, 1000)]
        [0.4879, 0.505, 0.01]
    """
    cosine = 0.5 * (1 + math.cos(math.pi * step / total))
    return peak * min(1.0, step / warmup) * (floor + (1 - floor) * cosine)
