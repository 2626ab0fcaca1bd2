"""Bounds of a data set's actions, and their scaling to [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ActionBox"]


class ActionBox(nn.Module):
    """Map from actions in [-1, 1] to the data's units, ``centre + half range * action``, and its inverse.

    A constant dimension is mapped to 0 in [-1, 1], and back to its constant value. Both directions clamp to the box.

    Args:
        low: lower bound ``[A]``.
        high: upper bound ``[A]``, at least ``low``.

    Raises:
        ValueError: if the shapes differ, a bound is not finite, or ``low`` exceeds ``high``.

    Examples:
        >>> box = ActionBox.of(torch.tensor([[0.0, 5.0], [4.0, 5.0]]))
        >>> box(torch.tensor([[-1.0, 0.3]]))
        tensor([[0., 5.]])
        >>> box.to_unit(torch.tensor([[3.0, 5.0]]))
        tensor([[0.5000, 0.0000]])
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (low, high))
        if low.ndim != 1 or low.shape != high.shape:
            raise ValueError(
                f"low and high must have the same shape [A], got {list(low.shape)} and {list(high.shape)}."
            )
        wrong = ~(low.isfinite() & high.isfinite() & (low <= high))
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(f"low must not be above high, and both finite; dimension {i} has {low[i]} and {high[i]}.")
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())

    @classmethod
    def of(cls, actions: Tensor) -> ActionBox:
        """Make the box of the smallest and the largest value of each dimension of actions ``[N, A]``."""
        return cls(actions.amin(0), actions.amax(0))

    def forward(self, action: Tensor) -> Tensor:
        """Map ``[*B, A]`` in [-1, 1] to the data's units."""
        # Halved first: the range of two finite numbers need not be finite.
        centre, half = 0.5 * self.low + 0.5 * self.high, 0.5 * self.high - 0.5 * self.low
        return torch.clamp(centre + half * action.clamp(-1.0, 1.0), self.low, self.high)

    def to_unit(self, action: Tensor) -> Tensor:
        """Map ``[*B, A]`` in the data's units to [-1, 1]."""
        centre, half = 0.5 * self.low + 0.5 * self.high, 0.5 * self.high - 0.5 * self.low
        return ((action - centre) / torch.where(half > 0, half, torch.ones_like(half))).clamp(-1.0, 1.0)
