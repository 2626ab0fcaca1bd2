"""Collection of the results of a chunk's steps, and their reduction to one transition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_flow.envs.transforms.requirements import float_dtype
from torchrl_flow.functional.chunk import chunk_return, executed_mask, latch
from torchrl_flow.util.numbers import NonFiniteError, first_implausible
from torchrl_flow.util.torchrl_compat import get_entry

__all__ = ["ChunkRecord", "PendingChunk", "Transition"]


class PendingChunk(NamedTuple):
    """A chunk between its inverse call and its step."""

    root: TensorDictBase
    selected: Tensor | None
    actions: dict[NestedKey, tuple[Tensor, ...]]

    @classmethod
    def take(cls, tensordict: TensorDictBase, action_keys: Iterable[NestedKey], act_horizon: int) -> PendingChunk:
        """Take the inputs of a step, with the actions separate.

        Raises:
            ValueError: if an action is missing or not a chunk.
            NonFiniteError: if an action is not finite or above 1e9 in absolute value.
        """
        root = tensordict.copy()
        root.pop("next", None)
        selected = root.pop("_step", None)
        actions = {}
        for key in action_keys:
            chunk = tensordict.get(key, None)
            if chunk is None:
                raise ValueError(f"the input of a step has no {key!r}: call the policy, or env.rand_action, before it.")
            if chunk.ndim <= root.ndim or chunk.shape[root.ndim] != act_horizon:
                raise ValueError(
                    f"the action {key!r} must have shape [*B, act_horizon={act_horizon}, ...] with "
                    f"B={tuple(root.shape)}, got {tuple(chunk.shape)}: send the executed slice of a chunk."
                )
            wrong = first_implausible(chunk if selected is None else chunk[selected.reshape(root.shape)])
            if wrong is not None:
                raise NonFiniteError(
                    f"the action {key!r} is {wrong[1]} at {list(wrong[0])}: nothing is executed. Check the observation "
                    "and the weights of the policy."
                )
            actions[key] = chunk.unbind(root.ndim)
        return cls(root, selected, actions)

    def rows(self, shape: torch.Size) -> PendingChunk:
        """Return the stepped sub-environments: an env with an empty batch size gets only the selected ones."""
        root, selected, actions = self
        if selected is None:
            return self
        if root.shape != shape:
            rows = selected.reshape(root.shape)
            actions = {key: tuple(step[rows] for step in steps) for key, steps in actions.items()}
            return PendingChunk(root[rows], None, actions)
        return PendingChunk(root, selected.reshape(*root.shape, 1), actions)


class Transition(NamedTuple):
    """A chunk as one transition; ``n <= act_horizon`` is the number of steps in the longest row.

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
        flag_keys (iterable of NestedKey): bool entries to latch, ``[*B, *F]``, including ``done_key``.
    """

    def __init__(self, done_key: NestedKey, reward_keys: Iterable[NestedKey], flag_keys: Iterable[NestedKey]) -> None:
        self._done_key = done_key
        self._rewards: dict[NestedKey, list[Tensor]] = {key: [] for key in reward_keys}
        self._flags: dict[NestedKey, list[Tensor]] = {key: [] for key in flag_keys}

    def add(self, next_tensordict: TensorDictBase) -> Tensor:
        """Record a step and return its done flag, bool ``[*B, 1]``."""
        for key, values in self._rewards.items():
            values.append(get_entry(next_tensordict, key))
        for key, values in self._flags.items():
            values.append(get_entry(next_tensordict, key))
        return self._flags[self._done_key][-1]

    def fold(self, gamma: float, selected: Tensor | None = None) -> Transition:
        """Return the transition.

        Args:
            gamma (float): discount per step.
            selected (Tensor, optional): bool ``[*B, 1]``, rows with at least one executed step. Defaults to all rows.
        """
        executed = executed_mask(_over_steps(self._flags[self._done_key]).squeeze(-2))
        if selected is not None:
            executed = executed & selected
        step_rewards = {}
        for key, values in self._rewards.items():
            rewards = _over_steps(values)
            rewards = rewards.to(float_dtype(rewards.dtype))
            step_rewards[key] = torch.where(_over_features(executed, rewards), rewards, 0.0)
        returns = {
            key: chunk_return(rewards, _over_features(executed, rewards), gamma).squeeze(-1)
            for key, rewards in step_rewards.items()
        }
        steps = executed.sum(dim=-1, keepdim=True)
        return Transition(executed, steps, returns, step_rewards, self._latch_flags(executed))

    def _latch_flags(self, executed: Tensor) -> dict[NestedKey, Tensor]:
        done_shape = self._flags[self._done_key][0].shape
        flags: dict[NestedKey, Tensor] = {}
        simple = [key for key, values in self._flags.items() if values[0].shape == done_shape]
        for key in self._flags.keys() - set(simple):
            stacked = _over_steps(self._flags[key])
            flags[key] = latch(stacked, _over_features(executed, stacked)).squeeze(-1)
        # Flags of the common shape [*B, 1] are latched together: one kernel instead of many.
        columns = _over_steps([value for key in simple for value in self._flags[key]])
        columns = columns.squeeze(-2).unflatten(-1, (len(simple), -1))  # [*B, flags, n]
        latched = latch(columns, _over_features(executed, columns))
        return {**flags, **dict(zip(simple, latched.unbind(-2), strict=True))}


def _over_steps(values: list[Tensor]) -> Tensor:
    """Stack along a new last dimension; stacking along the first and permuting takes a fraction of the time."""
    return torch.stack(values, dim=0).movedim(0, -1)


def _over_features(executed: Tensor, like: Tensor) -> Tensor:
    """Return ``[*B, n]`` expanded to the shape ``[*B, *F, n]`` of ``like``."""
    features = (1,) * (like.ndim - executed.ndim)
    return executed.reshape(*executed.shape[:-1], *features, executed.shape[-1]).expand(like.shape)
