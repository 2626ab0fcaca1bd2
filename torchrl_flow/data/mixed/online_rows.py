"""Conversion of collected transitions to rows with the entries of the demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_flow.data.demos.chunks import ChunkStorage
from torchrl_flow.functional.chunk import ChunkAlignment, executed_slice

__all__ = ["StepRows", "TransitionRows"]

MASK = ("collector", "mask")
TRAJECTORY = ("collector", "traj_ids")


class _Rows:
    """Selection of the entries that demonstrations have, under their names; other shapes raise an error."""

    def __init__(
        self, demos: ChunkStorage, online_keys: Mapping[NestedKey, NestedKey], exclude_keys: Sequence[NestedKey]
    ) -> None:
        keys = demos.keys
        self.demos, self.keys = demos, keys
        # The root entry of k is copied from the one under "next" when rows are read.
        example = demos.get([0]).to("cpu").exclude(*exclude_keys, keys.steps_to_next_obs)
        self.leaves = {unravel_key(key): value[0] for key, value in example.items(True, True)}
        unknown = [key for key in map(unravel_key, online_keys) if key not in self.leaves]
        if unknown:
            raise ValueError(
                f"online_keys renames to {unknown}; rows have the entries {sorted(map(str, self.leaves))}."
            )
        self.sources = {unravel_key(key): unravel_key(source) for key, source in online_keys.items()}
        self.steps = unravel_key(("next", keys.steps_to_next_obs))
        self.made: set[NestedKey] = {unravel_key(keys.action_chunk), unravel_key(keys.action_mask)}
        self.made.add(unravel_key(keys.is_demo))
        self.action: NestedKey = unravel_key(keys.action)
        self.executed = executed_slice(
            demos.pred_horizon, demos.act_horizon, demos.obs_horizon, cast(ChunkAlignment, demos.alignment)
        )

    def take(self, data: TensorDictBase, key: NestedKey, shape: torch.Size, advice: str) -> Tensor:
        """Return the entry that becomes ``key`` of the rows, ``[*B, *shape]``."""
        source = self.sources.get(key, key)
        value = data.get(source, None)
        if value is None:
            raise ValueError(
                f"online data lacks {source!r}, which demonstrations have; it has "
                f"{sorted(str(k) for k in data.keys(True, True))}. Map another entry to it with "
                f"online_keys={{{key!r}: ...}}, or leave it out of all rows with exclude_keys=[{key!r}]."
            )
        like = self.leaves[key]
        if value.shape[data.ndim :] != shape:
            raise ValueError(
                f"online {source!r} has rows of shape {list(value.shape[data.ndim :])} and must have {list(shape)}, as "
                f"in the demonstrations: {advice}"
            )
        if value.dtype != like.dtype:
            if not (value.is_floating_point() and like.is_floating_point()):
                raise ValueError(f"online {source!r} is {value.dtype}, in the demonstrations it is {like.dtype}.")
            value = value.to(like.dtype)
        return value


class TransitionRows(_Rows):
    """SMDP transitions of any batch shape, as rows ``[N]``.

    ``action_chunk`` is the policy's prediction, in which the executed actions replace the predicted ones (they differ
    if noise was added). Without a prediction (random actions, another kind of policy) it is the executed actions, with
    the first and the last repeated. ``action_mask`` is True only for the k executed steps: the quality of the other
    predicted actions is unknown.
    """

    advice = "collect with history_transforms and SMDPChunk of the same horizons (make_chunk_env makes both)."

    def __call__(self, data: TensorDictBase) -> TensorDict:
        """Return the rows ``[N]``; those that a collector's mask marks as padding are left out."""
        mask = data.get(MASK, None)
        flat = cast(TensorDictBase, data.reshape(-1) if mask is None else data[mask.reshape(data.shape)])
        rows = TensorDict({}, batch_size=flat.batch_size)
        for key, like in self.leaves.items():
            if key not in self.made:
                rows.set(key, self.take(flat, key, like.shape, self.advice))
        action = rows.get(self.action)
        wanted = self._imitation(flat, action, rows.get(self.steps))
        wanted[unravel_key(self.keys.is_demo)] = torch.zeros(len(rows), 1, dtype=torch.bool, device=action.device)
        for key, value in wanted.items():
            if key in self.leaves:
                rows.set(key, value)
        return rows

    def _imitation(self, flat: TensorDictBase, action: Tensor, steps: Tensor) -> dict[NestedKey, Tensor]:
        """Return ``action_chunk`` ``[N, H, A]`` and ``action_mask`` ``[N, H]``."""
        key: NestedKey = unravel_key(self.keys.action_chunk)
        horizon, first = self.demos.pred_horizon, self.executed.start
        place = torch.arange(horizon, device=action.device) - first
        chunk = action[:, place.clamp(0, self.demos.act_horizon - 1)]
        if flat.get(self.sources.get(key, key), None) is not None and key in self.leaves:
            predicted = self.take(flat, key, self.leaves[key].shape, "the policy predicts another number of steps.")
            chunk = torch.cat([predicted[:, :first], action, predicted[:, self.executed.stop :]], 1)
        return {key: chunk, unravel_key(self.keys.action_mask): (place >= 0) & (place < steps)}


class StepRows(_Rows):
    """Single steps of an environment without SMDPChunk, time first: ``[T]`` or ``[*E, T]`` becomes ``[T, E]``."""

    advice = "collect single steps, with history_transforms and without SMDPChunk."

    def __call__(self, data: TensorDictBase) -> TensorDict:
        """Return the steps ``[T, E]``, with ``("collector", "traj_ids")``, zero where unknown."""
        if data.get(MASK, None) is not None:
            raise ValueError(
                "steps of split trajectories have lost their order in time: collect with split_trajs=False."
            )
        flat = data.reshape(1, -1) if data.ndim < 2 else data.reshape(-1, data.shape[-1])
        flat = flat.transpose(0, 1)
        rows = TensorDict({}, batch_size=flat.batch_size)
        for key, like in self.leaves.items():
            if key not in self.made and key != self.steps:
                shape = like.shape[1:] if key == self.action else like.shape
                rows.set(key, self.take(flat, key, shape, self.advice))
        ids = flat.get(TRAJECTORY, None)
        if ids is None:
            ids = torch.zeros(flat.shape, dtype=torch.int64, device=rows.get(self.action).device)
        return rows.set(TRAJECTORY, ids.reshape(flat.shape))
