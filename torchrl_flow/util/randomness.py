"""Seeds, and isolation of the global random generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torchrl.checkpoint import GlobalRNGState

__all__ = ["isolated_rng", "mix_seeds", "seed_everything"]


def mix_seeds(seeds: Iterable[int]) -> int:
    """Return one 63-bit seed that depends on all given seeds and their order.

    Examples:
        >>> mix_seeds([1, 2]) == mix_seeds([1, 2]), mix_seeds([1, 2]) == mix_seeds([2, 1])
        (True, False)
    """
    text = ",".join(str(int(seed)) for seed in seeds)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (every device).

    Examples:
        >>> seed_everything(0)
        >>> first = torch.rand(())
        >>> seed_everything(0)
        >>> bool(torch.rand(()) == first)
        True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with newly seeded global generators and restore their state afterwards.

    Draws in the block depend only on ``seed``, and draws after the block are the same as without it. This holds for the
    global generators of Python, NumPy and torch, on every accelerator in use
    (:class:`torchrl.checkpoint.GlobalRNGState`), from which environments and policies draw.

    Args:
        seed: seed of the block.
        device: seed and restore only torch's generators of the CPU and of this device. Use it for a frequent block that
            draws from no other generator.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> expected = torch.rand(())
        >>> _ = torch.manual_seed(0)
        >>> with isolated_rng(7):
        ...     noise = torch.rand(100)
        >>> bool(torch.rand(()) == expected)
        True
    """
    if device is not None:
        with _isolated_torch_rng(seed, device):
            yield
        return
    generators = GlobalRNGState()
    before = generators.state_dict()
    seed_everything(seed)
    try:
        yield
    finally:
        generators.load_state_dict(before)


@contextmanager
def _isolated_torch_rng(seed: int, device: torch.device) -> Iterator[None]:
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
