"""Time to sample a batch of action chunks, for several sizes of the demo store.

    python benchmarks/chunk_sampling.py --sizes 1000 100000 1000000

The time must depend on the batch size, not on the size of the store: a store with a hundred times the steps may cause
cache misses, but must not take a hundred times as long. Writes the stores to a temporary directory (168 MB for a
million steps).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from torchrl_flow.data import DemoReplayBuffer, DemoStore


@dataclass
class Args:
    """Time of DemoReplayBuffer.sample."""

    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    """Steps in the store, in episodes of 100."""
    batch_size: int = 256
    state_dim: int = 42
    action_dim: int = 7
    pred_horizon: int = 16
    act_horizon: int = 8
    obs_horizon: int = 2
    batches: int = 400
    """Batches to time, after a tenth of them."""


def episodes(args: Args, steps: int) -> Iterator[dict[str, Tensor]]:
    for _ in range(max(1, steps // 100)):
        yield {"observation": torch.randn(101, args.state_dim), "action": torch.randn(100, args.action_dim)}


def main(args: Args) -> None:
    torch.set_num_threads(1)
    print(f"{'steps':>10} {'write s':>8} {'open ms':>8} {'batch CPU ms':>13} {'batches/s':>10}")
    for steps in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            store = DemoStore.from_episodes(episodes(args, steps), Path(folder) / "store")
            written = time.perf_counter()
            store = DemoStore.open(store.root)
            opened = time.perf_counter()
            buffer = DemoReplayBuffer(
                store,
                pred_horizon=args.pred_horizon,
                act_horizon=args.act_horizon,
                obs_horizon=args.obs_horizon,
                batch_size=args.batch_size,
            )
            for _ in range(args.batches // 10):
                buffer.sample()
            cpu = time.process_time()
            for _ in range(args.batches):
                buffer.sample()
            cpu = (time.process_time() - cpu) / args.batches
        row = f"{len(store):>10} {written - start:>8.2f} {1e3 * (opened - written):>8.2f}"
        print(f"{row} {1e3 * cpu:>13.3f} {1 / cpu:>10.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
