"""One recorded episode: checked on the way in, and trimmed where asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_flow.data.errors import DataError

__all__ = ["Episode", "cut_after_success", "drop_idle_steps"]

STEP_KEYS = ("action", "reward", "success")


@dataclass(frozen=True)
class Episode:
    """T steps between T + 1 frames.

    Args:
        frames: tensors ``[T + 1, ...]`` by key (tuples for nested ones); frame t is what action t was chosen
            from.
        action: ``[T, A]`` float32.
        reward: ``[T]`` float32, received after action t.
        success: ``[T]`` bool, whether the task is solved after action t; not latched.
        perturbed: ``[T]`` bool, whether action t was disturbed on purpose and is not to be imitated.
        seed: seed of the episode's reset, -1 where unknown.
        name: how errors and warnings call it.
    """

    frames: dict[str | tuple[str, ...], Tensor]
    action: Tensor
    reward: Tensor
    success: Tensor
    perturbed: Tensor
    seed: int = -1
    name: str = "episode"

    def __len__(self) -> int:
        return self.action.shape[0]

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any] | TensorDictBase, name: str = "episode") -> Episode:
        """Builds a checked episode from tensors or arrays by key.

        Args:
            data: ``action`` ``[T, A]``; optionally ``success`` ``[T]`` or ``[T, 1]`` (default: never),
                ``reward`` likewise (default: 1 where successful, else 0), ``perturbed`` likewise (default:
                never) and ``seed``; every other entry, nested ones too, holds frames ``[T + 1, ...]``.
            name: how errors call the episode.

        Raises:
            DataError: when something is missing, not finite, or of another length.

        Examples:
            >>> episode = Episode.from_mapping({"observation": torch.zeros(4, 2), "action": torch.ones(3, 1)})
            >>> len(episode), episode.reward.tolist()
            (3, [0.0, 0.0, 0.0])
        """
        tensordict = data if isinstance(data, TensorDictBase) else TensorDict(dict(data), batch_size=[])
        leaves = {unravel_key(key): value for key, value in tensordict.items(True, True)}
        if "action" not in leaves:
            raise DataError(f"{name}: there is no `action` entry, only {sorted(map(str, leaves))}.")
        action = _plain(leaves.pop("action")).to(torch.float32)
        if action.ndim != 2 or action.shape[0] == 0 or action.shape[1] == 0:
            raise DataError(f"{name}: `action` must be [T, A] with at least one step, got {list(action.shape)}.")
        steps = action.shape[0]
        success = _per_step(leaves.pop("success", torch.zeros(steps)), "success", steps, name).to(torch.bool)
        reward = _per_step(leaves.pop("reward", success), "reward", steps, name).to(torch.float32)
        never = torch.zeros(steps)
        perturbed = _per_step(leaves.pop("perturbed", never), "perturbed", steps, name).to(torch.bool)
        seed = int(leaves.pop("seed", torch.tensor(-1)))
        frames = {key: _frames(value) for key, value in leaves.items()}
        episode = cls(frames, action, reward, success, perturbed, seed, name)
        episode._check()
        return episode

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
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                row = int((~torch.isfinite(value)).flatten(1 if value.ndim > 1 else 0).nonzero()[0, 0])
                raise DataError(f"{self.name}: `{_join(key)}` is not finite (first at row {row}).")


def cut_after_success(episode: Episode, keep: int = 0) -> Episode:
    """Ends an episode ``keep`` steps after its first successful one; an unsuccessful one is returned whole.

    Raises:
        ValueError: when ``keep`` is negative.
    """
    if keep < 0:
        raise ValueError(f"keep_after_success must be at least 0, got {keep}.")
    first = episode.success.nonzero()
    if first.numel() == 0:
        return episode
    steps = min(len(episode), int(first[0]) + 1 + keep)
    kept = torch.zeros(len(episode), dtype=torch.bool)
    kept[:steps] = True
    return _keep(episode, kept, last=steps)


def drop_idle_steps(episode: Episode, *, motion_tol: float = 0.02, frame_tol: float = 0.002) -> Episode:
    """Leaves out steps at which the arm is not told to move, and nothing does.

    Step t is idle when each entry of its action but the last (the gripper command) is at most ``motion_tol``
    in size, the gripper command is that of the step before, and ``observation`` changes by at most
    ``frame_tol`` in any entry. A step that changes ``success``, or that carries a reward its predecessor did
    not, is always kept, and so is the first one that follows a change of the gripper command. Frame t goes
    with step t: the action after the gap stays with the frame it was chosen from.

    Args:
        episode: one with an ``observation``.
        motion_tol: in units of the (normalised) action.
        frame_tol: in units of the observation (metres, radians and so on).

    Raises:
        DataError: when there is no ``observation`` to see a change in.
    """
    observation = episode.frames.get("observation")
    if observation is None:
        raise DataError(f"{episode.name}: drop_idle needs an `observation`, which this episode does not have.")
    flat = observation.reshape(observation.shape[0], -1).to(torch.float32)
    still = (episode.action[:, :-1].abs() <= motion_tol).all(-1)
    unchanged = ((flat[1:] - flat[:-1]).abs() <= frame_tol).all(-1)
    gripper = episode.action[:, -1]
    same = torch.ones_like(still)
    same[1:] = (gripper[1:] == gripper[:-1]) & (episode.success[1:] == episode.success[:-1])
    same[1:] &= episode.reward[1:] == episode.reward[:-1]
    same[0] = not bool(episode.success[0]) and float(episode.reward[0]) == 0.0
    kept = ~(still & unchanged & same)
    if not bool(kept.any()):
        kept[-1] = True
    return _keep(episode, kept, last=len(episode))


def _keep(episode: Episode, kept: Tensor, last: int) -> Episode:
    """The steps of a bool mask ``[T]``, each with its frame, and frame ``last`` at the end."""
    rows = torch.cat([kept.nonzero().squeeze(-1), torch.tensor([last])])
    return replace(
        episode,
        frames={key: value[rows] for key, value in episode.frames.items()},
        action=episode.action[kept],
        reward=episode.reward[kept],
        success=episode.success[kept],
        perturbed=episode.perturbed[kept],
    )


def _per_step(value: Any, key: str, steps: int, name: str) -> Tensor:
    value = _plain(value)
    if value.shape not in ((steps,), (steps, 1)):
        raise DataError(f"{name}: `{key}` must be [{steps}] or [{steps}, 1] like the actions, got {list(value.shape)}.")
    return value.reshape(steps)


def _frames(value: Any) -> Tensor:
    value = _plain(value)
    return value.to(torch.float32) if value.is_floating_point() else value


def _plain(value: Any) -> Tensor:
    value = torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    return value.detach().to("cpu")


def _join(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else "/".join(key)
