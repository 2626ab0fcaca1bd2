"""Reductions of the action values of an ensemble, and the choice of the best of several candidates.

References:
    Chen et al., "Randomized Ensembled Double Q-Learning", https://arxiv.org/abs/2101.05982
    Ball et al., "Efficient Online Reinforcement Learning with Offline Data", https://arxiv.org/abs/2302.02948
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from torchrl_flow.functional.checks import check_one_of, check_shape

EnsembleReduction = Literal["min", "mean", "ucb"]
"""Reduction of an ensemble's values to one: minimum over a random subset, mean, or an upper confidence bound."""
REDUCTIONS = ("min", "mean", "ucb")

__all__ = ["EnsembleReduction", "reduce_ensemble", "subset_min", "take_best", "upper_confidence_bound"]


def _check_ensemble(q: Tensor) -> None:
    if q.ndim < 1 or q.shape[0] < 1:
        raise ValueError(f"q must have shape [num_qs, *B] with at least one member, got {tuple(q.shape)}.")


def subset_min(q: Tensor, draws: Tensor, *, size: int) -> Tensor:
    """Return the minimum over a random subset of the members, the same subset for the whole batch.

    Args:
        q: action values ``[num_qs, *B]``.
        draws: independent continuous draws ``[num_qs]``, such as ``torch.rand(num_qs)``. The members with the largest
            draws form the subset, so that every subset is equally likely.
        size: number of members in the subset, between 1 and ``num_qs``; ``num_qs`` gives the minimum over all.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: if a shape or the size does not fit.

    Examples:
        >>> import torch
        >>> q = torch.tensor([[1.0, 6.0], [2.0, 5.0], [3.0, 4.0]])
        >>> subset_min(q, torch.tensor([0.1, 0.9, 0.5]), size=2)
        tensor([2., 4.])
    """
    _check_ensemble(q)
    check_shape("draws", draws, q.shape[:1], "[num_qs]")
    if not 1 <= size <= q.shape[0]:
        raise ValueError(f"size must lie between 1 and the {q.shape[0]} members of the ensemble, got {size}.")
    return q.index_select(0, draws.topk(size).indices).amin(0)


def upper_confidence_bound(q: Tensor, *, kappa: float) -> Tensor:
    """Return mean plus ``kappa`` standard deviations over the members; a negative ``kappa`` is pessimistic.

    Args:
        q: action values ``[num_qs, *B]``.
        kappa: weight of the (population) standard deviation.

    Raises:
        ValueError: if ``q`` has no members.

    Examples:
        >>> import torch
        >>> upper_confidence_bound(torch.tensor([[1.0], [3.0]]), kappa=-0.5)
        tensor([1.5000])
    """
    _check_ensemble(q)
    return q.mean(0) + kappa * q.std(0, unbiased=False)


def reduce_ensemble(
    q: Tensor,
    reduction: EnsembleReduction,
    *,
    draws: Tensor | None = None,
    num_min_qs: int = 2,
    kappa: float = -1.0,
) -> Tensor:
    """Reduce the members of an ensemble to one action value.

    Args:
        q: action values ``[num_qs, *B]``.
        reduction: ``"min"``, :func:`subset_min`; ``"mean"``; ``"ucb"``, :func:`upper_confidence_bound`.
        draws: draws of ``"min"``, see :func:`subset_min`; ignored by the other reductions.
        num_min_qs: size of the subset of ``"min"``.
        kappa: weight of the standard deviation in ``"ucb"``; a negative weight is pessimistic, a positive one
            optimistic.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: if the reduction is unknown, or ``"min"`` has no draws.

    Examples:
        >>> import torch
        >>> reduce_ensemble(torch.tensor([[1.0], [3.0]]), "mean")
        tensor([2.])
    """
    _check_ensemble(q)
    if reduction == "mean":
        return q.mean(0)
    if reduction == "ucb":
        return upper_confidence_bound(q, kappa=kappa)
    check_one_of("reduction", reduction, REDUCTIONS)
    if draws is None:
        raise ValueError("reduction 'min' takes a random subset: give draws, such as torch.rand(num_qs).")
    return subset_min(q, draws, size=num_min_qs)


def take_best(scores: Tensor, candidates: Tensor, *, dim: int = 0) -> Tensor:
    """Return, for each row, the candidate with the highest score; the first one among equal scores.

    Args:
        scores: ``[B, S]``, one per candidate.
        candidates: candidates, with the two dimensions of ``scores`` at ``dim`` and ``dim + 1``.
        dim: position of the rows in ``candidates``. Dimensions before it, such as that of an ensemble, are kept.

    Returns:
        ``candidates`` without the dimension ``dim + 1``.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> candidates = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])  # one row, two candidates
        >>> take_best(torch.tensor([[0.3, 0.7]]), candidates)
        tensor([[2., 2.]])
    """
    if scores.ndim != 2 or scores.shape[1] < 1 or candidates.shape[dim : dim + 2] != scores.shape:
        raise ValueError(
            f"scores must have shape [B, S] and candidates have it at dimension {dim}, got {tuple(scores.shape)} and "
            f"{tuple(candidates.shape)}."
        )
    rows = torch.arange(scores.shape[0], device=scores.device)
    lead = (slice(None),) * dim
    return candidates[(*lead, rows, scores.argmax(1))]
