"""The latent space of a steered flow: bounds, densities against the N(0, I) prior, and weights of candidates.

Symbols: ``w`` the flow's initial latent; ``u`` the latent before a bound, ``w = b tanh(u / b)``. With that bound the
prior of ``w`` is the image of ``u ~ N(0, I)``, so that divergences from the prior need no correction, and ``w``
approaches ``u`` for large ``b``.

References:
    Wagenmaker et al., "Steering Your Diffusion Policy with Latent Space Reinforcement Learning",
    https://arxiv.org/abs/2506.15799
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_one_of, check_positive, check_same_shape

SteerMode = Literal["full", "act_horizon", "tied"]
"""Part of the noise that a latent policy chooses: all steps, the executed steps, or one vector for all steps."""

__all__ = [
    "SteerMode",
    "bound_latent",
    "bound_log_det",
    "candidate_weights",
    "expand_latent",
    "kl_to_prior",
    "mixture_log_prob",
    "normal_log_prob",
    "unbound_latent",
]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def _check_bound(bound: float | None) -> None:
    if bound is not None:
        check_positive("bound", bound, none="no bound")


def bound_latent(u: Tensor, bound: float | None) -> Tensor:
    """Return ``w = b tanh(u / b)``, or ``u`` if there is no bound.

    Args:
        u: latents before the bound, any shape.
        bound: b, above 0; ``None`` for no bound.

    Raises:
        ValueError: if the bound is not above 0.

    Examples:
        >>> import torch
        >>> bound_latent(torch.tensor([0.0, 0.01, 100.0]), 2.0)
        tensor([0.0000, 0.0100, 2.0000])
    """
    _check_bound(bound)
    return u if bound is None else bound * torch.tanh(u / bound)


def unbound_latent(w: Tensor, bound: float | None) -> Tensor:
    """Return ``u = b atanh(w / b)``, the inverse of :func:`bound_latent`.

    A latent that rounding has placed at the bound is replaced by the largest number below it.

    Args:
        w: latents, any shape.
        bound: b, above 0; ``None`` for no bound.

    Raises:
        ValueError: if the bound is not above 0.
    """
    _check_bound(bound)
    if bound is None:
        return w
    limit = 1 - torch.finfo(w.dtype).eps
    return bound * torch.atanh((w / bound).clamp(-limit, limit))


def bound_log_det(u: Tensor, bound: float | None) -> Tensor:
    """Return ``log dw/du`` of each element under :func:`bound_latent`, in a form that does not overflow.

    Args:
        u: latents before the bound, any shape.
        bound: b, above 0; ``None`` for no bound, which gives 0.
    """
    _check_bound(bound)
    if bound is None:
        return torch.zeros_like(u)
    x = u / bound
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


def normal_log_prob(u: Tensor, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
    """Return the log-density of a diagonal normal, summed over the last two dimensions.

    Args:
        u: points ``[*B, S, A]``.
        loc: mean, broadcastable to ``u``; 0 for the prior.
        scale: standard deviation, broadcastable to ``u``; 1 for the prior.

    Returns:
        ``[*B]``.

    Examples:
        >>> import torch
        >>> normal_log_prob(torch.zeros(1, 1, 2))
        tensor([-1.8379])
    """
    scale = torch.as_tensor(scale, dtype=u.dtype, device=u.device)
    z = (u - loc) / scale
    return -(0.5 * z.square() + scale.log() + _HALF_LOG_TWO_PI).sum((-2, -1))


def kl_to_prior(loc: Tensor, scale: Tensor) -> Tensor:
    """Return ``KL(N(loc, scale^2) || N(0, I))``, summed over the last two dimensions.

    A bound does not change it, since a divergence is invariant under a bijection of both distributions.

    Args:
        loc: mean ``[*B, S, A]``.
        scale: standard deviation ``[*B, S, A]``.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> import torch
        >>> kl_to_prior(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
        tensor([1.])
    """
    check_same_shape("[*B, S, A]", 2, loc=loc, scale=scale)
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum((-2, -1))


def mixture_log_prob(log_prob: Tensor, prior_log_prob: Tensor, prior_fraction: Tensor) -> Tensor:
    """Return ``log(rho p_prior + (1 - rho) p)``.

    Args:
        log_prob: ``log p``, ``[*B]``.
        prior_log_prob: ``log p_prior``, ``[*B]``.
        prior_fraction: rho in [0, 1], broadcastable to ``[*B]``.

    Examples:
        >>> import torch
        >>> p, q = torch.tensor([0.2]).log(), torch.tensor([0.6]).log()
        >>> mixture_log_prob(p, q, torch.tensor([0.5])).exp()
        tensor([0.4000])
    """
    # At rho = 0 and 1 one logarithm is -inf; its term contributes nothing and has a gradient of 0.
    return torch.logaddexp(prior_log_prob + prior_fraction.log(), log_prob + torch.log1p(-prior_fraction))


def expand_latent(latent: Tensor, fill: Tensor, mode: SteerMode) -> Tensor:
    """Expand a latent to the noise of a whole chunk.

    Args:
        latent: ``[*B, S, A]``: S is H (``"full"``), H_a (``"act_horizon"``) or 1 (``"tied"``).
        fill: draws from the prior ``[*B, H, A]``; ``"act_horizon"`` uses their steps from H_a on.
        mode: steer mode: the part of the noise that the latent determines.

    Returns:
        noise ``[*B, H, A]``.

    Raises:
        ValueError: if the mode is unknown or a shape does not fit.

    Examples:
        >>> import torch
        >>> expand_latent(torch.ones(1, 2, 1), torch.zeros(1, 4, 1), "act_horizon").flatten()
        tensor([1., 1., 0., 0.])
    """
    check_one_of("steer_mode", mode, ("full", "act_horizon", "tied"))
    steps = {"full": fill.shape[-2], "act_horizon": latent.shape[-2], "tied": 1}
    wanted = (*fill.shape[:-2], steps[mode], fill.shape[-1])
    if tuple(latent.shape) != wanted or latent.shape[-2] > fill.shape[-2]:
        raise ValueError(
            f"with steer_mode={mode!r} and noise {list(fill.shape)} the latent must have shape {list(wanted)}, got "
            f"{list(latent.shape)}."
        )
    if mode == "full":
        return latent
    if mode == "tied":
        return latent.expand(fill.shape)
    return torch.cat([latent, fill[..., latent.shape[-2] :, :]], -2)


def candidate_weights(scores: Tensor, *, beta: float) -> Tensor:
    """Return the weights of a row's candidates, ``softmax(beta s)``.

    The published form is ``softmax(beta (s - b))`` with a soft baseline ``b = sum_i softmax(s / tau)_i s_i``. A softmax
    is invariant to a shift of its inputs: baseline and tau cancel and are omitted.

    Args:
        scores: ``[B, M]``.
        beta: inverse temperature, at least 0; at 0 all weights are ``1 / M``.

    Returns:
        weights ``[B, M]`` of sum 1.

    Raises:
        ValueError: if a shape or a number does not fit.

    Examples:
        >>> import torch
        >>> candidate_weights(torch.tensor([[0.0, 1.0]]), beta=100.0)
        tensor([[3.7835e-44, 1.0000e+00]])
    """
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise ValueError(f"scores must have shape [B, M] with at least one candidate, got {tuple(scores.shape)}.")
    check_at_least("beta", beta, 0)
    return (beta * scores).softmax(-1)
