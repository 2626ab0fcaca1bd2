"""Bitwise comparison of a batch of environments with single environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_flow.envs.maniskill.env import ManiSkillEnv

__all__ = ["BatchComparison", "Start", "compare_with_single"]

_COMPARED: tuple[str, ...] = ("observation", "reward", "success", "terminated", "truncated")


@dataclasses.dataclass
class Start:
    """Start of an episode: a seed, or a stored state (of the episode of the seed, if given)."""

    seed: int
    env_state: Mapping[str, Any] | None = None


@dataclasses.dataclass
class BatchComparison:
    """Counts of a comparison and the largest difference of each entry; all differences are 0 for an equal batch."""

    task: str
    num_envs: int
    episodes: int
    fresh_episodes: int
    steps: int
    partial_resets: int
    successes: int
    differences: dict[str, float]

    @property
    def equal(self) -> bool:
        """Whether all entries are bitwise equal."""
        return not any(self.differences.values())

    def summary(self) -> str:
        """Return a one-line summary."""
        found = ", ".join(f"{key} by {value:.1e}" for key, value in self.differences.items() if value)
        return (
            f"{self.task}: {'equal' if self.equal else 'differs: ' + found} ({self.episodes} episodes, "
            f"{self.fresh_episodes} against an environment made for it, {self.steps} steps, {self.partial_resets} "
            f"partial resets, {self.successes} successes)"
        )


@dataclasses.dataclass
class _Episode:
    start: Start
    row: int
    first: int
    actions: list[Tensor] = dataclasses.field(default_factory=list)
    seen: list[dict[str, Tensor]] = dataclasses.field(default_factory=list)


def compare_with_single(
    task: str,
    act: Callable[[int, Tensor], Tensor],
    starts: Sequence[Start],
    *,
    num_envs: int,
    steps: int,
    reset_probability: float = 0.0,
    fresh: int = 2,
    seed: int = 0,
    **kwargs: Any,
) -> BatchComparison:
    """Play episodes in a batch with partial resets at random times, and replay each in a single environment.

    Args:
        task: ManiSkill's id.
        act: function of the step number and the batch's observation ``[N, D]`` that returns the batch's action
            ``[N, A]``.
        starts: starts of the episodes. The first N start together, each further one at a partial reset. Resets stop
            when all starts are used; starts that remain after the last step are not played.
        num_envs: N, sub-environments of the batch.
        steps: steps of the batch.
        reset_probability: probability that a sub-environment is reset after a step.
        fresh: number of episodes that are replayed in a new single environment each. The others are replayed one after
            the other in one environment, which is equivalent with clean resets.
        seed: seed of the reset times.
        **kwargs: options of :class:`ManiSkillEnv`, for both environments.
    """
    if len(starts) < num_envs:
        raise ValueError(
            f"starts has {len(starts)} entries: give one for each of {num_envs} sub-environments at least."
        )
    kwargs.setdefault("max_episode_steps", steps + 1)
    batch = ManiSkillEnv(task, num_envs=num_envs, seed=0, **kwargs)
    episodes, partial_resets = _play_batch(batch, act, list(starts), steps, reset_probability, seed)
    batch.close()
    differences: dict[str, float] = dict.fromkeys(_COMPARED, 0.0)
    single = None
    for index, episode in enumerate(episodes):
        if single is None or index <= fresh:
            single = ManiSkillEnv(task, seed=0, **kwargs)
        _replay(single, episode, differences)
        if index < fresh:
            single.close()
    return BatchComparison(
        task=task,
        num_envs=num_envs,
        episodes=len(episodes),
        fresh_episodes=min(fresh, len(episodes)),
        steps=sum(len(episode.actions) for episode in episodes),
        partial_resets=partial_resets,
        successes=sum(any(bool(seen["success"]) for seen in episode.seen) for episode in episodes),
        differences=differences,
    )


def _play_batch(
    env: ManiSkillEnv,
    act: Callable[[int, Tensor], Tensor],
    starts: list[Start],
    steps: int,
    reset_probability: float,
    seed: int,
) -> tuple[list[_Episode], int]:
    num_envs = env.num_envs
    generator = torch.Generator().manual_seed(seed)
    current = [_Episode(start, row, 0) for row, start in enumerate(starts[:num_envs])]
    waiting = starts[num_envs:]
    done: list[_Episode] = []
    state = env.reset(**_reset_arguments([episode.start for episode in current]))
    _note(state, current)
    resets = 0
    for step in range(steps):
        action = act(step, state["observation"])
        for episode in current:
            episode.actions.append(action[episode.row])
        state = env.step(state.set("action", action))["next"]
        _note(state, current)
        chosen = torch.rand(num_envs, generator=generator) < reset_probability
        rows = chosen.nonzero().flatten().tolist()[: len(waiting)]
        if rows and step + 1 < steps:
            resets += 1
            mask = torch.zeros(num_envs, 1, dtype=torch.bool)
            mask[rows] = True
            for row in rows:
                done.append(current[row])
                current[row] = _Episode(waiting.pop(0), row, step + 1)
            others = ~mask.flatten()
            before = state["observation"][others].clone()
            state = env.reset(state.set("_reset", mask), **_reset_arguments([e.start for e in current]))
            if not torch.equal(before, state["observation"][others]):
                raise RuntimeError(f"{env}: a partial reset of rows {rows} changed others.")
            _note(state, [current[row] for row in rows])
    return done + current, resets


def _reset_arguments(starts: Sequence[Start]) -> dict[str, Any]:
    arguments: dict[str, Any] = {"seed": [start.seed for start in starts]}
    states = [start.env_state for start in starts]
    if all(state is not None for state in states):
        arguments["env_state"] = _stack(states)
    return arguments


def _stack(states: Sequence[Any]) -> dict[str, Any]:
    return {
        key: _stack([state[key] for state in states])
        if isinstance(states[0][key], Mapping)
        else torch.stack([torch.as_tensor(state[key], dtype=torch.float32) for state in states])
        for key in states[0]
    }


def _note(state: TensorDictBase, episodes: Sequence[_Episode]) -> None:
    for episode in episodes:
        row = {key: state[key][episode.row].clone() for key in _COMPARED if key in state.keys()}  # noqa: SIM118
        episode.seen.append(row if episode.actions else {key: row[key] for key in ("observation", "success")})


def _replay(env: ManiSkillEnv, episode: _Episode, differences: dict[str, float]) -> None:
    start = episode.start
    state = env.reset(seed=start.seed, **({} if start.env_state is None else {"env_state": start.env_state}))
    for step, seen in enumerate(episode.seen):
        if step:
            state = env.step(state.set("action", episode.actions[step - 1]))["next"]
        for key, value in seen.items():
            if not torch.equal(state[key], value):
                gap = (state[key].double() - value.double()).abs().max().item()
                differences[key] = max(differences[key], gap)
