"""Speed of the slate recommender in environment steps per second, and returns of its reference policies.

    python benchmarks/slate_env.py
    python benchmarks/slate_env.py --returns
    python benchmarks/slate_env.py --returns --envs diffuse_topdown --embeddings item_embeddings_diffuse.pt

The first prints one line per batch size: full steps through ``env.step_and_maybe_reset`` with random slates and a
partial reset at every step, which is the worst case (``--no-spread-ages`` is the usual case). The second plays 2,048
users with each reference policy in all six environments, with the paper's click bookkeeping, and prints mean and
standard error of the return; it takes about two minutes on one core. The third reads the items from a file of
embeddings, such as the one published by the recommender's authors, instead of generating them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import tyro

from torchrl_flow.recsys import (
    SLATE_ENVS,
    SLATE_POLICIES,
    ItemCatalogue,
    SlateEnv,
    SlatePolicyName,
    make_catalogue,
    make_slate_policy,
)


@dataclass
class Args:
    """What to measure."""

    num_envs: tuple[int, ...] = (1, 256, 1024)
    """Batch sizes."""
    seconds: float = 3.0
    """Duration of each measurement of speed."""
    spread_ages: bool = True
    """Start the sub-environments at different steps of their episodes, so that some are reset at every step; otherwise
    all are reset together, since episodes have one length."""
    returns: bool = False
    """Measure returns instead."""
    envs: tuple[str, ...] = SLATE_ENVS
    """Environments whose returns are measured."""
    policies: tuple[SlatePolicyName, ...] = SLATE_POLICIES
    """Policies whose returns are measured."""
    users: int = 2048
    """Episodes of each."""
    exponent: float | None = None
    """Exponent of the items; by default that of the environment."""
    item_seed: int = 1
    """Seed of the items."""
    embeddings: str | None = None
    """File with a tensor of item embeddings [1000, 20], which is used unchanged instead of generated items."""
    legacy_click_history: bool = True
    """The paper's click bookkeeping."""
    threads: int = 1
    """CPU threads of torch."""
    device: str = "cpu"
    """Device of the env."""


def steps_per_second(args: Args, num_envs: int) -> float:
    """Return environment steps per second with random slates."""
    env = SlateEnv("diffuse_topdown", num_envs, seed=0, device=args.device)
    data = env.reset()
    if args.spread_ages:
        age = torch.arange(num_envs, device=env.device).reshape(-1, 1)
        env._elapsed = age % env.max_episode_steps
    slates = [env.full_action_spec.rand()["action"] for _ in range(16)]
    calls, start = 0, 0.0
    for timed in (False, True):  # the first round warms up
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < (args.seconds if timed else args.seconds / 4):
            data.set("action", slates[calls % len(slates)])
            data = env.step_and_maybe_reset(data)[1]
            calls += 1
            if args.device != "cpu":
                torch.cuda.synchronize()
    return calls * num_envs / (time.perf_counter() - start)


def items(args: Args, name: str) -> ItemCatalogue:
    """Return the items of an environment."""
    if args.embeddings is not None:
        return ItemCatalogue(torch.load(args.embeddings, map_location="cpu", weights_only=True))
    return make_catalogue(name, exponent=args.exponent, seed=args.item_seed)


def episode_returns(args: Args, name: str, policy_name: SlatePolicyName) -> torch.Tensor:
    """Return the episode return of each user."""
    catalogue = items(args, name)
    env = SlateEnv(
        name,
        args.users,
        catalogue=catalogue,
        privileged=True,
        legacy_click_history=args.legacy_click_history,
        seed=0,
        device=args.device,
    )
    generator = torch.Generator(args.device).manual_seed(0)
    policy = make_slate_policy(policy_name, name, catalogue, generator=generator)
    data, total = env.reset(), torch.zeros(args.users, 1, device=args.device)
    for _ in range(env.max_episode_steps):
        data = env.step(policy(data))["next"]
        total += data["reward"]
    return total


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    if not args.returns:
        print(f"{'envs':>6} {'env steps/s':>12}")
        for num_envs in args.num_envs:
            print(f"{num_envs:6d} {steps_per_second(args, num_envs):12,.0f}")
        return
    print(f"{'environment':18}" + "".join(f"{policy:>16}" for policy in args.policies))
    for name in args.envs:
        cells = []
        for policy in args.policies:
            total = episode_returns(args, name, policy)
            cells.append(f"{total.mean():.1f} +- {total.std() / args.users**0.5:.1f}")
        print(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
