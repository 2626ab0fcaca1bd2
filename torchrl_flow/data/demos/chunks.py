"""Step-level demonstrations, sampled as action chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data import Storage

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.demos.store import DemoStore
from torchrl_flow.data.errors import DataError
from torchrl_flow.functional.chunk import chunk_return, executed_mask, executed_slice, executed_steps, latch
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.steps_under_next import read_steps_under_next

__all__ = ["ChunkKeys", "ChunkStorage"]

read_steps_under_next()


@dataclass(frozen=True)
class ChunkKeys:
    """Names of the entries of a batch; those that describe the outcome go under ``next``."""

    action: NestedKey = "action"
    action_chunk: NestedKey = "action_chunk"
    action_mask: NestedKey = "action_mask"
    is_demo: NestedKey = "is_demo"
    reward: NestedKey = "reward"
    steps_to_next_obs: NestedKey = "steps_to_next_obs"
    done: NestedKey = "done"
    terminated: NestedKey = "terminated"
    truncated: NestedKey = "truncated"
    success: NestedKey = "success"


class ChunkStorage(Storage):
    """A read-only storage with one item for each step of a demo store: the chunk that starts there.

    Item i, of step t in an episode of L steps, with H = ``pred_horizon``, H_a = ``act_horizon``, T =
    ``obs_horizon``:

    - ``observation``, ``pixels`` ``[T, ...]``: the frames t-T+1 ... t, oldest first; before the first frame
      of the episode the first is repeated (as the environment's history does after a reset);
    - ``action_chunk`` ``[H, A]``: the actions from step t on (``alignment="newest"``) or from step t-T+1 on
      (``"oldest"``);
    - ``action_mask`` ``[H]``: which actions of the chunk are to be imitated: those that are not padding (see
      ``padding``) and come before the first step at which the demonstrator was disturbed on purpose;
    - ``action`` ``[H_a, A]``: the executed slice of the chunk, which starts at step t;
    - under ``next``, the result of executing that slice, in the SMDP form of :class:`~torchrl_flow.envs.SMDPChunk`:
      execution ends after k steps, at the first success, failure or other end of the task (``terminated``), at the last
      step of the episode (``truncated``) or after H_a. ``steps_to_next_obs`` is k, ``reward`` is sum_{i<k} gamma^i r_i,
      and the observations are the history at step t+k. ``success`` is whether any of the k steps was successful;
    - ``steps_to_next_obs`` also at the root;
    - ``is_demo``: true.

    An episode that ends in success or failure is terminated, not truncated. Recorded steps after a success are items
    too; a chunk that starts at a step that is (still) successful has k = 1. Windows never cross episodes.
    Indexing with ``[*B]`` indices gathers only the rows needed, so the cost does not depend on the size of the store,
    and images outside ``obs_keys`` are not read.

    Args:
        store: the demonstrations.

    Keyword Args:
        pred_horizon: H, actions in a chunk.
        act_horizon: H_a, actions that are executed.
        obs_horizon: T, frames in a history. Defaults to 1.
        gamma: discount per step, used to sum the rewards of a chunk. Defaults to 0.99.
        alignment: see :func:`~torchrl_flow.functional.chunk.executed_slice`. Defaults to ``"newest"``.
        padding: actions before the start and after the end of the episode. ``"last"`` repeats the nearest action;
            ``"hold"`` has zeros, no motion for delta controllers, except in ``hold_dims``, which repeat the nearest
            one. Defaults to ``"last"``.
        hold_dims: entries of the action that ``"hold"`` keeps; the gripper command is ManiSkill's last. Defaults to
            ``(-1,)``.
        mask_padding: ``False`` marks padding as valid in ``action_mask``, so that a policy also learns the padding
            (with ``"hold"``: to hold still after the end of a demonstration). Defaults to ``True``.
        terminate_on_success: ``False`` continues transitions after successes, failures and other ends, as an
            environment with ``ignore_terminations`` does. Defaults to ``True``.
        rewards: ``"recorded"`` sums the store's rewards; ``"sparse"`` sums success minus failure instead. Defaults to
            ``"recorded"``.
        obs_keys: frames to return. Defaults to all but ``env_state``.
        next_obs: ``False`` leaves out the frames under ``next``. Behaviour cloning does not need them, and with images
            they are half of the cost. Defaults to ``True``.
        keys: names of the other entries. Defaults to :class:`ChunkKeys`.
        device: device of the batches. Defaults to the CPU.

    Raises:
        ValueError: if an argument is outside its range or the store lacks a key.

    Examples:
        >>> import tempfile
        >>> data = {"observation": torch.arange(5.0)[:, None], "action": torch.arange(4.0)[:, None]}
        >>> data["success"] = torch.tensor([False, False, False, True])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = DemoStore.from_episodes([data], folder + "/demos")
        ...     item = ChunkStorage(store, pred_horizon=4, act_horizon=2, obs_horizon=2).get(3)
        >>> item["action_chunk"].squeeze(-1).tolist(), item["action_mask"].tolist()
        ([3.0, 3.0, 3.0, 3.0], [True, False, False, False])
        >>> item["next", "observation"].squeeze(-1).tolist(), item["next", "terminated"].item()
        ([3.0, 4.0], True)
    """

    def __init__(
        self,
        store: DemoStore,
        *,
        pred_horizon: int,
        act_horizon: int,
        obs_horizon: int = 1,
        gamma: float = 0.99,
        alignment: Literal["newest", "oldest"] = "newest",
        padding: Literal["last", "hold"] = "last",
        hold_dims: Sequence[int] = (-1,),
        mask_padding: bool = True,
        terminate_on_success: bool = True,
        rewards: Literal["recorded", "sparse"] = "recorded",
        obs_keys: Sequence[NestedKey] | None = None,
        next_obs: bool = True,
        keys: ChunkKeys | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._executed = executed_slice(pred_horizon, act_horizon, obs_horizon, alignment)
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")
        if padding not in ("last", "hold"):
            raise ValueError(f"padding must be 'last' or 'hold', got {padding!r}.")
        if rewards not in ("recorded", "sparse"):
            raise ValueError(f"rewards must be 'recorded' or 'sparse', got {rewards!r}.")
        super().__init__(max_size=len(store))
        self.store = store
        self.pred_horizon, self.act_horizon, self.obs_horizon = pred_horizon, act_horizon, obs_horizon
        self.gamma, self.alignment, self.padding = float(gamma), alignment, padding
        self.mask_padding, self.terminate_on_success = mask_padding, terminate_on_success
        self.rewards = rewards
        self.keys = keys if keys is not None else ChunkKeys()
        self.batch_device = None if device is None else torch.device(device)
        self.obs_keys, self.next_obs = _frame_keys(store, obs_keys), next_obs
        self._hold = _hold_mask(store.steps["action"].shape[-1], hold_dims) if padding == "hold" else None
        # Plain views of the same memory: a MemoryMappedTensor runs Python code at every operation.
        self._action = store.steps["action"].as_subclass(Tensor)
        self._frames = {key: store.frames.get(key).as_subclass(Tensor) for key in self.obs_keys}
        # The index tables are small (15 bytes a step) and read at every batch, so they are copied into memory.
        self._episode = store.steps["episode"].clone()
        self._start, self._length = store.episodes["start"].clone(), store.episodes["length"].clone()
        self._success, self._perturbed = store.step_flag("success"), store.step_flag("perturbed")
        self._terminated = store.step_flag("terminated")
        recorded = store.steps["reward"].as_subclass(Tensor).squeeze(-1)
        self._reward = recorded.clone() if rewards == "recorded" else store.sparse_reward()

    device = torch.device("cpu")
    """Device of the indices: the CPU, as for the store."""

    def get(self, index: Any) -> TensorDict:
        """Return the chunks of the given steps.

        Args:
            index: int, slice, sequence, bool mask or int tensor of shape ``[*B]``.

        Returns:
            A TensorDict of batch size ``[*B]``.

        Raises:
            IndexError: if an index is outside the store.
        """
        rows = self._rows(index)
        flat = rows.reshape(-1)
        batch = self._fold(flat).reshape(rows.shape)
        return batch if self.batch_device is None else batch.to(self.batch_device, non_blocking=True)

    def _fold(self, rows: Tensor) -> TensorDict:
        keys, size = self.keys, rows.shape[0]
        episode = self._episode[rows]
        first = self._start[episode]
        end = first + self._length[episode]
        steps, outcome = self._outcome(rows, end)
        chunk, mask = self._chunk(rows, first, end)
        root: dict[NestedKey, Tensor] = {
            keys.action_chunk: chunk,
            keys.action_mask: mask,
            keys.action: chunk[:, self._executed].clone(),
            keys.is_demo: torch.ones(size, 1, dtype=torch.bool),
            keys.steps_to_next_obs: steps,
            # Each episode has one frame more than it has steps: frame = step + number of the episode.
            **self._history(rows + episode, first + episode),
        }
        if self.next_obs:
            outcome.update(self._history(rows + steps.squeeze(-1) + episode, first + episode))
        return _tensordict(root, size).set("next", _tensordict(outcome, size))

    def _outcome(self, rows: Tensor, end: Tensor) -> tuple[Tensor, dict[NestedKey, Tensor]]:
        """Return the number of executed steps, and the entries under ``next`` except the frames."""
        window = rows[:, None] + torch.arange(self.act_horizon)
        # Steps past the end of the episode read its last step; the mask of executed steps excludes them.
        last = window >= end[:, None] - 1
        window = torch.minimum(window, end[:, None] - 1)
        success = self._success[window]
        terminated = self._terminated[window] if self.terminate_on_success else torch.zeros_like(success)
        done = terminated | last
        executed = executed_mask(done)
        steps = executed_steps(done)
        keys = self.keys
        return steps, {
            keys.reward: chunk_return(self._reward[window], executed, self.gamma),
            keys.steps_to_next_obs: steps,
            keys.terminated: latch(terminated, executed),
            keys.truncated: latch(last & ~terminated, executed),
            keys.done: latch(done, executed),
            keys.success: latch(success, executed),
        }

    def _chunk(self, rows: Tensor, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        # The row is the first executed step; with alignment "oldest" a chunk starts before it.
        window = rows[:, None] + torch.arange(self.pred_horizon) - self._executed.start
        low, high = first[:, None], end[:, None] - 1
        exists = (window >= low) & (window <= high)
        inside = torch.minimum(torch.maximum(window, low), high)
        chunk = _gather(self._action, inside)
        if self._hold is not None:
            chunk = torch.where(exists[..., None] | self._hold, chunk, 0.0)
        # Actions after a disturbance respond to a state that the chunk's observation does not contain.
        known = self._perturbed[inside].cumsum(-1) == 0
        return chunk, known & exists if self.mask_padding else known

    def _history(self, frames: Tensor, first: Tensor) -> dict[NestedKey, Tensor]:
        """Return the histories that end at the given frames, limited to their episodes."""
        # At the start of an episode the history repeats the first frame.
        window = torch.maximum(frames[:, None] + torch.arange(1 - self.obs_horizon, 1), first[:, None])
        return {key: _gather(table, window) for key, table in self._frames.items()}

    def _rows(self, index: Any) -> Tensor:
        size = len(self)
        if isinstance(index, slice):
            return torch.arange(*index.indices(size))
        if isinstance(index, tuple) and len(index) == 1:
            (index,) = index
        rows = torch.as_tensor(index, device="cpu")
        if rows.dtype == torch.bool:
            if rows.shape != (size,):
                raise IndexError(f"a bool mask must be [{size}], got {list(rows.shape)}.")
            return rows.nonzero().squeeze(-1)
        rows = rows.to(torch.int64)
        if rows.numel() and not (-size <= int(rows.min()) and int(rows.max()) < size):
            raise IndexError(f"index {rows.min()} ... {rows.max()} is outside a store of {size} steps.")
        return torch.where(rows < 0, rows + size, rows)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Raise an error: a demo store is read-only."""
        raise RuntimeError("ChunkStorage is read-only: write demonstrations with DemoStore.from_episodes.")

    def _empty(self) -> None:
        raise RuntimeError("ChunkStorage is read-only and cannot be emptied.")

    def contains(self, item: Any) -> Tensor | bool:
        """Return which indices are within the store."""
        rows = torch.as_tensor(item)
        inside = (rows >= -len(self)) & (rows < len(self))
        return bool(inside) if inside.ndim == 0 else inside

    def state_dict(self) -> dict[str, Any]:
        """Return the identity of the data instead of the data, so that a checkpoint stays small."""
        return {
            "num_steps": len(self),
            "key": self.store.metadata.get("key"),
            "action_sha256": self.store.metadata["columns"]["steps"]["action"]["sha256"],
            "horizons": [self.pred_horizon, self.act_horizon, self.obs_horizon],
            "gamma": self.gamma,
            "folding": [
                *(self.alignment, self.padding, self.mask_padding, self.terminate_on_success),
                *([] if self.rewards == "recorded" else [self.rewards]),
            ],
            "keys": [str(unravel_key(key)) for key in (*self.obs_keys, *asdict(self.keys).values())],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that this storage has the same data and chunk options as the saved one.

        Raises:
            RuntimeError: if the data or options differ. The error names the difference.
        """
        own = self.state_dict()
        differing = differing_fields(state_dict, own, own, form="{name}: {found!r} saved, {wanted!r} here")
        if differing:
            raise RuntimeError(f"the checkpoint has other demonstrations or horizons ({'; '.join(differing)}).")

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` into a directory, as JSON."""
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "chunk_storage.json").write_text(json.dumps(self.state_dict()), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Compare with the state that :meth:`dumps` wrote; see :meth:`load_state_dict`.

        Raises:
            DataError: if the file is missing or not a JSON object. The error names the file.
        """
        file = Path(path) / "chunk_storage.json"
        content = read_json(file)
        if not isinstance(content, dict):
            raise DataError(f"{file} must be a JSON object, got {type(content).__name__}.")
        self.load_state_dict(content)

    def __len__(self) -> int:
        return self.store.num_steps

    def __repr__(self) -> str:
        names = ("pred_horizon", "act_horizon", "obs_horizon", "gamma", "alignment", "padding")
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"ChunkStorage({self.store!r}, {options})"


def _tensordict(entries: dict[NestedKey, Tensor], size: int) -> TensorDict:
    tensordict = TensorDict({}, batch_size=[size])
    for key, value in entries.items():
        tensordict.set(key, value)
    return tensordict


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """Return ``table[rows]``, with ``index_select``, which copies whole rows."""
    return table.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *table.shape[1:])


def _frame_keys(store: DemoStore, obs_keys: Sequence[NestedKey] | None) -> list[NestedKey]:
    available = [unravel_key(key) for key in store.frames.keys(True, True)]
    if obs_keys is None:
        return [key for key in available if isinstance(key, str) or key[0] != "env_state"]
    chosen = [unravel_key(key) for key in obs_keys]
    missing = [key for key in chosen if key not in available]
    if missing or not chosen:
        raise ValueError(f"obs_keys must name frames of the store, {available}, got {list(obs_keys)}.")
    return chosen


def _hold_mask(width: int, hold_dims: Sequence[int]) -> Tensor:
    mask = torch.zeros(width, dtype=torch.bool)
    for dim in hold_dims:
        if not -width <= dim < width:
            raise ValueError(f"hold_dims={tuple(hold_dims)} has the entry {dim}, but actions have {width} entries.")
        mask[dim] = True
    return mask
