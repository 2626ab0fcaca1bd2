"""Recording of a policy's episodes as demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.data.demos.episode import Episode, first_steps
from torchrl_flow.envs.transforms.steps import find_step_recorder
from torchrl_flow.evaluation.group_rollout import GroupRollout, Policy
from torchrl_flow.util.progress import Progress
from torchrl_flow.util.randomness import isolated_rng

__all__ = ["record_episodes", "successful_part"]


def record_episodes(
    env: EnvBase,
    policy: Policy,
    seeds: Sequence[int],
    *,
    noise_scale: float = 1.0,
    tied_noise: bool = False,
    progress: bool = True,
) -> Iterator[Episode]:
    """Play one episode from every seed and yield its single steps, in the order of the seeds.

    An episode depends only on the policy's weights and its seed, as in :func:`~torchrl_flow.evaluation.evaluate`: a
    repeated recording gives the same episodes. Actions are the executed ones, so that a chunk cut from an episode
    includes the policy's reactions to observations inside the chunk.

    Args:
        env: chunk env, made with ``record_steps=True`` (:func:`~torchrl_flow.envs.make_chunk_env`).
        policy: policy that maps observations to an action chunk.
        seeds: seeds, one per episode.

    Keyword Args:
        noise_scale: standard deviation of a flow policy's initial noise.
        tied_noise: use the same noise for all steps of a chunk, so that chunks of one state differ more.
        progress: show progress.

    Raises:
        ValueError: if the env records no steps.
    """
    recorder = find_step_recorder(env)
    if recorder is None:
        raise ValueError("the environment records no steps: make it with record_steps=True.")
    number = env.batch_size.numel()
    solved = 0
    with Progress(len(seeds), description="record", unit="ep", enabled=progress) as bar:
        for first in range(0, len(seeds), number):
            group = list(seeds[first : first + number])
            recorder.start()
            # Isolated, since the consumer of this generator may draw random numbers between two episodes.
            with isolated_rng(0), torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                rollout = GroupRollout(env, policy, {}, None, None, noise_scale, tied_noise)
                rollout.run(group + [group[-1]] * (number - len(group)), None, 0)
            steps = recorder.stop()
            rows = {key: torch.stack(values, len(env.batch_size)) for key, values in steps.items()}
            rows = {key: value.reshape(number, *value.shape[len(env.batch_size) :]) for key, value in rows.items()}
            episodes = [_episode(rows, row, seed, recorder.obs_keys) for row, seed in enumerate(group)]
            solved += sum(bool(episode.success.any()) for episode in episodes)
            bar.update(len(group), success_once=solved / (first + len(group)))
            yield from episodes


def _episode(rows: dict[NestedKey, Tensor], row: int, seed: int, obs_keys: Sequence[NestedKey]) -> Episode:
    """Cut one sub-environment's steps ``[N, T, ...]`` at the first end of its episode."""
    done = rows["done"][row].reshape(-1)
    length = int(done.to(torch.uint8).argmax()) + 1 if bool(done.any()) else len(done)
    data: dict[Any, Any] = {key: rows[key][row, : length + 1] for key in obs_keys}
    flat = {key: rows[key][row, :length].reshape(length) for key in ("reward", "success", "terminated") if key in rows}
    data |= {**flat, "action": rows["action"][row, :length], "seed": seed}
    return Episode.from_mapping(data, f"episode of seed {seed}")


def successful_part(episode: Episode, hold: int = 0) -> Episode | None:
    """Return the steps of an episode up to its success, or ``None`` without a success.

    If the episode ends in success, these are all steps up to the start of the last continuous success and ``hold``
    steps after it, so that a clone learns to stay; otherwise the steps up to the first success, which was lost again.

    Args:
        episode: the episode.
        hold: number of steps to keep from a success that lasts to the end of the episode, at least 0.
    """
    if hold < 0:
        raise ValueError(f"hold must be at least 0, got {hold}.")
    success = episode.success
    if not bool(success.any()):
        return None
    if bool(success[-1]):
        lost = (~success).nonzero()
        first = 0 if lost.numel() == 0 else int(lost[-1]) + 1
        return first_steps(episode, first + 1 + hold)
    return first_steps(episode, int(success.to(torch.uint8).argmax()) + 1)
