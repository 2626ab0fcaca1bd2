"""A transformer over the steps of an action chunk, modulated by time, step size and observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_flow.modules.velocity.embedding import FlowTimeEmbedding, ZeroLinear, check_velocity_inputs

__all__ = ["ShortCutVelocityDiT"]


class _AdaLNBlock(nn.Module):
    """Self-attention and MLP with shift, scale and gate from the condition; initially the identity."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * width, width),
        )
        self.modulation = ZeroLinear(width, 6 * width)

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.projection(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(self, tokens: Tensor, cond: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(cond).unsqueeze(1).chunk(6, -1)
        tokens = tokens + gate_a * self._attend(self.norm_attention(tokens) * (1 + scale_a) + shift_a)
        return tokens + gate_m * self.mlp(self.norm_mlp(tokens) * (1 + scale_m) + shift_m)


class ShortCutVelocityDiT(nn.Module):
    """Velocity of an action chunk from a diffusion transformer with adaptive layer norm (adaLN-Zero).

    One token per chunk step; time, step size and encoded observation modulate every block.

    Args:
        action_dim: A.
        pred_horizon: H, the number of tokens.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        width: token width, a multiple of ``num_heads``.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP divided by ``width``.

    Raises:
        ValueError: if a size does not fit.

    References:
        Peebles and Xie, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748

    Examples:
        >>> import torch
        >>> net = ShortCutVelocityDiT(7, 16, 42, width=32, depth=2)
        >>> net(torch.randn(5, 16, 7), torch.rand(5), torch.zeros(5), torch.randn(5, 42)).shape
        torch.Size([5, 16, 7])
    """

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        cond_dim: int,
        *,
        width: int = 192,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        if min(action_dim, pred_horizon, cond_dim, width, depth, num_heads, mlp_ratio) < 1:
            raise ValueError(
                "action_dim, pred_horizon, cond_dim, width, depth, num_heads and mlp_ratio must be at least 1, got "
                f"{action_dim}, {pred_horizon}, {cond_dim}, {width}, {depth}, {num_heads} and {mlp_ratio}."
            )
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads={num_heads}, got {width}.")
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.token_in = nn.Linear(action_dim, width)
        self.position = nn.Embedding(pred_horizon, width)
        self.time_embedding = FlowTimeEmbedding(width)
        self.cond_embedding = nn.Linear(cond_dim, width)
        self.activation = nn.SiLU()
        self.blocks = nn.ModuleList(_AdaLNBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = ZeroLinear(width, 2 * width)
        self.linear_out = ZeroLinear(width, action_dim)

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity ``[B, H, A]``; arguments as in :class:`ShortCutVelocityMLP`.

        Raises:
            ValueError: if a shape does not fit.
        """
        shape = (self.pred_horizon, self.action_dim, self.cond_dim)
        check_velocity_inputs(sample, timestep, step_size, global_cond, shape=shape)
        cond = self.activation(self.time_embedding(timestep, step_size) + self.cond_embedding(global_cond))
        tokens = self.token_in(sample) + self.position(torch.arange(self.pred_horizon, device=sample.device))
        for block in self.blocks:
            tokens = block(tokens, cond)
        shift, scale = self.modulation_out(cond).unsqueeze(1).chunk(2, -1)
        return self.linear_out(self.norm_out(tokens) * (1 + scale) + shift)
