"""Advantages, their exponential weights, and the effective sample size of weights.

References:
    Peters and Schaal, "Reinforcement learning by reward-weighted regression", ICML 2007
    Peng et al., "Advantage-Weighted Regression", https://arxiv.org/abs/1910.00177
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_mask, check_one_of, check_positive

AdvantageNorm = Literal["none", "std", "mad"]
"""Scale of advantages: none, their standard deviation, or their median absolute deviation."""
Weighting = Literal["exp", "softmax", "binary"]
"""Weights of advantages: exponentials, a softmax over the batch, or 1 where the advantage is positive."""

__all__ = ["AdvantageNorm", "Weighting", "advantage_weights", "batch_advantage", "effective_sample_size"]
__all__ += ["filtered_weights"]


def _check_vector(name: str, value: Tensor) -> None:
    if value.ndim != 1 or value.numel() == 0:
        raise ValueError(f"{name} must be a non-empty vector [B], got shape {tuple(value.shape)}.")


def _mean(value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return value.mean()
    return torch.where(mask, value, torch.zeros_like(value)).sum() / mask.sum().clamp(min=1)


def _median(value: Tensor, mask: Tensor | None) -> Tensor:
    """Return the lower median, like ``Tensor.median``, without a data-dependent shape."""
    if mask is None:
        return value.median()
    ordered = torch.where(mask, value, torch.full_like(value, torch.inf)).sort().values
    middle = ordered.index_select(0, ((mask.sum() - 1).clamp(min=0) // 2).reshape(1)).squeeze(0)
    return torch.where(mask.any(), middle, torch.zeros_like(middle))


def batch_advantage(
    q: Tensor,
    *,
    norm: AdvantageNorm = "none",
    eps: float = 1e-6,
    mask: Tensor | None = None,
    center: bool = True,
) -> Tensor:
    """Return ``q`` minus its mean over the batch, optionally divided by its spread.

    Args:
        q: action values ``[B]``.
        norm: ``"none"``; ``"std"``, the standard deviation; ``"mad"``, the median absolute deviation times 1.4826,
            which is robust against outliers.
        eps: constant added to the spread, so that equal values yield 0.
        mask: ``[B]`` bool, True where a row counts in mean and spread. Defaults to all rows. All rows get an advantage.
        center: subtract the mean. False for values that are already relative to a baseline and only need to be scaled.

    Raises:
        ValueError: if ``q`` is not a vector, ``mask`` does not fit or ``norm`` is unknown.

    Examples:
        >>> import torch
        >>> batch_advantage(torch.tensor([1.0, 2.0, 3.0]))
        tensor([-1.,  0.,  1.])
    """
    _check_vector("q", q)
    check_mask("mask", mask, q.shape)
    check_one_of("norm", norm, ("none", "std", "mad"))
    deviation = q - _mean(q, mask)
    advantage = deviation if center else q
    if norm == "none":
        return advantage
    if norm == "std":
        spread = q.std(unbiased=False) if mask is None else _mean(deviation.square(), mask).sqrt()
        return advantage / (spread + eps)
    return advantage / (1.4826 * _median((q - _median(q, mask)).abs(), mask) + eps)


def advantage_weights(
    advantage: Tensor,
    *,
    beta: float,
    weight_clip: float = 200.0,
    weighting: Weighting = "exp",
    mask: Tensor | None = None,
) -> Tensor:
    """Compute weights of mean 1 from advantages, in log space, so that no exponential overflows.

    Args:
        advantage: ``[B]``.
        beta: inverse temperature, at least 0. At 0, and if all advantages are equal, every weight is exactly 1
            (``"exp"`` and ``"softmax"``).
        weight_clip: bound on ``exp(beta A)`` before normalisation (only ``"exp"``).
        weighting: ``"exp"``, ``min(exp(beta A), weight_clip)``; ``"softmax"``, the same without a bound; ``"binary"``,
            1 where ``A > 0`` (all 1 if no advantage is positive).
        mask: ``[B]`` bool, True where a row counts. Defaults to all rows.

    Returns:
        weights ``[B]``, with mean 1 over the counted rows and 0 for the others; all 0 if no row counts.

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> import torch
        >>> advantage_weights(torch.tensor([0.0, 0.0]), beta=100.0)
        tensor([1., 1.])
        >>> advantage_weights(torch.tensor([1e9, -1e9]), beta=100.0, weighting="softmax")
        tensor([2., 0.])
    """
    _check_vector("advantage", advantage)
    check_mask("mask", mask, advantage.shape)
    check_at_least("beta", beta, 0)
    check_one_of("weighting", weighting, ("exp", "softmax", "binary"))
    check_positive("weight_clip", weight_clip)
    counted = torch.ones_like(advantage, dtype=torch.bool) if mask is None else mask
    if weighting == "binary":
        kept = counted & (advantage > 0)
        weight = torch.where(kept.any(), kept, counted).to(advantage.dtype)
    else:
        finite = torch.finfo(advantage.dtype)
        log_weight = (beta * advantage).clamp(finite.min, finite.max)
        if weighting == "exp":
            log_weight = log_weight.clamp(max=math.log(weight_clip))
        log_weight = torch.where(counted, log_weight, torch.full_like(log_weight, finite.min))
        # The largest weight is 1, so that the mean is at least 1 / B and equal weights become exactly 1.
        weight = torch.exp(log_weight - log_weight.max()) * counted
    return weight / _mean(weight, mask).clamp(min=torch.finfo(weight.dtype).tiny)


def filtered_weights(
    value: Tensor,
    *,
    beta: float,
    weight_clip: float = 200.0,
    weighting: Weighting = "exp",
    norm: AdvantageNorm = "none",
    center: bool = True,
    valid: Tensor | None = None,
    always: Tensor | None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """Filter rows by their advantage over the batch, and weight the kept rows by their advantage.

    A row is kept if it is in ``always``, or if its advantage relative to all valid rows exceeds ``threshold``. The
    weights are computed from advantages relative to the kept rows.

    Args:
        value: values from which advantages are computed, ``[B]``, see :func:`batch_advantage`.
        beta: see :func:`advantage_weights`.
        weight_clip: see :func:`advantage_weights`.
        weighting: see :func:`advantage_weights`.
        norm: see :func:`batch_advantage`.
        center: see :func:`batch_advantage`.
        valid: ``[B]`` bool, True where a row counts at all. Defaults to all rows.
        always: ``[B]`` bool, rows to keep regardless of their advantage. Defaults to all valid rows.
        threshold: advantage above which a row outside ``always`` is kept.

    Returns:
        weights ``[B]``, with mean 1 over the kept rows and 0 elsewhere; and the mask of the kept rows, ``None`` for
        all.

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> import torch
        >>> demo = torch.tensor([True, False, False])
        >>> weights, kept = filtered_weights(torch.tensor([0.0, 1.0, -1.0]), beta=0.0, always=demo)
        >>> weights, kept
        (tensor([1., 1., 0.]), tensor([ True,  True, False]))
    """
    kept = valid
    advantage = batch_advantage(value, mask=valid, norm=norm, center=center)
    if always is not None:
        kept = always | (advantage > threshold)
        kept = kept if valid is None else kept & valid
        advantage = batch_advantage(value, mask=kept, norm=norm, center=center)
    return advantage_weights(advantage, beta=beta, weight_clip=weight_clip, weighting=weighting, mask=kept), kept


def effective_sample_size(weights: Tensor) -> Tensor:
    """Return Kish's effective sample size ``(sum w)^2 / sum w^2``.

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
