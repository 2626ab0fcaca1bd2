"""Scripted demonstrations of the planar task, collected in one batch."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_flow.envs.planar.demonstrator import PlanarDemonstrator
from torchrl_flow.envs.planar.dynamics import PlanarGeometry
from torchrl_flow.envs.planar.env import PlanarPickPlaceEnv
from torchrl_flow.envs.planar.render import render_planar

__all__ = ["collect_demonstrations"]


def collect_demonstrations(
    num_episodes: int,
    *,
    quality: str = "mixed",
    seed: int = 0,
    from_pixels: bool = False,
    max_episode_steps: int = 100,
    geometry: PlanarGeometry | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, Tensor]]:
    """Return demonstrations of the planar task, simulated in one batch.

    Episode ``i`` starts from seed ``seed + i`` and does not depend on ``num_episodes``. Qualities: "expert" (succeeds
    almost always), "medium", "poor", and "mixed", a mixture of the three. "medium" and "poor" have noisy motions,
    missed grasps, lost discs, attempts at the shut gap, pauses, and some episodes without success.

    Args:
        num_episodes: number of episodes.

    Keyword Args:
        quality: a key of :data:`~torchrl_flow.envs.DEMO_QUALITIES`.
        seed: seed of the first episode.
        from_pixels: add ``pixels``.
        max_episode_steps: largest number of steps of an episode.
        geometry: sizes of the task.
        device: device of the simulation.

    Returns:
        One dict per episode of T steps: ``observation`` ``[T+1, 12]``, ``action`` ``[T, 3]``, ``reward`` ``[T]``,
        ``success`` ``[T]`` bool, ``seed`` ``[]`` int64, and ``pixels`` uint8 ``[T+1, 3, 64, 64]`` with ``from_pixels``.

    Raises:
        ValueError: if ``num_episodes`` is below 1 or the quality is unknown.

    Examples:
        >>> episode = collect_demonstrations(2, quality="expert")[0]
        >>> len(episode["observation"]) == len(episode["action"]) + 1, bool(episode["success"][-1])
        (True, True)
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}.")
    env = PlanarPickPlaceEnv(num_episodes, max_episode_steps=max_episode_steps, geometry=geometry, device=device)
    seeds = torch.arange(seed, seed + num_episodes, device=env.device)
    demonstrator = PlanarDemonstrator(seeds, quality, env.geometry)
    observation, action, success, length = _simulate(env, demonstrator, seed)
    episodes = []
    for i, steps in enumerate(length.tolist()):
        episode = {
            "observation": observation[i, : steps + 1].clone(),
            "action": action[i, :steps].clone(),
            "reward": success[i, :steps].to(torch.float32),
            "success": success[i, :steps].clone(),
            "seed": seeds[i].clone(),
        }
        if from_pixels:
            episode["pixels"] = render_planar(episode["observation"], env.geometry)
        episodes.append(episode)
    return episodes


def _simulate(
    env: PlanarPickPlaceEnv, demonstrator: PlanarDemonstrator, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run all episodes to their ends; return observations ``[B, T+1, 12]``, actions, successes and lengths ``[B]``."""
    state = env.reset(seed=seed)["observation"]
    over = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
    length = over.to(torch.int64)
    states, actions, successes = [state], [], []
    while True:
        action = demonstrator(state)
        over = over | (demonstrator.stopped & (length > 0))
        if over.all():
            break
        length = length + ~over
        after = env.step(TensorDict({"action": action}, env.batch_size, device=env.device))["next"]
        state = after["observation"]
        states.append(state)
        actions.append(action)
        successes.append(after["success"].squeeze(-1))
        over = over | after["done"].squeeze(-1)
    return torch.stack(states, 1), torch.stack(actions, 1), torch.stack(successes, 1), length
