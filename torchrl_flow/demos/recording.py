"""Wrappers of a plain ManiSkill environment that rebuild it at each reset and record the episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch

__all__ = ["RebuiltEnv", "RecordedEpisode", "RecordingEnv", "equal_trees", "recorded_episode"]


@dataclass(frozen=True)
class RecordedEpisode:
    """The content of an episode in a trajectory file: (nested dicts of) arrays, T steps and T + 1 frames."""

    seed: int
    obs: Any
    env_states: Any
    actions: np.ndarray
    success: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    rewards: np.ndarray | None
    perturbed: np.ndarray | None = None
    fail: np.ndarray | None = None
    """Whether the task has failed, if it reports failures."""


class RebuiltEnv(gymnasium.Wrapper):
    """Wrapper that rebuilds the scene at each reset and stores the episode's actions."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset with a new scene."""
        self.actions.clear()
        return self.env.reset(seed=seed, options={**(options or {}), "reconfigure": True})

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and store the action."""
        action = np.array(action, dtype=np.float32).reshape(-1)
        self.actions.append(action)
        return self.env.step(action)


class RecordingEnv(gymnasium.Wrapper):
    """Wrapper of a :class:`RebuiltEnv` that stores the frames and outcomes of the episode."""

    def __init__(self, env: RebuiltEnv) -> None:
        super().__init__(env)
        self.actions = env.actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._frames, self._states = [_row(obs)], [_row(_state(self))]
        self._outcomes: list[list[np.ndarray]] = []
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and store the reward and the flags of the step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(_row(obs))
        self._states.append(_row(_state(self)))
        outcome = (info["success"], terminated, truncated, reward, *([info["fail"]] if "fail" in info else []))
        self._outcomes.append([np.array(value).reshape(()) for value in outcome])
        return obs, reward, terminated, truncated, info

    def episode(self, seed: int, with_rewards: bool, perturbed: np.ndarray | None = None) -> RecordedEpisode:
        """Return the steps since the last reset; ``perturbed`` marks those not to be imitated."""
        parts = self._frames, self._states, self.actions, self._outcomes
        return recorded_episode(seed, *parts, with_rewards, perturbed)


def recorded_episode(
    seed: int,
    frames: list[Any],
    states: list[Any],
    actions: list[np.ndarray],
    outcomes: Sequence[Sequence[np.ndarray]],
    with_rewards: bool,
    perturbed: np.ndarray | None,
) -> RecordedEpisode:
    """Assemble the recorded parts of an episode.

    Args:
        seed: seed of the episode.
        frames: observations, T + 1 of them.
        states: states of the simulation, T + 1 of them.
        actions: actions, T of them.
        outcomes: T tuples of success, terminated, truncated, reward and, if the task reports it, failure.
        with_rewards: whether to keep the rewards.
        perturbed: steps that must not be imitated.
    """
    success, terminated, truncated, rewards, *fail = (np.stack(values) for values in zip(*outcomes))
    return RecordedEpisode(
        seed=seed,
        obs=_stack(frames),
        env_states=_stack(states),
        actions=np.stack(actions),
        success=success.astype(bool),
        terminated=terminated.astype(bool),
        truncated=truncated.astype(bool),
        rewards=rewards.astype(np.float32) if with_rewards else None,
        perturbed=perturbed,
        fail=fail[0].astype(bool) if fail else None,
    )


def _state(env: gymnasium.Env) -> Any:
    base: Any = env.unwrapped
    return base.get_state_dict()


def _row(tree: Any) -> Any:
    """Return a copy of the only environment's entry, as numpy."""
    if isinstance(tree, Mapping):
        return {key: _row(value) for key, value in tree.items()}
    value = tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else np.asarray(tree)
    return np.array(value[0])


def _stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], Mapping):
        return {key: _stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def equal_trees(one: Any, other: Any) -> bool:
    """Return whether two nested dicts of arrays are equal, bit for bit."""
    if isinstance(one, Mapping):
        return all(equal_trees(one[key], other[key]) for key in one)
    return np.array_equal(one, other)
