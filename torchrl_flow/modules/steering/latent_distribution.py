"""Distributions of a flow's initial latent: a normal, bounded or not, and its mixture with the prior."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from torchrl_flow.functional.latent import (
    bound_latent,
    bound_log_det,
    kl_to_prior,
    mixture_log_prob,
    normal_log_prob,
    unbound_latent,
)

__all__ = ["LatentNormal", "PriorMixture"]


class LatentNormal(Distribution):
    """Diagonal normal over latents ``[S, A]``, optionally bounded by ``w = b tanh(u / b)``.

    The last two dimensions are the event. Log-densities are exact, the bound's Jacobian included; a sample and its
    log-density are computed from the same ``u`` (:meth:`rsample_and_log_prob`), which cannot be recovered from a
    saturated ``w``.

    Args:
        loc: mean of ``u``, ``[*B, S, A]``.
        scale: standard deviation of ``u``, ``[*B, S, A]``.
        bound: b; ``None`` for no bound.

    Raises:
        ValueError: if a shape does not fit or the bound is not above 0.

    Examples:
        >>> import torch
        >>> dist = LatentNormal(torch.zeros(5, 1, 3), torch.ones(5, 1, 3), bound=2.0)
        >>> w, log_prob = dist.rsample_and_log_prob()
        >>> bool(torch.allclose(dist.log_prob(w), log_prob, atol=1e-4)), dist.kl_to_prior()[0].item()
        (True, 0.0)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, bound: float | None = None, validate_args: bool | None = False
    ) -> None:
        if loc.shape != scale.shape or loc.ndim < 2:
            raise ValueError(f"loc and scale must both be [*B, S, A], got {list(loc.shape)} and {list(scale.shape)}.")
        self.loc, self.scale, self.bound = loc, scale, bound
        bound_latent(loc.new_zeros(()), bound)
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The real numbers, or the open cube of the bound."""
        return constraints.real if self.bound is None else constraints.interval(-self.bound, self.bound)

    @property
    def deterministic_sample(self) -> Tensor:
        """The image of the mean of ``u``."""
        return bound_latent(self.loc, self.bound)

    @property
    def mode(self) -> Tensor:
        """The deterministic sample; the mode itself if there is no bound."""
        return self.deterministic_sample

    @property
    def mean(self) -> Tensor:
        """The mean if there is no bound, otherwise the median."""
        return self.deterministic_sample

    def transport(self, noise: Tensor) -> Tensor:
        """Map draws ``[*, S, A]`` from N(0, I) to latents; :func:`bound_latent` is the map of the prior."""
        return bound_latent(self.loc + self.scale * noise, self.bound)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _draw_unbounded(self, sample_shape: torch.Size) -> Tensor:
        return self.loc + self.scale * self._draw(sample_shape)

    def _unbounded_log_prob(self, u: Tensor) -> Tensor:
        return normal_log_prob(u, self.loc, self.scale)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw latents ``[*sample_shape, *B, S, A]`` with pathwise gradients."""
        return bound_latent(self._draw_unbounded(sample_shape), self.bound)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw latents without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: torch.Size = torch.Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Draw latents and compute log-densities from the same ``u``; TorchRL's losses call this method."""
        u = self._draw_unbounded(sample_shape)
        return bound_latent(u, self.bound), self._score(u)

    def _score(self, u: Tensor) -> Tensor:
        log_prob = self._unbounded_log_prob(u)
        return log_prob if self.bound is None else log_prob - bound_log_det(u, self.bound).sum((-2, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density ``[*B]`` of latents ``[*B, S, A]``."""
        return self._score(unbound_latent(value, self.bound))

    def kl_to_prior(self) -> Tensor:
        """Return the KL divergence ``[*B]`` from the prior, in closed form."""
        return kl_to_prior(self.loc, self.scale)


class PriorMixture(LatentNormal):
    """The mixture ``rho p_prior + (1 - rho) p``: the behaviour of a policy that sometimes draws from the prior.

    Each draw comes entirely from one of the two components; its log-density is that of the mixture. Stored and
    recomputed log-densities of a latent are equal at the same rho, so that PPO's ratio is 1 before the first update. As
    rho does not depend on the parameters, a draw from ``p`` has pathwise gradients.

    Args:
        loc: see :class:`LatentNormal`.
        scale: see :class:`LatentNormal`.
        prior_fraction: rho in [0, 1], a scalar or one value per row, ``[*B]`` or ``[*B, 1]``.
        bound: see :class:`LatentNormal`.

    Examples:
        >>> import torch
        >>> dist = PriorMixture(torch.full((5, 1, 3), 9.0), torch.ones(5, 1, 3), torch.tensor(1.0))
        >>> bool((dist.sample().mean(-1) < 5).all())  # all of it the prior
        True
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        prior_fraction: Tensor | float,
        bound: float | None = None,
        validate_args: bool | None = False,
    ) -> None:
        fraction = torch.as_tensor(prior_fraction, dtype=loc.dtype, device=loc.device)
        if fraction.ndim == loc.ndim - 1 and fraction.shape[-1] == 1:
            fraction = fraction.squeeze(-1)
        self.prior_fraction = fraction
        super().__init__(loc, scale, bound, validate_args)

    def _draw_unbounded(self, sample_shape: torch.Size) -> Tensor:
        noise = self._draw(sample_shape)
        from_prior = torch.rand(noise.shape[:-2], dtype=noise.dtype, device=noise.device) < self.prior_fraction
        return torch.where(from_prior[..., None, None], noise, self.loc + self.scale * noise)

    def _unbounded_log_prob(self, u: Tensor) -> Tensor:
        return mixture_log_prob(super()._unbounded_log_prob(u), normal_log_prob(u), self.prior_fraction)
