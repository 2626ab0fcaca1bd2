"""Random numbers as a pure function of (seed, counter): one independent stream per sub-environment.

A batched environment that re-seeds single sub-environments cannot share one ``torch.Generator``: the draws of one
sub-environment would depend on the others. A hash of (seed, counter) makes every draw independent of the batch size,
the device and the order of resets, without a loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["counter_normal", "counter_uniform", "splitmix64"]


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # int64 shifts are arithmetic; the mask makes them logical, as the unsigned algorithm needs.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Return one output of the SplitMix64 generator for each 64-bit state (Steele et al., OOPSLA 2014).

    Args:
        x: int64 tensor of any shape; its bits are read as an unsigned state.

    Returns:
        An int64 tensor of the same shape whose bits are the hash.

    Examples:
        >>> splitmix64(torch.tensor(1234567)).item()
        6457827717110365317
    """
    z = x + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def counter_uniform(seed: Tensor, counter: Tensor, num_draws: int) -> Tensor:
    """Return uniform numbers in [0, 1) that depend only on ``(seed, counter)``.

    Args:
        seed: int64 ``[*B]``, one stream per seed.
        counter: int64 ``[*B]``, the position in the stream.
        num_draws: number of draws per pair.

    Returns:
        float32 ``[*B, num_draws]``, equal for equal pairs regardless of the rest of the batch.

    Examples:
        >>> seed = torch.tensor([3, 4, 3])
        >>> u = counter_uniform(seed, torch.zeros_like(seed), 2)
        >>> bool((u[0] == u[2]).all()), bool((u[0] == u[1]).any())
        (True, False)
    """
    stream = splitmix64(splitmix64(seed) + counter)
    draws = torch.arange(num_draws, device=seed.device, dtype=torch.int64) * _GOLDEN
    bits = splitmix64(stream.unsqueeze(-1) + draws)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


def counter_normal(seed: Tensor, counter: Tensor, num_draws: int) -> Tensor:
    """Return standard normal numbers that depend only on ``(seed, counter)`` (Box-Muller).

    Args:
        seed: int64 ``[*B]``, one stream per seed.
        counter: int64 ``[*B]``, the position in the stream.
        num_draws: number of draws per pair.

    Returns:
        float32 ``[*B, num_draws]``.

    Examples:
        >>> seed = torch.arange(10_000)
        >>> x = counter_normal(seed, torch.zeros_like(seed), 2)
        >>> bool(x.mean().abs() < 0.05), bool((x.std() - 1).abs() < 0.05)
        (True, True)
    """
    u, v = counter_uniform(seed, counter, 2 * num_draws).chunk(2, dim=-1)
    return torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2.0 * torch.pi * v)
