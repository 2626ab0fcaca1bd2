"""A residual ReLU MLP velocity network of concatenated inputs, the fastest of the library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.velocity.embedded import EmbeddedVelocity
from torchrl_flow.modules.velocity.embedding import SinusoidalEmbedding, ZeroLinear

__all__ = ["ShortCutVelocityConcatMLP"]


class _ReLUResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_in, self.linear_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear_out(F.relu(self.linear_in(F.relu(hidden))))


class ShortCutVelocityConcatMLP(EmbeddedVelocity):
    """Velocity of a flattened action chunk from a residual MLP whose first layer reads chunk, time and condition.

    It has the form of ReinFlow's network for states. Time and condition enter only the first layer, in one small
    embedding; it therefore needs about half the arithmetic of :class:`ShortCutVelocityMLP` at the same width.

    Args:
        action_dim: A.
        pred_horizon: H.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        width: hidden width.
        depth: number of residual blocks with two layers each.
        embedding: size of the embedding of time and condition, which are added.

    Raises:
        ValueError: if a size is not positive, or ``embedding`` is odd or below 4.

    References:
        Zhang et al., "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning",
        https://arxiv.org/abs/2505.22094

    Examples:
        >>> import torch
        >>> net = ShortCutVelocityConcatMLP(7, 16, 42, width=64)
        >>> net(torch.randn(5, 16, 7), torch.rand(5), torch.zeros(5), torch.randn(5, 42)).shape
        torch.Size([5, 16, 7])
    """

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        cond_dim: int,
        *,
        width: int = 512,
        depth: int = 1,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        sizes = {"action_dim": action_dim, "pred_horizon": pred_horizon, "cond_dim": cond_dim}
        for name, size in {**sizes, "width": width, "depth": depth}.items():
            check_at_least(name, size, 1)
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.sinusoid = SinusoidalEmbedding(embedding)
        self.time = nn.Sequential(nn.Linear(2 * embedding, embedding), Mish(), nn.Linear(embedding, embedding))
        self.cond = nn.Sequential(nn.Linear(cond_dim, 64), nn.ReLU(), nn.Linear(64, embedding))
        self.linear_in = nn.Linear(pred_horizon * action_dim + embedding, width)
        self.blocks = nn.Sequential(*(_ReLUResidualBlock(width) for _ in range(depth)))
        self.linear_out = ZeroLinear(width, pred_horizon * action_dim)

    def embed_time(self, timestep: Tensor, step_size: Tensor) -> Tensor:
        """Embed times ``[B]`` and step sizes ``[B]`` as ``[B, E]``."""
        return self.time(torch.cat([self.sinusoid(timestep), self.sinusoid(step_size)], -1))

    def embed_observation(self, global_cond: Tensor) -> Tensor:
        """Embed encoded observations ``[B, C]`` as ``[B, E]``."""
        return self.cond(global_cond)

    def embedded_velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Return the velocity of points ``[B, H, A]`` or ``[B, N, H, A]`` for embeddings ``[B, E]``."""
        several, sample = sample.ndim == 4, sample.flatten(-2)
        if several:
            # The product is split: the points often need no gradient, and several points share one embedding.
            weights = self.linear_in.weight.split([sample.shape[-1], embedding.shape[-1]], -1)
            hidden = F.linear(sample, weights[0], self.linear_in.bias)
            hidden = hidden + F.linear(embedding, weights[1]).unsqueeze(1)
        else:
            hidden = self.linear_in(torch.cat([sample, embedding], -1))
        return self.linear_out(self.blocks(hidden)).unflatten(-1, (self.pred_horizon, self.action_dim))
