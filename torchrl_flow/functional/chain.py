"""The denoising chain as a sequence of Gaussian steps: its log-probability, its noise levels and their schedule.

Noise in each of a flow's K Euler steps gives a policy with a density: ``x_{k+1} ~ Normal(m_k, sigma_k)`` with
``m_k = x_k + v(x_k, k/K, 1/K) / K``. Chains are tensors ``[*B, K, H, A]``.

References:
    Zhang et al., "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning",
    https://arxiv.org/abs/2505.22094
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_one_of, check_same_shape, check_shape

LogProbReduction = Literal["mean", "sum"]
"""Reduction of a chain's log-probability over steps, chunk and action dimensions: mean or sum."""
NoiseSchedule = Literal["constant", "linear", "exponential"]
"""Schedule of the upper bound of the noise during training."""

__all__ = [
    "LogProbReduction",
    "NoiseSchedule",
    "bounded_sigma",
    "chain_entropy",
    "chain_log_prob",
    "chain_times",
    "chunk_transport_cost",
    "max_sigma_schedule",
]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def chain_times(num_steps: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Return the times ``[K]`` at which the chain evaluates velocities, ``k / K`` for k = 0 .. K-1.

    Args:
        num_steps: K, at least 1.
        device: device of the result.
        dtype: dtype of the result.

    Raises:
        ValueError: if ``num_steps`` is below 1.

    Examples:
        >>> chain_times(4)
        tensor([0.0000, 0.2500, 0.5000, 0.7500])
    """
    check_at_least("num_steps", num_steps, 1)
    return torch.arange(num_steps, device=device, dtype=dtype or torch.get_default_dtype()) * (1.0 / num_steps)


def bounded_sigma(z: Tensor, sigma_min: float, sigma_max: Tensor | float) -> Tensor:
    """Return noise levels ``exp((log smin^2 + (log smax^2 - log smin^2) (tanh z + 1) / 2) / 2)``, of the shape of z.

    The levels lie between the bounds; ``z = 0`` gives their geometric mean.

    Args:
        z: any shape.
        sigma_min: lower bound, above 0.
        sigma_max: upper bound, at least ``sigma_min``; a one-element tensor if a schedule changes it.

    Raises:
        ValueError: if ``sigma_min`` is not above 0, or a ``sigma_max`` given as a number lies below it.

    Examples:
        >>> import torch
        >>> bounded_sigma(torch.tensor([-9.0, 0.0, 9.0]), 0.01, 0.09)
        tensor([0.0100, 0.0300, 0.0900])
    """
    if sigma_min <= 0:
        raise ValueError(f"sigma_min must be above 0, got {sigma_min}: a chain without noise has no density.")
    if not isinstance(sigma_max, Tensor):
        if sigma_max < sigma_min:
            raise ValueError(f"sigma_max must be at least sigma_min={sigma_min}, got {sigma_max}.")
        sigma_max = z.new_tensor(sigma_max)
    low = math.log(sigma_min)
    return torch.exp(low + (sigma_max.log() - low) * 0.5 * (torch.tanh(z) + 1))


def max_sigma_schedule(
    step: int, *, kind: NoiseSchedule, sigma_max: float, sigma_min: float, decay_steps: int
) -> float:
    """Return the upper bound of the noise at a step of training.

    With ``p = min(1, step / decay_steps)``: ``"constant"`` is ``smax``, ``"linear"`` is ``smax (1 - p) + smin p``,
    ``"exponential"`` is ``smin + (smax - smin) exp(-3 p)``.

    Args:
        step: number of completed steps, in the unit of ``decay_steps``.
        kind: kind of the schedule.
        sigma_max: smax, the bound at step 0.
        sigma_min: smin, the lower bound of the noise.
        decay_steps: steps after which the bound stays constant, at least 1.

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> round(max_sigma_schedule(50, kind="linear", sigma_max=0.3, sigma_min=0.1, decay_steps=100), 3)
        0.2
    """
    check_one_of("kind", kind, ("constant", "linear", "exponential"))
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"0 < sigma_min <= sigma_max is needed, got sigma_min={sigma_min}, sigma_max={sigma_max}.")
    check_at_least("decay_steps", decay_steps, 1)
    check_at_least("step", step, 0)
    p = min(1.0, step / decay_steps)
    if kind == "constant":
        return sigma_max
    if kind == "linear":
        return sigma_max * (1 - p) + sigma_min * p
    return sigma_min + (sigma_max - sigma_min) * math.exp(-3 * p)


def chain_log_prob(
    x_next: Tensor,
    mean: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    reduction: LogProbReduction = "mean",
) -> Tensor:
    """Return the log-probability of chains ``[*B]``, summed or averaged over K, H and A.

    Args:
        x_next: points after each step, ``[*B, K, H, A]``.
        mean: mean of each step, ``[*B, K, H, A]``.
        sigma: standard deviation of each step, ``[*B, K, H, A]``.
        noise: x_0, ``[*B, H, A]``. If given, its standard normal density is added as one more term. Defaults to None,
            since the density of x_0 cancels in probability ratios.
        reduction: ``"sum"``, or ``"mean"``, which divides by the number of terms.

    Raises:
        ValueError: if shapes do not fit or the reduction is unknown.

    Examples:
        >>> import torch
        >>> x, sigma = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
        >>> chain_log_prob(x, x, sigma), chain_log_prob(x, x, sigma, reduction="sum")
        (tensor([-0.9189, -0.9189]), tensor([-55.1363, -55.1363]))
    """
    check_same_shape("[*B, K, H, A]", 3, x_next=x_next, mean=mean, sigma=sigma)
    check_one_of("reduction", reduction, ("mean", "sum"))
    # Constants are added after the sum: fewer passes over memory and a smaller rounding error.
    terms = -0.5 * ((x_next - mean) / sigma).square() - sigma.log()
    total, count = terms.sum((-3, -2, -1)), terms.shape[-3:].numel()
    if noise is not None:
        check_shape("noise", noise, (*x_next.shape[:-3], *x_next.shape[-2:]), "[*B, H, A]")
        total = total - 0.5 * noise.square().sum((-2, -1))
        count += noise.shape[-2:].numel()
    total = total - count * _HALF_LOG_2PI
    return total / count if reduction == "mean" else total


def chain_entropy(sigma: Tensor, *, reduction: LogProbReduction = "mean") -> Tensor:
    """Return the entropy of the Gaussian steps ``[*B]``, summed or averaged over K, H and A.

    It is the sum or mean of each step's conditional entropy given the preceding point, which has a closed form.

    Args:
        sigma: standard deviation of each step, ``[*B, K, H, A]``.
        reduction: see :func:`chain_log_prob`.

    Raises:
        ValueError: if the shape does not fit or the reduction is unknown.
    """
    check_one_of("reduction", reduction, ("mean", "sum"))
    if sigma.ndim < 3:
        raise ValueError(f"sigma must have shape [*B, K, H, A], got {tuple(sigma.shape)}.")
    dims, count = (-3, -2, -1), sigma.shape[-3:].numel()
    total = sigma.log().sum(dims) + count * (0.5 + _HALF_LOG_2PI)
    return total / count if reduction == "mean" else total


def chunk_transport_cost(chunk: Tensor, reference: Tensor) -> Tensor:
    """Return each row's ``|| chunk - reference ||^2``; its mean bounds the squared 2-Wasserstein distance from above.

    Two flows that start from the same noise define a coupling of their distributions, and the mean cost of any coupling
    is at least the squared distance.

    Args:
        chunk: ``[*B, H, A]``.
        reference: ``[*B, H, A]``.

    Returns:
        the cost ``[*B]``.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape("[*B, H, A]", 2, chunk=chunk, reference=reference)
    return (chunk - reference).square().sum((-2, -1))
