"""One recorded episode, validated on construction, and functions that shorten it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_flow.data.errors import DataError
from torchrl_flow.util.numbers import first_implausible

__all__ = ["Episode", "cut_after_success", "drop_idle_steps", "first_steps"]

STEP_KEYS = ("action", "reward", "success", "perturbed", "fail", "terminated")
"""Entries of a step; each except ``action`` is one number."""


@dataclass(frozen=True)
class Episode:
    """T steps between T + 1 frames, validated on construction.

    Floating-point entries of any precision become float32, the type that environments return; so does an
    ``observation`` of integers or flags.

    Args:
        frames: tensors ``[T + 1, ...]`` by key (tuples for nested ones). Frame t is the observation from which action t
            was chosen.
        action: ``[T, A]`` float32.
        reward: ``[T]`` float32, received after action t.
        success: ``[T]`` bool, whether the task is solved after action t; not latched.
        perturbed: ``[T]`` bool, whether action t was disturbed on purpose and must not be imitated.
        seed: seed of the reset; -1 if it is unknown.
        name: name of the episode in errors and warnings.
        fail: ``[T]`` bool, whether the task has failed after action t. Defaults to False at every step.
        terminated: ``[T]`` bool, whether the task ends after action t for a reason other than a time limit, such as the
            fall of a walking robot. Success and failure also end the task, as in ManiSkill.
        truncated: ``[T]`` bool, whether the recording was cut off after action t; only the last entry can be True. An
            episode whose last step is not terminated counts as truncated. The entry is checked but not stored.
        success_terminates: whether a success ends the task. False for tasks that continue after a success, such as
            holding a pose.

    Raises:
        DataError: if an entry is missing, not finite, above 1e9 in size, or of another length or type, or an episode
            continues after it was truncated.
    """

    frames: dict[str | tuple[str, ...], Tensor]
    action: Tensor
    reward: Tensor
    success: Tensor
    perturbed: Tensor
    seed: int = -1
    name: str = "episode"
    fail: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    success_terminates: bool = True

    def __post_init__(self) -> None:
        """Convert and check the fields."""
        action = _actions(self.action, self.name)
        steps = action.shape[0]
        success = _flags(self.success, "success", steps, self.name)
        fail = torch.zeros_like(success) if self.fail is None else _flags(self.fail, "fail", steps, self.name)
        ends = success | fail if self.success_terminates else fail
        if self.terminated is not None:
            ends = ends | _flags(self.terminated, "terminated", steps, self.name)
        if self.truncated is not None:
            _check_truncated(_flags(self.truncated, "truncated", steps, self.name), self.name)
        values: dict[str, Any] = {
            "frames": {key: _frame(value, key, self.name) for key, value in self.frames.items()},
            "action": action,
            "reward": _per_step(self.reward, "reward", steps, self.name).to(torch.float32),
            "success": success,
            "perturbed": _flags(self.perturbed, "perturbed", steps, self.name),
            "fail": fail,
            "terminated": ends,
            "truncated": None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def __len__(self) -> int:
        return self.action.shape[0]

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any] | TensorDictBase, name: str = "episode") -> Episode:
        """Build a checked episode from tensors or arrays by key.

        Args:
            data: ``action`` ``[T, A]``; optionally ``success`` ``[T]`` or ``[T, 1]`` (default: never), and, of the same
                shape, ``fail`` (default: never), ``terminated`` (default: at success and failure), ``truncated``
                (default: the last step, unless it is terminated), ``reward`` (default: success minus failure),
                ``perturbed`` (default: never), ``seed``, and ``success_terminates``, whether a success ends the task
                (default: it does); every other entry, nested ones too, holds frames ``[T + 1, ...]``.
            name: name of the episode in errors.

        Raises:
            DataError: if an entry is missing, not finite, or of another length or type.

        Examples:
            >>> episode = Episode.from_mapping({"observation": torch.zeros(4, 2), "action": torch.ones(3, 1)})
            >>> len(episode), episode.reward.tolist()
            (3, [0.0, 0.0, 0.0])
        """
        leaves = dict(_leaves(data))
        if "action" not in leaves:
            raise DataError(f"{name}: there is no `action` entry, only {sorted(map(str, leaves))}.")
        action = _actions(leaves.pop("action"), name)
        steps = action.shape[0]
        never = torch.zeros(steps, dtype=torch.bool)
        success = _flags(leaves.pop("success", never), "success", steps, name)
        fail = _flags(leaves.pop("fail", never), "fail", steps, name)
        reward = leaves.pop("reward", success.to(torch.float32) - fail.to(torch.float32))
        return cls(
            action=action,
            reward=reward,
            success=success,
            fail=fail,
            terminated=leaves.pop("terminated", None),
            truncated=leaves.pop("truncated", None),
            success_terminates=_flag(leaves.pop("success_terminates", True), "success_terminates", name),
            perturbed=leaves.pop("perturbed", never),
            seed=_seed(leaves.pop("seed", -1), name),
            frames=leaves,
            name=name,
        )

    def _check(self) -> None:
        if not self.frames:
            raise DataError(f"{self.name}: there are no frames: give at least `observation` or `pixels`.")
        for key, value in self.frames.items():
            if value.ndim == 0 or value.shape[0] != len(self) + 1:
                rows = value.shape[0] if value.ndim else 0
                raise DataError(
                    f"{self.name}: `{_join(key)}` has {rows} rows for {len(self)} actions; there must be "
                    f"{len(self) + 1}, one before each action and one after the last."
                )
        values = {**self.frames, "action": self.action, "reward": self.reward}
        for key, value in values.items():
            found = first_implausible(value)
            if found is not None:
                (row, *_), what = found
                raise DataError(f"{self.name}: `{_join(key)}` is {what} (first at row {row}).")


def cut_after_success(episode: Episode, keep: int = 0) -> Episode:
    """End an episode ``keep`` steps after its first success; an unsuccessful episode is returned unchanged.

    Raises:
        ValueError: if ``keep`` is negative.
    """
    if keep < 0:
        raise ValueError(f"keep_after_success must be at least 0, got {keep}.")
    first = episode.success.nonzero()
    if first.numel() == 0:
        return episode
    return first_steps(episode, int(first[0]) + 1 + keep)


def first_steps(episode: Episode, number: int) -> Episode:
    """Return the first ``number`` steps of an episode, or all of them if it is shorter.

    Raises:
        ValueError: if ``number`` is below 1.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}.")
    steps = min(len(episode), number)
    kept = torch.zeros(len(episode), dtype=torch.bool)
    kept[:steps] = True
    return _keep(episode, kept, last=steps)


def drop_idle_steps(episode: Episode, *, motion_tol: float = 0.02, frame_tol: float = 0.002) -> Episode:
    """Remove steps in which the action commands no motion and the observation does not change.

    Step t is idle when each entry of its action but the last (the gripper command) is at most ``motion_tol``
    in size, the gripper command is the same as in the previous step, and ``observation`` changes by at most
    ``frame_tol`` in any entry. A step that changes ``success``, ``fail`` or ``terminated``, or whose reward differs
    from the previous one, is always kept, and so is the first step after a change of the gripper command. Frame t is
    removed with step t, so each remaining action keeps the frame from which it was chosen.

    Args:
        episode: episode with an ``observation``.
        motion_tol: largest action that counts as no motion, in units of the (normalised) action.
        frame_tol: largest change of the observation that counts as none, in units of the observation (metres, radians
            and so on).

    Raises:
        DataError: if there is no ``observation``.
    """
    observation = episode.frames.get("observation")
    if observation is None:
        raise DataError(f"{episode.name}: drop_idle needs an `observation`, which this episode does not have.")
    flat = observation.reshape(observation.shape[0], -1).to(torch.float32)
    still = (episode.action[:, :-1].abs() <= motion_tol).all(-1)
    unchanged = ((flat[1:] - flat[:-1]).abs() <= frame_tol).all(-1)
    gripper = episode.action[:, -1]
    same = torch.ones_like(still)
    same[1:] = (gripper[1:] == gripper[:-1]) & (episode.reward[1:] == episode.reward[:-1])
    same[0] = float(episode.reward[0]) == 0.0
    for flag in (episode.success, episode.fail, episode.terminated):
        flag = cast(Tensor, flag)
        same[1:] &= flag[1:] == flag[:-1]
        same[0] &= ~flag[0]
    kept = ~(still & unchanged & same)
    if not bool(kept.any()):
        kept[-1] = True
    return _keep(episode, kept, last=len(episode))


def _keep(episode: Episode, kept: Tensor, last: int) -> Episode:
    """Return the steps of a bool mask ``[T]``, each with its frame, and frame ``last`` at the end."""
    rows = torch.cat([kept.nonzero().squeeze(-1), torch.tensor([last])])
    steps: dict[str, Any] = {key: cast(Tensor, getattr(episode, key))[kept] for key in STEP_KEYS}
    return replace(episode, frames={key: value[rows] for key, value in episode.frames.items()}, **steps)


def _leaves(data: Mapping[str, Any] | TensorDictBase, prefix: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Return entries by key; tuples for nested ones."""
    for key, value in data.items():
        path = (*prefix, *(key if isinstance(key, tuple) else (key,)))
        if isinstance(value, (Mapping, TensorDictBase)):
            yield from _leaves(value, path)
        else:
            yield (path[0] if len(path) == 1 else path), value


def _actions(value: Any, name: str) -> Tensor:
    action = _plain(value, "action", name).to(torch.float32)
    if action.ndim != 2 or action.shape[0] == 0 or action.shape[1] == 0:
        raise DataError(f"{name}: `action` must be [T, A] with at least one step, got {list(action.shape)}.")
    return action


def _per_step(value: Any, key: str, steps: int, name: str) -> Tensor:
    value = _plain(value, key, name)
    if value.shape not in ((steps,), (steps, 1)):
        raise DataError(f"{name}: `{key}` must be [{steps}] or [{steps}, 1] like the actions, got {list(value.shape)}.")
    return value.reshape(steps)


def _flags(value: Any, key: str, steps: int, name: str) -> Tensor:
    value = _per_step(value, key, steps, name)
    wrong = ((value != 0) & (value != 1)).nonzero()
    if wrong.numel():
        row = int(wrong[0])
        raise DataError(f"{name}: `{key}` must hold 0 and 1 alone, got {value[row].item()} at row {row}.")
    return value.to(torch.bool)


def _flag(value: Any, key: str, name: str) -> bool:
    value = _plain(value, key, name)
    if value.numel() != 1 or value.item() not in (0, 1):
        raise DataError(f"{name}: `{key}` must be one 0 or 1 for the whole episode, got {value.tolist()}.")
    return bool(value)


def _check_truncated(truncated: Tensor, name: str) -> None:
    early = truncated[:-1].nonzero()
    if early.numel():
        row = int(early[0])
        raise DataError(
            f"{name}: `truncated` is 1 at row {row}, and the episode goes on to row {len(truncated) - 1}: end it "
            "there, and give the steps after it as an episode of their own."
        )


def _frame(value: Any, key: str | tuple[str, ...], name: str) -> Tensor:
    value = _plain(value, _join(key), name)
    return value.to(torch.float32) if value.is_floating_point() or key == "observation" else value


def _plain(value: Any, key: str, name: str) -> Tensor:
    """Return a tensor of real numbers on the CPU."""
    try:
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise DataError(f"{name}: `{key}` must hold numbers, got {what}.") from error
    if value.is_complex():
        raise DataError(f"{name}: `{key}` must hold real numbers, got {value.dtype}.")
    return value.detach().to("cpu")


def _seed(value: Any, name: str) -> int:
    seed = _plain(value, "seed", name)
    if seed.numel() != 1 or not bool(torch.isfinite(seed).all()):
        raise DataError(f"{name}: `seed` must be one whole number, got {seed.tolist()}.")
    return int(seed)


def _join(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else "/".join(key)
