"""Collects what the steps of a chunk return and folds it into one transition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tensordict import NestedKey, TensorDictBase
from torchrl_flow.functional.chunk import chunk_return, executed_mask, latch

__all__ = ["ChunkRecord", "Transition"]


class Transition(NamedTuple):
    """A chunk as one transition; ``n <= act_horizon`` is the number of steps of the longest row.

    ``returns`` and ``flags`` map keys to ``[*B, *F]``, ``step_rewards`` to ``[*B, *F, n]``.
    """

    executed: Tensor  # bool [*B, n]
    steps: Tensor  # int64 [*B, 1]
    returns: dict[NestedKey, Tensor]
    step_rewards: dict[NestedKey, Tensor]
    flags: dict[NestedKey, Tensor]


class ChunkRecord:
    """The rewards and flags of the steps of a chunk.

    Args:
        done_key (NestedKey): the flag that ends a chunk, bool ``[*B, 1]``.
        reward_keys (iterable of NestedKey): entries to discount and sum, ``[*B, *F]``.
        flag_keys (iterable of NestedKey): bool entries to latch, ``[*B, *F]``; ``done_key`` among them.
    """

    def __init__(
        self, done_key: NestedKey, reward_keys: Iterable[NestedKey], flag_keys: Iterable[NestedKey]
    ) -> None:
        self._done_key = done_key
        self._rewards: dict[NestedKey, list[Tensor]] = {key: [] for key in reward_keys}
        self._flags: dict[NestedKey, list[Tensor]] = {key: [] for key in flag_keys}

    def add(self, next_tensordict: TensorDictBase) -> Tensor:
        """Takes note of a step and returns its done flag, bool ``[*B, 1]``."""
        for key, values in self._rewards.items():
            values.append(next_tensordict.get(key))
        for key, values in self._flags.items():
            values.append(next_tensordict.get(key))
        return self._flags[self._done_key][-1]

    def fold(self, gamma: float, selected: Tensor | None = None) -> Transition:
        """The transition.

        Args:
            gamma (float): discount per step.
            selected (Tensor, optional): bool ``[*B, 1]``, the rows of which any step was executed at all.
                Defaults to all of them.
        """
        executed = executed_mask(torch.cat(self._flags[self._done_key], dim=-1))
        if selected is not None:
            executed = executed & selected
        step_rewards = {}
        for key, values in self._rewards.items():
            rewards = torch.stack(values, dim=-1)
            if not rewards.is_floating_point():
                rewards = rewards.to(torch.get_default_dtype())
            step_rewards[key] = torch.where(_over_features(executed, rewards), rewards, 0.0)
        returns = {
            key: chunk_return(rewards, _over_features(executed, rewards), gamma).squeeze(-1)
            for key, rewards in step_rewards.items()
        }
        flags = {}
        for key, values in self._flags.items():
            stacked = torch.stack(values, dim=-1)
            flags[key] = latch(stacked, _over_features(executed, stacked)).squeeze(-1)
        steps = executed.sum(dim=-1, keepdim=True)
        return Transition(executed, steps, returns, step_rewards, flags)


def _over_features(executed: Tensor, like: Tensor) -> Tensor:
    """``[*B, n]`` expanded to the shape ``[*B, *F, n]`` of ``like``."""
    features = (1,) * (like.ndim - executed.ndim)
    return executed.reshape(*executed.shape[:-1], *features, executed.shape[-1]).expand(like.shape)
