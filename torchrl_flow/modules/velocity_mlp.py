"""A residual MLP velocity network, for state tasks and quick runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_flow.modules.embedding import FlowTimeEmbedding, ZeroLinear, check_velocity_inputs

__all__ = ["ShortCutVelocityMLP"]


class _FiLMResidualBlock(nn.Module):
    """LayerNorm, FiLM, and a two-layer perceptron, added to the input; starts as the identity."""

    def __init__(self, width: int, cond_size: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = ZeroLinear(cond_size, 2 * width)
        self.linear_in = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = ZeroLinear(width, width)
        self.activation = nn.Mish()

    def forward(self, hidden: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(cond).chunk(2, -1)
        update = self.norm(hidden) * (1 + scale) + shift
        update = self.dropout(self.activation(self.linear_in(update)))
        return hidden + self.linear_out(update)


class ShortCutVelocityMLP(nn.Module):
    """Velocity of a flattened action chunk by a residual MLP with FiLM conditioning.

    The chunk and the condition enter together; time, step size and condition modulate every residual block.

    Args:
        action_dim: A.
        pred_horizon: H.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        width: hidden width.
        depth: number of residual blocks.
        dropout: dropout rate inside the blocks.
        embed_size: size of the embedding of time, step size and condition.

    Raises:
        ValueError: if a size is not positive.

    Examples:
        >>> import torch
        >>> net = ShortCutVelocityMLP(7, 16, 42, width=64, depth=2)
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
        depth: int = 3,
        dropout: float = 0.0,
        embed_size: int = 128,
    ) -> None:
        super().__init__()
        sizes = {
            "action_dim": action_dim,
            "pred_horizon": pred_horizon,
            "cond_dim": cond_dim,
            "width": width,
            "depth": depth,
            "embed_size": embed_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.time_embedding = FlowTimeEmbedding(embed_size)
        self.cond_embedding = nn.Linear(cond_dim, embed_size)
        self.activation = nn.Mish()
        self.linear_in = nn.Linear(pred_horizon * action_dim + cond_dim, width)
        self.blocks = nn.ModuleList(_FiLMResidualBlock(width, embed_size, dropout) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = ZeroLinear(width, pred_horizon * action_dim)

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity ``[B, H, A]``.

        Args:
            sample: points ``x_t``, ``[B, H, A]``.
            timestep: flow time in [0, 1], ``[B]``.
            step_size: step size d in [0, 1], ``[B]``; 0 asks for the instantaneous velocity.
            global_cond: encoded observation, ``[B, C]``.

        Raises:
            ValueError: if a shape does not fit.
        """
        shape = (self.pred_horizon, self.action_dim, self.cond_dim)
        check_velocity_inputs(sample, timestep, step_size, global_cond, shape=shape)
        cond = self.time_embedding(timestep, step_size) + self.cond_embedding(global_cond)
        cond = self.activation(cond)
        hidden = self.linear_in(torch.cat([sample.flatten(1), global_cond], -1))
        for block in self.blocks:
            hidden = block(hidden, cond)
        return self.linear_out(self.norm_out(hidden)).unflatten(-1, (self.pred_horizon, self.action_dim))
