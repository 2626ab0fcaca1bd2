"""A one-dimensional convolutional U-Net over the steps of an action chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.velocity.embedding import FlowTimeEmbedding, ZeroLinear, check_velocity_inputs

__all__ = ["ShortCutVelocityUNet1D"]


def _conv_block(in_channels: int, out_channels: int, kernel_size: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        nn.GroupNorm(groups, out_channels),
        Mish(),
    )


class _FiLMConvBlock(nn.Module):
    """Two convolutions with FiLM between them, and a parallel 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, cond_size: int, kernel_size: int, groups: int):
        super().__init__()
        self.conv_in = _conv_block(in_channels, out_channels, kernel_size, groups)
        self.film = ZeroLinear(cond_size, 2 * out_channels)
        self.conv_out = _conv_block(out_channels, out_channels, kernel_size, groups)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(cond).unsqueeze(-1).chunk(2, 1)
        update = self.conv_in(hidden) * (1 + scale) + shift
        return self.conv_out(update) + self.shortcut(hidden)


class ShortCutVelocityUNet1D(nn.Module):
    """Velocity of an action chunk from a 1-D convolutional U-Net, FiLM-conditioned on time, step size and observation.

    Args:
        action_dim: A, the input channels.
        pred_horizon: H, halved at each level except the last; must be divisible by ``2 ** (len(channels) - 1)``.
        cond_dim: C, the size of the encoded observation.

    Keyword Args:
        channels: channels of the levels, finest first; each divisible by ``groups``.
        kernel_size: odd kernel of the convolutions along the chunk.
        groups: groups of the GroupNorm layers.
        embed_size: size of the embedding of time, step size and condition.

    Raises:
        ValueError: if a size does not fit. The error lists valid sizes.

    References:
        Chi et al., "Diffusion Policy", https://arxiv.org/abs/2303.04137

    Examples:
        >>> import torch
        >>> net = ShortCutVelocityUNet1D(7, 16, 42, channels=(16, 32))
        >>> net(torch.randn(5, 16, 7), torch.rand(5), torch.zeros(5), torch.randn(5, 42)).shape
        torch.Size([5, 16, 7])
    """

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        cond_dim: int,
        *,
        channels: Sequence[int] = (64, 128, 256),
        kernel_size: int = 5,
        groups: int = 8,
        embed_size: int = 128,
    ) -> None:
        super().__init__()
        self._check(pred_horizon, channels, kernel_size, groups)
        self.action_dim, self.pred_horizon, self.cond_dim = action_dim, pred_horizon, cond_dim
        self.time_embedding = FlowTimeEmbedding(embed_size)
        cond_size = embed_size + cond_dim
        self.activation = Mish()

        def block(c_in: int, c_out: int) -> _FiLMConvBlock:
            return _FiLMConvBlock(c_in, c_out, cond_size, kernel_size, groups)

        levels = list(zip([action_dim, *channels[:-1]], channels))
        self.down = nn.ModuleList(nn.ModuleList([block(a, b), block(b, b)]) for a, b in levels)
        self.downsample = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = nn.ModuleList([block(channels[-1], channels[-1]), block(channels[-1], channels[-1])])
        rising = list(zip(reversed(channels[1:]), reversed(channels[:-1])))
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(a, b, 4, stride=2, padding=1) for a, b in rising)
        self.up = nn.ModuleList(nn.ModuleList([block(2 * b, b), block(b, b)]) for _, b in rising)
        self.conv_out = _conv_block(channels[0], channels[0], kernel_size, groups)
        self.linear_out = ZeroLinear(channels[0], action_dim)

    @staticmethod
    def _check(pred_horizon: int, channels: Sequence[int], kernel_size: int, groups: int) -> None:
        if not channels:
            raise ValueError("channels must name at least one level, e.g. (64, 128, 256), got none.")
        stride = 2 ** (len(channels) - 1)
        if pred_horizon < 1 or pred_horizon % stride:
            allowed = [stride * n for n in range(1, 6)]
            raise ValueError(
                f"pred_horizon {pred_horizon} cannot be halved {len(channels) - 1} times, as the {len(channels)} "
                f"levels of channels {tuple(channels)} ask; allowed are {allowed} and so on, or fewer channels."
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
        uneven = [c for c in channels if c < 1 or c % groups]
        if groups < 1 or uneven:
            raise ValueError(f"every channel count must be a multiple of groups={groups}, got {uneven}.")

    def forward(self, sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor) -> Tensor:
        """Return the velocity ``[B, H, A]``; arguments as in :class:`ShortCutVelocityMLP`.

        Raises:
            ValueError: if a shape does not fit.
        """
        shape = (self.pred_horizon, self.action_dim, self.cond_dim)
        check_velocity_inputs(sample, timestep, step_size, global_cond, shape=shape)
        cond = self.activation(torch.cat([self.time_embedding(timestep, step_size), global_cond], -1))
        hidden = sample.transpose(1, 2)
        skips = []
        for i, (first, second) in enumerate(self.down):  # pyright: ignore[reportGeneralTypeIssues]
            hidden = second(first(hidden, cond), cond)
            if i < len(self.downsample):
                skips.append(hidden)
                hidden = self.downsample[i](hidden)
        for block in self.middle:
            hidden = block(hidden, cond)
        for upsample, (first, second) in zip(self.upsample, self.up):  # pyright: ignore[reportGeneralTypeIssues]
            hidden = torch.cat([upsample(hidden), skips.pop()], 1)
            hidden = second(first(hidden, cond), cond)
        return self.linear_out(self.conv_out(hidden).transpose(1, 2))
