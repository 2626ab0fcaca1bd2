"""Building blocks of the velocity networks: time embedding, conditioning, zero-initialised output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchrl_flow.modules.activation import Mish

__all__ = ["FlowTimeEmbedding", "SinusoidalEmbedding", "ZeroLinear", "check_velocity_inputs"]


class ZeroLinear(nn.Linear):
    """A linear layer that is initialised and reset to zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class SinusoidalEmbedding(nn.Module):
    """Embedding of a number in [0, 1] as sines and cosines of geometrically spaced frequencies.

    Args:
        size: length of the embedding; even, at least 4.

    Keyword Args:
        max_frequency: the highest angular frequency, in radians; the lowest is 1.

    Examples:
        >>> import torch
        >>> SinusoidalEmbedding(8)(torch.zeros(3)).shape
        torch.Size([3, 8])
    """

    frequencies: Tensor

    def __init__(self, size: int, *, max_frequency: float = 100.0) -> None:
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"size must be even and at least 4, got {size}.")
        exponents = torch.linspace(0, math.log(max_frequency), size // 2)
        self.register_buffer("frequencies", exponents.exp())

    def forward(self, value: Tensor) -> Tensor:
        """Embed ``[B]`` as ``[B, size]``."""
        angle = value.unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], -1)


class FlowTimeEmbedding(nn.Module):
    """Joint embedding of flow time t and step size d.

    Args:
        size: length of the result.

    Keyword Args:
        sinusoidal_size: length of each sinusoidal embedding.

    Examples:
        >>> import torch
        >>> FlowTimeEmbedding(16)(torch.rand(3), torch.zeros(3)).shape
        torch.Size([3, 16])
    """

    def __init__(self, size: int, *, sinusoidal_size: int = 64) -> None:
        super().__init__()
        self.sinusoid = SinusoidalEmbedding(sinusoidal_size)
        self.net = nn.Sequential(nn.Linear(2 * sinusoidal_size, size), Mish(), nn.Linear(size, size))

    def forward(self, timestep: Tensor, step_size: Tensor) -> Tensor:
        """Embed times ``[B]`` and step sizes ``[B]`` as ``[B, size]``."""
        return self.net(torch.cat([self.sinusoid(timestep), self.sinusoid(step_size)], -1))


def check_velocity_inputs(
    sample: Tensor, timestep: Tensor, step_size: Tensor, global_cond: Tensor, *, shape: tuple[int, int, int]
) -> None:
    """Check the shapes of a velocity network's inputs, since a wrong shape could broadcast silently.

    Args:
        sample: points, which must be ``[B, H, A]``.
        timestep: times, which must be ``[B]``.
        step_size: step sizes, which must be ``[B]``.
        global_cond: conditions, which must be ``[B, C]``.
        shape: the network's ``(H, A, C)``.

    Raises:
        ValueError: if the check fails. The error states the tensor, its expected shape and its shape.
    """
    horizon, action_dim, cond_dim = shape
    batch = sample.shape[0] if sample.ndim else 0
    expected = {
        "sample": (sample, (batch, horizon, action_dim)),
        "timestep": (timestep, (batch,)),
        "step_size": (step_size, (batch,)),
        "global_cond": (global_cond, (batch, cond_dim)),
    }
    for name, (value, wanted) in expected.items():
        if tuple(value.shape) != wanted:
            raise ValueError(
                f"{name} must have shape {wanted} (batch {batch}, pred_horizon {horizon}, action_dim {action_dim}, "
                f"cond_dim {cond_dim}), got {tuple(value.shape)}."
            )
