"""How the time of a piece of work grows with its size: replay rows, critics, environments, demonstrations, images.

    python benchmarks/growth.py
    python benchmarks/growth.py --axes replay members --results benchmarks/results.csv

The sizes of one axis alternate in one process, and each is compared with the smallest size. docs/concepts/speed.md
shows the curves. Growth of ManiSkill with the number of environments is measured by benchmarks/maniskill_batch.py.
A million rows of replay take about 2 GB of memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import mixed_sampling
import planar_env
import torch
import tyro
from pairs import record_pair
from tensordict import TensorDict

from torchrl_flow.data import DemoReplayBuffer, DemoStore, MixedReplayBuffer
from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss
from torchrl_flow.util.timing import Form, alternate

Axis = Literal["replay", "members", "environments", "demonstrations", "images"]
BATCH, STATE, ACTION = 256, 42, 7


@dataclass
class Args:
    """What to measure."""

    axes: tuple[Axis, ...] = get_args(Axis)
    """Axes to measure."""
    rounds: int = 20
    """Number of measurements of each size, taken alternately."""
    repeats: int = 5
    """Calls in a measurement."""
    largest: int = 1_000_000
    """Larger sizes are left out."""
    results: Path | None = None
    """A CSV file to append the pairs to."""


def rows_of(folder: Path, episodes: int) -> DemoReplayBuffer:
    """Return chunks of random demonstrations of 100 steps."""
    made = mixed_sampling.episodes(mixed_sampling.Args(), 100 * episodes)
    store = DemoStore.from_episodes(made, folder / str(episodes))
    return DemoReplayBuffer(store, pred_horizon=16, act_horizon=8, obs_horizon=2, batch_size=BATCH)


def replay(size: int, folder: Path) -> Form:
    """Sample from a mixed buffer with this many online rows and ten demonstrations."""
    args = mixed_sampling.Args()
    buffer = MixedReplayBuffer(rows_of(folder / f"replay-{size}", 10), online=size, batch_size=BATCH)
    piece = mixed_sampling.collected(args, min(1000, size // args.num_envs), steps=False)
    for _ in range(size // piece.numel()):
        buffer.extend(piece)
    return buffer.sample


def members(size: int, folder: Path) -> Form:
    """Compute the values of a batch by an ensemble of this many critics, and the gradient."""
    actor = make_flow_actor(FlowActorConfig(action_dim=ACTION, state_dim=STATE, obs_horizon=1))
    critic = QEnsemble.for_actor(actor, num_qs=size)
    features, action = torch.randn(BATCH, STATE), torch.randn(BATCH, actor.act_horizon, ACTION)

    def run() -> None:
        critic.q_values(features, action).square().mean().backward()
        critic.zero_grad()

    return run


def environments(size: int, folder: Path) -> Form:
    """Step this many environments of the planar task, with resets."""
    return planar_env.whole_step(PlanarPickPlaceEnv(size, seed=0))


def demonstrations(size: int, folder: Path) -> Form:
    """Sample chunks from this many demonstrations."""
    return rows_of(folder, size).sample


def images(size: int, folder: Path) -> Form:
    """Compute the loss of cloning from 32 images of this height and width, and its gradient."""
    config = FlowActorConfig(action_dim=ACTION, state_dim=STATE, obs_horizon=1, pixels_size=(size, size))
    actor = make_flow_actor(config)
    loss = ShortCutFlowLoss(actor)
    data = {"observation": torch.randn(32, 1, STATE), "action_chunk": torch.randn(32, actor.pred_horizon, ACTION)}
    pixels = torch.randint(0, 256, (32, 1, 3, size, size), dtype=torch.uint8)
    batch = TensorDict({**data, "pixels": pixels}, [32])

    def run() -> None:
        loss(batch)["loss_flow"].backward()
        loss.zero_grad()

    return run


AXES: dict[Axis, tuple[str, Callable[[int, Path], Form], tuple[int, ...]]] = {
    "replay": ("sample of the mixed buffer, online rows", replay, (1_000, 10_000, 100_000, 1_000_000)),
    "members": ("values and gradient of an ensemble, members", members, (2, 4, 8, 16, 32)),
    "environments": ("step of the planar task, environments", environments, (1, 4, 16, 64, 256, 1024)),
    "demonstrations": ("sample of chunks, demonstrations", demonstrations, (10, 100, 1000)),
    "images": ("cloning loss and gradient, pixels of an image's side", images, (32, 64, 128)),
}


def main(args: Args) -> None:
    torch.set_num_threads(1)
    for axis in args.axes:
        title, make, sizes = AXES[axis]
        sizes = [size for size in sizes if size <= args.largest]
        with tempfile.TemporaryDirectory() as folder:
            forms = {str(size): make(size, Path(folder)) for size in sizes}
            times = alternate(forms, rounds=args.rounds, repeats=args.repeats)
        for size in sizes:
            record_pair(title, f"{size} / {sizes[0]}", times[str(size)], times[str(sizes[0])], results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
