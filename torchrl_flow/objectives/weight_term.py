"""Advantage weights of a loss's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrl_flow.functional.advantage import (
    AdvantageNorm,
    Weighting,
    batch_advantage,
    effective_sample_size,
    filtered_weights,
)

Baseline = Literal["batch", "policy"]
"""Baseline of the advantages: the batch's mean value, or the policy's value in the same state."""
AdvantageSource = Literal["critic", "td"]
"""Definition of a chunk's advantage: the critic's value of the chunk, or the temporal difference."""

__all__ = ["AdvantageSource", "AdvantageWeightTerm", "Baseline", "of_mean_one"]


@dataclass(frozen=True)
class AdvantageWeightTerm:
    """Weights ``w = min(exp(beta A), weight_clip)`` with mean 1 over the kept rows and 0 for the others.

    Args:
        beta: inverse temperature of the weights.
        weight_clip: bound on ``exp(beta A)``.
        weighting: ``"exp"``, ``"softmax"`` or ``"binary"``; see :func:`~torchrl_flow.functional.advantage_weights`.
        norm: ``"none"``, ``"std"`` or ``"mad"``; see :func:`~torchrl_flow.functional.batch_advantage`.
        center: subtract the mean over the batch. False for values that are already relative to a baseline.
        threshold: advantage above which a row is kept, unless it is always kept.

    Raises:
        ValueError: if an argument is outside its allowed range.
    """

    beta: float = 20.0
    weight_clip: float = 20.0
    weighting: Weighting = "exp"
    norm: AdvantageNorm = "none"
    center: bool = False
    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Check the options by calling the functions that use them."""
        self(torch.zeros(1))

    def __call__(
        self, value: Tensor, valid: Tensor | None = None, always: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Compute the weights of rows.

        Args:
            value: values from which advantages are computed, ``[B]``.
            valid: ``[B]`` bool, True where a row counts at all. Defaults to all rows.
            always: ``[B]`` bool, rows to keep regardless of their advantage. Defaults to all valid rows.

        Returns:
            weights ``[B]``; the mask of kept rows, ``None`` for all; and ``effective_sample_size`` of the weights,
            ``policy_share``, the share of rows kept, and ``advantage_std``, the spread of the values.
        """
        weights, kept = filtered_weights(
            value,
            beta=self.beta,
            weight_clip=self.weight_clip,
            weighting=self.weighting,
            norm=self.norm,
            center=self.center,
            valid=valid,
            always=always,
            threshold=self.threshold,
        )
        everyone = torch.ones_like(value, dtype=torch.bool) if valid is None else valid
        deviation = torch.where(everyone, batch_advantage(value, mask=valid), torch.zeros_like(value))
        return (
            weights,
            kept,
            {
                "effective_sample_size": effective_sample_size(weights),
                "policy_share": (everyone if kept is None else kept).sum() / everyone.sum(),
                "advantage_std": (deviation.square().sum() / everyone.sum()).sqrt(),
            },
        )


def of_mean_one(weights: Tensor, row_weights: Tensor, kept: Tensor | None) -> Tensor:
    """Scale weights ``[B]`` to a mean of 1 over the rows, weighted by their importance."""
    share = row_weights if kept is None else torch.where(kept, row_weights, 0.0)
    return weights * share.sum() / (share * weights).sum().clamp(min=torch.finfo(weights.dtype).tiny)
