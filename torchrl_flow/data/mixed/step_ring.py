"""A ring of single steps of several environments, read as action chunks."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data import Storage, TensorStorage

from torchrl_flow.data.demos.chunks import ChunkStorage
from torchrl_flow.data.mixed.online_rows import TRAJECTORY
from torchrl_flow.functional.chunk import (
    ChunkAlignment,
    chunk_return,
    executed_mask,
    executed_slice,
    executed_steps,
    latch,
)
from torchrl_flow.util.torchrl_compat import clear, generator_of, room_of, stored_rows

__all__ = ["StepRing"]

END = ("collector", "end")


class StepRing(Storage):
    """The steps ``[T, E]`` of E environments in a TorchRL storage, time first, folded when they are read.

    Item ``t * E + e`` is the chunk that starts at step t of environment e, in the form of
    :class:`~torchrl_flow.data.ChunkStorage`. A chunk ends with its episode, also if a collector began another episode
    without a done flag (detected by the trajectory ids), and never continues in another environment or from the newest
    step to the oldest. A chunk is not drawn until ``act_horizon`` of its steps are known; read by index, it ends at the
    newest step.

    Args:
        steps: storage with ``ndim=2``; its ``max_size`` counts steps of all environments.
        demos: demonstrations, whose horizons and keys the ring uses.
        leaves: entries of a row.
    """

    def __init__(self, steps: TensorStorage, demos: ChunkStorage, leaves: dict[Any, Tensor]) -> None:
        super().__init__(max_size=steps.max_size)
        self.steps, self._keys, self._leaves = steps, demos.keys, leaves
        self.pred_horizon, self.act_horizon, self.gamma = demos.pred_horizon, demos.act_horizon, demos.gamma
        self._executed = executed_slice(
            demos.pred_horizon, demos.act_horizon, demos.obs_horizon, cast(ChunkAlignment, demos.alignment)
        )
        self._obs_keys = list(demos.obs_keys)
        self.newest = -1
        self._last_ids: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the steps."""
        return torch.device("cpu" if self.steps.device == "auto" else self.steps.device)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Number of stored time steps, capacity in time steps, and number of environments; 0 before the first write."""
        shape = self.steps.shape
        if shape is None:
            return 0, 0, 0
        return shape[0], room_of(self.steps), shape[1]

    @property
    def num_drawable(self) -> int:
        """Number of chunks that are complete."""
        length, _, envs = self._sizes
        return max(0, length - self.act_horizon + 1) * envs

    def _column(self, key: NestedKey) -> Tensor:
        """Return one entry of all steps, ``[T, E, ...]``, so that reading a chunk does not gather other entries."""
        return stored_rows(self.steps).get(key)

    def _oldest(self) -> int:
        length, room, _ = self._sizes
        # In a full ring the oldest step follows the newest one; otherwise it is at time 0.
        return (self.newest + 1) % room if length == room else 0

    def _rand_given_ndim(self, batch_size: int) -> Tensor:
        length, room, envs = self._sizes
        options: dict[str, Any] = {"generator": generator_of(self), "device": self.device}
        # A chunk that starts later would need future steps.
        age = torch.randint(length - self.act_horizon + 1, (batch_size,), **options)
        env = torch.randint(envs, (batch_size,), **options)
        # Items count environments first: item = time * envs + env.
        return (self._oldest() + age) % room * envs + env

    def flat_index(self, time: Tensor) -> Tensor:
        """Return the items ``[n, E]`` of all environments' steps at ``time`` ``[n]``."""
        envs = self._sizes[2]
        return time[:, None] * envs + torch.arange(envs, device=time.device)

    def set(self, cursor: Any, data: TensorDictBase, *, set_cursor: bool = True) -> None:
        """Write steps ``[n, E]`` at times ``cursor`` ``[n]``."""
        length, room, envs = self._sizes
        if room and data.shape[1] != envs:
            raise ValueError(
                f"steps of {data.shape[1]} environments were written to a ring of {envs}: write from one "
                "collector, or store transitions (a storage with ndim=1)."
            )
        ids = data.get(TRAJECTORY).to(self.device)
        data = data.exclude(TRAJECTORY).to(self.device)
        end = data.get(("next", self._keys.done)).squeeze(-1).clone()
        # A collector may end an episode without a done flag: then only the trajectory id changes.
        end[:-1] |= ids[1:] != ids[:-1]
        if length:
            self.mark_end(self.newest, ids[0] != self._last_ids if self._last_ids is not None else True)
        self.steps.set(cursor, data.set(END, end), set_cursor=set_cursor)
        self.max_size = self.steps.max_size
        self.newest, self._last_ids = int(cursor[-1]), ids[-1].clone()

    def mark_end(self, time: int, broken: Tensor | bool) -> None:
        """End the episodes of the environments in ``broken`` ``[E]`` at the step of that time."""
        ends = self._column(END)
        ends[time] = ends[time] | broken

    def get(self, index: Any) -> TensorDict:
        """Fold the chunks of the given items, an int64 tensor ``[n]``."""
        length, room, envs = self._sizes
        time, env = index // envs, (index % envs)[:, None]
        oldest = self._oldest()
        # Ages count from the oldest step, so that windows that wrap around the ring have consecutive ages.
        age = (time - oldest) % room
        # The item is the first executed step; with alignment "oldest" a chunk starts before it.
        offsets = torch.arange(self.pred_horizon, device=index.device) - self._executed.start
        ages = age[:, None] + offsets
        exists = (ages >= 0) & (ages < length)

        def at(key: NestedKey, ages: Tensor, env: Tensor = env) -> Tensor:
            return self._column(key)[(oldest + ages) % room, env]

        ends = at(END, ages.clamp(0, length - 1)) & exists
        mask = exists & _same_episode(ends, self._executed.start)
        past, future = mask[:, : self._executed.start].sum(1), mask[:, self._executed.start :].sum(1)
        # Outside of the episode or the ring, a chunk repeats the nearest step inside.
        nearest = torch.minimum(torch.maximum(offsets, -past[:, None]), future[:, None] - 1)
        chunk = at(self._keys.action, age[:, None] + nearest)

        window, ended = ages[:, self._executed], ends[:, self._executed]
        # The newest step ends a chunk as the end of an episode does: the following steps are unknown.
        executed = executed_mask(ended | (window >= length - 1))
        count = executed_steps(ended | (window >= length - 1))
        known = window.clamp(max=length - 1)
        found = self._outcome(lambda key: at(key, known).squeeze(-1), ended, executed, count)
        found[unravel_key(self._keys.action_chunk)] = chunk
        found[unravel_key(self._keys.action_mask)] = mask
        found[unravel_key(self._keys.action)] = chunk[:, self._executed].clone()
        found[unravel_key(self._keys.is_demo)] = torch.zeros_like(count, dtype=torch.bool)
        for key in self._obs_keys:
            found[unravel_key(key)] = at(key, age, env[:, 0])
            after: NestedKey = unravel_key(("next", key))
            if after in self._leaves:
                # The observation after the last executed step, which is `count - 1` steps after the first.
                found[after] = at(after, age + count[:, 0] - 1, env[:, 0])
        out = TensorDict({}, batch_size=index.shape)
        for key in self._leaves:
            out.set(key, found[key])
        return out

    def _outcome(self, read: Any, ended: Tensor, executed: Tensor, count: Tensor) -> dict[NestedKey, Tensor]:
        """Return the entries under ``next`` except the observations."""
        keys = self._keys
        done = latch(ended, executed)
        flags = {
            name: latch(read(("next", name)), executed)
            for name in (keys.terminated, keys.success)
            if unravel_key(("next", name)) in self._leaves
        }
        outcome = {
            keys.reward: chunk_return(read(("next", keys.reward)), executed, self.gamma),
            keys.steps_to_next_obs: count,
            keys.done: done,
            keys.truncated: done & ~flags[keys.terminated] if keys.terminated in flags else done,
            **flags,
        }
        return {unravel_key(("next", name)): value for name, value in outcome.items()}

    def _max_size_along_dim0(self, *, single_data: Any = None, batched_data: Any = None) -> int:
        return room_of(self.steps, single_data=single_data, batched_data=batched_data)

    def _empty(self) -> None:
        clear(self.steps)
        self.newest, self._last_ids = -1, None

    def contains(self, item: Any) -> Any:
        """Return which items have been written."""
        return (torch.as_tensor(item) >= 0) & (torch.as_tensor(item) < len(self))

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self) -> TensorDictBase:
        """Return the steps as they are stored, ``[T, E]``."""
        return self.steps.get(slice(None))

    def restore(self, rows: TensorDictBase, newest: int) -> None:
        """Restore the steps that :meth:`rows` returned.

        Steps written afterwards count as new episodes, since the environments are reset when a buffer is restored.
        """
        self._empty()
        cursor: Any = torch.arange(rows.shape[0])
        self.steps.set(cursor, rows.to(self.device))
        self.max_size, self.newest = self.steps.max_size, newest


def _same_episode(ends: Tensor, start: int) -> Tensor:
    """Return which steps of windows ``[n, H]`` are in the episode of step ``start``, from the ends of episodes."""
    ends = ends.to(torch.int64)
    past, future = ends[:, :start], ends[:, start:]
    # A past step belongs to the episode if no step from it up to the one before `start` is an end; a future step, if no
    # step from `start` up to the one before it is an end.
    before = past.flip(1).cumsum(1).flip(1)
    after = future.cumsum(1) - future
    return torch.cat([before, after], 1) == 0
