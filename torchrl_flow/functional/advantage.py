"""Advantages, the weights that exponentiate them, and how many samples such weights are worth.

References:
    Peters and Schaal, "Reinforcement learning by reward-weighted regression", ICML 2007
    Peng et al., "Advantage-Weighted Regression", https://arxiv.org/abs/1910.00177
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

AdvantageNorm = Literal["none", "std", "mad"]
Weighting = Literal["exp", "softmax", "binary"]

__all__ = ["AdvantageNorm", "Weighting", "advantage_weights", "batch_advantage", "effective_sample_size"]


def _check_vector(name: str, value: Tensor) -> None:
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be a non-empty vector [B], got shape {tuple(value.shape)}.")


def batch_advantage(q: Tensor, *, norm: AdvantageNorm = "none", eps: float = 1e-6) -> Tensor:
    """Return ``q`` less its mean over the batch, on request divided by its spread.

    Args:
        q: action values ``[B]``.
        norm: ``"none"``; ``"std"``, the standard deviation; ``"mad"``, the median absolute deviation times
            1.4826, which outliers do not move.
        eps: added to the spread, so that equal values give 0.

    Raises:
        ValueError: if ``q`` is no vector or ``norm`` is unknown.

    Examples:
        >>> import torch
        >>> batch_advantage(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.,  0.,  1.])
    """
    _check_vector("q", q)
    advantage = q - q.mean()
    if norm == "none":
        return advantage
    if norm == "std":
        return advantage / (q.std(unbiased=False) + eps)
    if norm == "mad":
        return advantage / (1.4826 * (q - q.median()).abs().median() + eps)
    raise ValueError(f"norm must be 'none', 'std' or 'mad', got {norm!r}.")


def advantage_weights(
    advantage: Tensor,
    *,
    beta: float,
    weight_clip: float = 200.0,
    weighting: Weighting = "exp",
) -> Tensor:
    """Turn advantages into weights of mean 1, in log space, so that no exponential overflows.

    Args:
        advantage: ``[B]``.
        beta: inverse temperature, at least 0. At 0 every weight is 1 (``"exp"`` and ``"softmax"``).
        weight_clip: bound on ``exp(beta A)`` before normalisation (``"exp"`` alone).
        weighting: ``"exp"``, ``min(exp(beta A), weight_clip)``; ``"softmax"``, the same without a bound;
            ``"binary"``, 1 where ``A > 0`` (all 1 where no row has one).

    Returns:
        weights ``[B]``, of mean 1.

    Raises:
        ValueError: if an argument is outside what is allowed.

    Examples:
        >>> import torch
        >>> advantage_weights(torch.tensor([0.0, 0.0]), beta=100.0)
        tensor([1., 1.])
        >>> advantage_weights(torch.tensor([1e9, -1e9]), beta=100.0, weighting="softmax")
        tensor([2., 0.])
    """
    _check_vector("advantage", advantage)
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}.")
    if weighting == "binary":
        kept = (advantage > 0).to(advantage.dtype)
        kept = torch.where(kept.sum() > 0, kept, torch.ones_like(kept))
        return kept / kept.mean()
    if weighting not in ("exp", "softmax"):
        raise ValueError(f"weighting must be 'exp', 'softmax' or 'binary', got {weighting!r}.")
    finite = torch.finfo(advantage.dtype)
    log_weight = (beta * advantage).clamp(finite.min, finite.max)
    if weighting == "exp":
        if weight_clip <= 0:
            raise ValueError(f"weight_clip must be above 0, got {weight_clip}.")
        log_weight = log_weight.clamp(max=math.log(weight_clip))
    return torch.softmax(log_weight, 0) * advantage.numel()


def effective_sample_size(weights: Tensor) -> Tensor:
    """Return Kish's ``(sum w)^2 / sum w^2``: how many equally weighted samples the weights are worth.

    Args:
        weights: non-negative weights ``[B]``.

    Returns:
        a scalar between 1 and B.

    Examples:
        >>> import torch
        >>> effective_sample_size(torch.ones(8)), effective_sample_size(torch.tensor([1.0, 0.0]))
        (tensor(8.), tensor(1.))
    """
    _check_vector("weights", weights)
    return weights.sum().square() / weights.square().sum().clamp(min=torch.finfo(weights.dtype).tiny)
