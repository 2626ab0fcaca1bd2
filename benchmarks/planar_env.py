"""Speed of the planar pick-and-place env, in environment steps per second.

Run ``python benchmarks/planar_env.py``.

Prints one line per batch size: full steps through ``env.step_and_maybe_reset`` with random actions and partial resets
(sub-environments start at different steps of their episodes, so that some end at every step), only the dynamics, and
full steps with images. Takes about half a minute on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro

from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.envs.planar.dynamics import planar_step


@dataclass
class Args:
    """What to measure."""

    num_envs: tuple[int, ...] = (1, 64, 1024, 4096)
    """Batch sizes with state observations."""
    num_envs_pixels: tuple[int, ...] = (64, 1024)
    """Batch sizes with image observations."""
    seconds: float = 2.0
    """Duration of each measurement."""
    threads: int = 1
    """CPU threads of torch."""
    device: str = "cpu"
    """Device of the env."""


def rate(step: Callable[[], None], num_envs: int, args: Args) -> float:
    """Return environment steps per second of a function that does ``num_envs`` of them."""
    calls, start = 0, 0.0
    for timed in (False, True):  # the first round warms up
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < (args.seconds if timed else args.seconds / 4):
            step()
            calls += 1
            if args.device != "cpu":
                torch.cuda.synchronize()
    return calls * num_envs / (time.perf_counter() - start)


def whole_step(env: PlanarPickPlaceEnv) -> Callable[[], None]:
    """Return a function that steps the env with partial resets; episodes start at different steps."""
    data = env.reset()
    age = torch.arange(env.batch_size.numel(), device=env.device).reshape(-1, 1)
    env._elapsed = age % env.max_episode_steps
    actions = [env.full_action_spec.rand()["action"] for _ in range(16)]
    count = 0

    def step() -> None:
        nonlocal data, count
        data.set("action", actions[count % len(actions)])
        data = env.step_and_maybe_reset(data)[1]
        count += 1

    return step


def dynamics_step(env: PlanarPickPlaceEnv) -> Callable[[], None]:
    """Return a function that applies only the dynamics."""
    state = env.reset()["observation"]
    action = env.full_action_spec.rand()["action"]

    def step() -> None:
        nonlocal state
        state = planar_step(state, action, env.geometry)

    return step


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    print(f"{'envs':>6} {'observation':>12} {'env steps/s':>12} {'dynamics alone':>15}")
    for from_pixels, sizes in ((False, args.num_envs), (True, args.num_envs_pixels)):
        for num_envs in sizes:
            env = PlanarPickPlaceEnv(num_envs, from_pixels=from_pixels, seed=0, device=args.device)
            whole = rate(whole_step(env), num_envs, args)
            alone = "" if from_pixels else f"{rate(dynamics_step(env), num_envs, args):15,.0f}"
            kind = "state+pixels" if from_pixels else "state"
            print(f"{num_envs:6d} {kind:>12} {whole:12,.0f} {alone}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
