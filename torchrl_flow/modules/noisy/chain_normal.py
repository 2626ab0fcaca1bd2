"""The distribution of a noisy denoising chain for TorchRL's losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from torchrl_flow.functional.chain import LogProbReduction, chain_entropy, chain_log_prob

__all__ = ["ChainNormal"]


class ChainNormal(Distribution):
    """K Gaussian steps of a chain, each around a mean computed from the preceding point.

    Batch shape ``[*B]``, event shape ``[K, H, A]``. With ``reduction="sum"`` it is
    ``Independent(Normal(mean, sigma), 3)``; with ``"mean"`` its log-probability and entropy are divided by K H A.

    Args:
        mean: mean of each step, ``[*B, K, H, A]``.
        sigma: standard deviation of each step, ``[*B, K, H, A]``.
        reduction: see :func:`~torchrl_flow.functional.chain_log_prob`.

    Examples:
        >>> import torch
        >>> dist = ChainNormal(torch.zeros(5, 4, 16, 7), torch.ones(5, 4, 16, 7))
        >>> dist.sample().shape, dist.log_prob(dist.mean).shape
        (torch.Size([5, 4, 16, 7]), torch.Size([5]))
    """

    arg_constraints = {  # noqa: RUF012 # pyright: ignore[reportAssignmentType]
        "mean": constraints.real,
        "sigma": constraints.positive,
    }
    support = constraints.independent(constraints.real, 3)  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, mean: Tensor, sigma: Tensor, *, reduction: LogProbReduction = "mean") -> None:
        self._mean, self.sigma = mean, sigma
        self.reduction: LogProbReduction = reduction
        # Validation would read every tensor again at each call of the loss; log_prob checks shapes.
        super().__init__(mean.shape[:-3], mean.shape[-3:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of each step ``[*B, K, H, A]``."""
        return self._mean

    @property
    def mode(self) -> Tensor:
        """Mode, equal to the mean."""
        return self._mean

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each step."""
        return self.sigma

    @property
    def variance(self) -> Tensor:
        """Variance of each step."""
        return self.sigma.square()

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        """Draw points with a gradient with respect to mean and standard deviation."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self._mean + self.sigma * torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability ``[*sample, *B]`` of points ``[*sample, *B, K, H, A]``."""
        mean, sigma = self._mean, self.sigma
        if value.ndim > mean.ndim:
            mean, sigma = mean.expand_as(value), sigma.expand_as(value)
        return chain_log_prob(value, mean, sigma, reduction=self.reduction)

    def entropy(self) -> Tensor:
        """Return the entropy ``[*B]``."""
        return chain_entropy(self.sigma, reduction=self.reduction)
