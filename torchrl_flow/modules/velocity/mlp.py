"""A residual MLP velocity network, for state tasks and quick runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.velocity.embedded import EmbeddedVelocity
from torchrl_flow.modules.velocity.embedding import FlowTimeEmbedding, ZeroLinear

__all__ = ["ShortCutVelocityMLP"]

_ROWS_AT_ONCE = 256
"""Rows of all sampling steps together, up to which one product for all steps is faster than one for each step."""


class _FiLMResidualBlock(nn.Module):
    """Two layers with LayerNorm and FiLM between them, added to the input; initially the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear_in = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.activation = Mish()
        self.dropout = nn.Dropout(dropout)
        self.linear_out = ZeroLinear(width, width)

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.chunk(2, -1)
        update = torch.addcmul(shift, self.norm(self.linear_in(hidden)), 1 + scale)
        return hidden + self.linear_out(self.dropout(self.activation(update)))


class ShortCutVelocityMLP(EmbeddedVelocity):
    """Velocity of a flattened action chunk from a residual MLP with FiLM conditioning.

    The layers process the chunk; time, step size and condition enter only by modulating every layer.

    Args:
        action_dim: A.
        pred_horizon: H.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        width: hidden width.
        depth: number of residual blocks.
        dropout: dropout rate inside the blocks.

    Raises:
        ValueError: if a size is not positive.

    Examples:
        >>> import torch
        >>> net = ShortCutVelocityMLP(7, 16, 42, width=64, depth=2)
        >>> net(torch.randn(5, 16, 7), torch.rand(5), torch.zeros(5), torch.randn(5, 42)).shape
        torch.Size([5, 16, 7])
    """

    takes_several_samples = True
    """Several points per observation are allowed; :class:`FlowActor` repeats the observation for other networks."""

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        cond_dim: int,
        *,
        width: int = 256,
        depth: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {
            "action_dim": action_dim,
            "pred_horizon": pred_horizon,
            "cond_dim": cond_dim,
            "width": width,
            "depth": depth,
        }
        for name, size in sizes.items():
            check_at_least(name, size, 1)
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.time_embedding = FlowTimeEmbedding(width)
        self.cond_embedding = nn.Sequential(
            nn.Linear(cond_dim, width), nn.LayerNorm(width), Mish(), nn.Linear(width, width)
        )
        self.activation = Mish()
        self.linear_in = nn.Linear(pred_horizon * action_dim, width)
        self.blocks = nn.ModuleList(_FiLMResidualBlock(width, dropout) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = ZeroLinear(width, pred_horizon * action_dim)

    def embed_time(self, timestep: Tensor, step_size: Tensor) -> Tensor:
        """Embed times ``[B]`` and step sizes ``[B]`` as ``[B, width]``."""
        return self.time_embedding(timestep, step_size)

    def embed_observation(self, global_cond: Tensor) -> Tensor:
        """Embed encoded observations ``[B, C]`` as ``[B, width]``: two thirds of the work, shared by several points."""
        return self.cond_embedding(global_cond)

    def embedded_velocity(self, sample: Tensor, embedding: Tensor) -> Tensor:
        """Return the velocity of points ``[B, H, A]`` or ``[B, N, H, A]`` for embeddings ``[B, width]``."""
        return self._modulated_velocity(sample, self._modulations(embedding))

    def at_times(self, embedded: Tensor, cond: Tensor) -> Callable[[Tensor, int], Tensor]:
        """Return the velocity at one of K times; of few rows, the modulation of all times is computed at once."""
        # Compiled and exported programs have one form for all numbers of rows.
        if torch.compiler.is_compiling() or embedded.shape[0] * cond.shape[0] > _ROWS_AT_ONCE:
            return super().at_times(embedded, cond)
        modulations = list(self._modulations(embedded.unsqueeze(1) + cond))
        return lambda sample, i: self._modulated_velocity(sample, (one[i] for one in modulations))

    def _modulations(self, embedding: Tensor) -> Iterator[Tensor]:
        """Return scale and shift of each block, ``[..., 2 width]``."""
        cond = self.activation(embedding)
        return (block.film(cond) for block in self.blocks)  # pyright: ignore[reportCallIssue]

    def _modulated_velocity(self, sample: Tensor, modulations: Iterable[Tensor]) -> Tensor:
        hidden = self.linear_in(sample.flatten(-2))
        for block, modulation in zip(self.blocks, modulations):
            hidden = block(hidden, modulation.unsqueeze(1) if sample.ndim == 4 else modulation)
        out = self.linear_out(self.activation(self.norm_out(hidden)))
        return out.unflatten(-1, (self.pred_horizon, self.action_dim))
