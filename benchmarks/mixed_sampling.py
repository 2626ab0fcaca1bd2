"""Time to sample a batch of a MixedReplayBuffer, for several sizes of its parts.

    python benchmarks/mixed_sampling.py --sizes 1000 100000 1000000

Demonstrations and online part have the same size; the latter holds transitions, or steps that are folded when they are
drawn. The time must depend on the batch size: a hundred times the rows may cause cache misses, but must not take a
hundred times as long. Writes the stores to a temporary directory; a million rows take about 2 GB of memory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage

from torchrl_flow.data import DemoReplayBuffer, DemoStore, MixedReplayBuffer


@dataclass
class Args:
    """Time of MixedReplayBuffer.sample."""

    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    """Rows of each part."""
    batch_size: int = 256
    online_ratio: float = 0.5
    num_envs: int = 10
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


def collected(args: Args, length: int, *, steps: bool) -> TensorDict:
    batch = [args.num_envs, length]
    flag = torch.rand(*batch, 1) < 0.01
    following = {
        "observation": torch.randn(*batch, args.obs_horizon, args.state_dim),
        "reward": torch.rand(*batch, 1),
        "done": flag,
        "terminated": flag,
        "truncated": torch.zeros_like(flag),
        "success": flag,
    }
    shape = (args.action_dim,) if steps else (args.act_horizon, args.action_dim)
    data = {"observation": following["observation"].clone(), "action": torch.randn(*batch, *shape)}
    if not steps:
        data["action_chunk"] = torch.randn(*batch, args.pred_horizon, args.action_dim)
        following["steps_to_next_obs"] = torch.full((*batch, 1), args.act_horizon)
    return TensorDict({**data, "next": TensorDict(following, batch)}, batch)


def time_batches(buffer: MixedReplayBuffer, count: int) -> float:
    for _ in range(count // 10):
        buffer.sample()
    start = time.process_time()
    for _ in range(count):
        buffer.sample()
    return (time.process_time() - start) / count


def main(args: Args) -> None:
    torch.set_num_threads(1)
    print(f"{'rows':>10} {'online part':>12} {'batch CPU ms':>13} {'batches/s':>10}")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            store = DemoStore.from_episodes(episodes(args, size), Path(folder) / "store")
            horizons = {name: getattr(args, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
            demos = DemoReplayBuffer(store, **horizons)
            for steps in (False, True):
                buffer = MixedReplayBuffer(
                    demos,
                    online=LazyTensorStorage(size, ndim=2 if steps else 1),
                    online_ratio=args.online_ratio,
                    batch_size=args.batch_size,
                )
                piece = collected(args, min(1000, size // args.num_envs), steps=steps)
                for _ in range(size // piece.numel()):
                    buffer.extend(piece)
                cpu = time_batches(buffer, args.batches)
                print(f"{size:>10} {'steps' if steps else 'transitions':>12} {1e3 * cpu:>13.3f} {1 / cpu:>10.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
