"""The network that computes the noise level of each step of a denoising chain, and its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchrl_flow.functional.chain import bounded_sigma
from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.config import Config, dense_weights
from torchrl_flow.modules.velocity.embedding import SinusoidalEmbedding, ZeroLinear

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.flow import FlowActor

__all__ = ["ExploreNoiseNet", "NoiseNetConfig", "make_noise_net"]


class ExploreNoiseNet(nn.Module):
    """Network from flow time and encoded observation to the noise levels ``sigma`` of a chain's steps, within bounds.

    The time embedding is fixed, so that the noise levels train no part of the velocity network. The last layer is
    initialised to zero: initially every level is the geometric mean of the bounds.

    Args:
        action_dim: A.
        pred_horizon: H.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        hidden_sizes: widths of the hidden layers.
        sigma_min: lower bound.
        sigma_max: initial upper bound; stored in a buffer, which a schedule changes (:meth:`set_sigma_max`).
        time_features: length of the time's embedding.

    Raises:
        ValueError: if a size is below 1 or the bounds are not ``0 < sigma_min <= sigma_max``.

    References:
        Zhang et al., "ReinFlow", https://arxiv.org/abs/2505.22094

    Examples:
        >>> import torch
        >>> net = ExploreNoiseNet(7, 16, 42)
        >>> net(torch.randn(5, 42), torch.arange(4) / 4).shape
        torch.Size([5, 4, 16, 7])
    """

    sigma_max: Tensor

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        cond_dim: int,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        sigma_min: float = 0.01,
        sigma_max: float = 0.3,
        time_features: int = 16,
    ) -> None:
        super().__init__()
        if min(action_dim, pred_horizon, cond_dim, *hidden_sizes, len(hidden_sizes)) < 1:
            raise ValueError(
                "action_dim, pred_horizon, cond_dim and hidden_sizes must be at least 1, got "
                f"{action_dim}, {pred_horizon}, {cond_dim}, {tuple(hidden_sizes)}."
            )
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.sigma_min = float(sigma_min)
        self.register_buffer("sigma_max", torch.tensor(float(sigma_max)))
        self.set_sigma_max(sigma_max)
        self.time_embedding = SinusoidalEmbedding(time_features)
        first, *others = hidden_sizes
        self.linear_cond = nn.Linear(cond_dim, first)
        self.linear_time = nn.Linear(time_features, first, bias=False)
        layers: list[nn.Module] = [Mish()]
        for size_in, size_out in zip(hidden_sizes, others):
            layers += [nn.Linear(size_in, size_out), Mish()]
        self.net = nn.Sequential(*layers, ZeroLinear(hidden_sizes[-1], pred_horizon * action_dim))

    def set_sigma_max(self, sigma_max: float) -> None:
        """Set the upper bound in place, between iterations, since chains must be scored with the bound that drew them.

        Raises:
            ValueError: if the bounds are not ``0 < sigma_min <= sigma_max``.
        """
        if not 0 < self.sigma_min <= sigma_max:
            raise ValueError(f"0 < sigma_min <= sigma_max is needed, got {self.sigma_min} and {sigma_max}.")
        self.sigma_max.fill_(float(sigma_max))

    def forward(self, features: Tensor, times: Tensor) -> Tensor:
        """Return the noise levels ``[B, K, H, A]``.

        Args:
            features: encoded observations ``[B, C]``.
            times: flow times ``[K]``, the same for every row.

        Raises:
            ValueError: if a shape does not fit.
        """
        if features.ndim != 2 or features.shape[-1] != self.cond_dim or times.ndim != 1:
            raise ValueError(
                f"features must have shape [B, {self.cond_dim}] and times [K], got {list(features.shape)} and "
                f"{list(times.shape)}."
            )
        # The two inputs are added after their linear layers, so that the observation's layer runs once, not once per
        # step.
        hidden = self.linear_cond(features).unsqueeze(1) + self.linear_time(self.time_embedding(times))
        z = self.net(hidden).unflatten(-1, (self.pred_horizon, self.action_dim))
        return bounded_sigma(z, self.sigma_min, self.sigma_max)


@dataclasses.dataclass(frozen=True)
class NoiseNetConfig(Config):
    """Configuration of an :class:`ExploreNoiseNet`, as plain values, without the actor and the weights.

    Raises:
        ValueError: if the bounds are not ``0 < sigma_min <= sigma_max`` or a size is above its limit
            (:class:`~torchrl_flow.modules.config.Config`).
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    sigma_min: float = 0.01
    """Lower bound of the noise, in units of normalised actions."""
    sigma_max: float = 0.3
    """Upper bound of the noise at the start of training."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if not 0 < self.sigma_min <= self.sigma_max:
            raise ValueError(f"0 < sigma_min <= sigma_max is needed, got {self.sigma_min} and {self.sigma_max}.")

    def _weights(self) -> int:
        return dense_weights([1, *self.hidden_sizes, 1])


def make_noise_net(config: NoiseNetConfig, actor: FlowActor) -> ExploreNoiseNet:
    """Build the noise network of an actor's chains.

    Args:
        config: the configuration.
        actor: flow actor; the network is made on its device.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> make_noise_net(NoiseNetConfig(), make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))).cond_dim
        10
    """
    net = ExploreNoiseNet(
        actor.action_dim,
        actor.pred_horizon,
        actor.encoder.out_features,
        hidden_sizes=config.hidden_sizes,
        sigma_min=config.sigma_min,
        sigma_max=config.sigma_max,
    )
    return net.to(next(actor.parameters()).device)
