"""Demonstrations and online data as one storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, is_tensor_collection, unravel_key
from torch import Tensor
from torchrl.data import RoundRobinWriter, Storage, TensorStorage

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.memmap import list_members, load_memmap, require_members, shape_of
from torchrl_flow.data.demos.chunks import ChunkStorage
from torchrl_flow.data.errors import DataError
from torchrl_flow.data.mixed.step_ring import StepRing
from torchrl_flow.util.torchrl_compat import clear, count_writes, generator_of, room_of, set_generator, set_last_cursor

__all__ = ["MixedStorage", "OnlineWriter", "drawable"]

_METADATA = "mixed_storage.json"


def drawable(storage: Any) -> int:
    """Return the number of rows of an online part that can be drawn."""
    return storage.num_drawable if isinstance(storage, StepRing) else len(storage)


class MixedStorage(Storage):
    """Storage whose rows 0 ... D - 1 are the demonstrations and whose further rows are the online part.

    The parts are a :class:`~torchrl_flow.data.ChunkStorage` and a ring of online data, as in
    :class:`~torchrl_flow.data.MixedReplayBuffer`, or any two storages of TorchRL whose rows have the same entries, such
    as a ``LazyMemmapStorage`` of demonstrations and a ``LazyTensorStorage``. A stock buffer over it needs a
    :class:`~torchrl_flow.data.RatioSampler`, an :class:`~torchrl_flow.data.OnlineWriter` and
    ``collate_fn=lambda rows: rows``. The state includes the rows of a stock storage of demonstrations; for a
    ChunkStorage it includes only the identity of the data.

    Args:
        demos: storage that already holds all demonstrations. It must not be written to afterwards.
        online: online part, a ring.

    Keyword Args:
        exclude_keys: entries of the demonstrations that are left out of all rows.
        device: device of the batches. Defaults to the device of the demonstrations; if they have none, rows stay on the
            device of their part.

    Raises:
        ValueError: if there are no demonstrations; in reading, if rows of the parts have different entries.
    """

    device = None
    """Unused, since indices are drawn for each part. ``batch_device`` is the device of batches."""

    def __init__(
        self,
        demos: ChunkStorage | Storage,
        online: Storage | StepRing,
        *,
        exclude_keys: Sequence[NestedKey] = (),
        device: torch.device | str | None = None,
    ) -> None:
        self.demos: Any = demos
        self.online: Any = online
        self.num_demos = len(self.demos)
        if self.num_demos == 0:
            raise ValueError("demos holds no rows: write the demonstrations into it before making the MixedStorage.")
        super().__init__(max_size=self.num_demos + online.max_size)
        self._exclude = list(exclude_keys)
        own = getattr(demos, "batch_device", None)
        self.batch_device = own if device is None else torch.device(device)

    @property
    def _rng(self) -> torch.Generator | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return generator_of(self.online)

    @_rng.setter
    def _rng(self, value: torch.Generator | None) -> None:
        for part in (self.demos, self.online):
            set_generator(part, value)

    def get(self, index: Any) -> TensorDictBase:
        """Read rows.

        Args:
            index: int, slice, sequence, bool mask or int tensor, with at most one dimension.

        Returns:
            The rows, in the order of ``index``.

        Raises:
            IndexError: if a row does not exist.
        """
        rows = self._rows(index)
        flat = rows.reshape(-1)
        of_demos = flat < self.num_demos
        count = int(of_demos.sum())
        if count == len(flat):
            batch = self._read_demos(flat)
        elif count == 0:
            batch = self._read_online(flat)
        else:
            batch = _joined(self._read_demos(flat[of_demos]), self._read_online(flat[~of_demos]))
            # The ratio sampler draws demonstrations first, so its joined rows are already in the order of the index.
            if not bool(of_demos[:count].all()):
                # Row i of the joined rows belongs to place[i]; the inverse permutation restores the order.
                place = torch.cat([of_demos.nonzero(), (~of_demos).nonzero()]).squeeze(-1)
                batch = batch[torch.argsort(place).to(batch.device or "cpu")]
        return cast(TensorDictBase, batch.reshape(rows.shape))

    def _read_demos(self, rows: Tensor) -> TensorDictBase:
        batch = _stacked(self.demos.get(_on_device_of(self.demos, rows)))
        return self._to_device(batch.exclude(*self._exclude) if self._exclude else batch)

    def _read_online(self, rows: Tensor) -> TensorDictBase:
        batch = _stacked(self.online.get(_on_device_of(self.online, rows - self.num_demos)))
        if isinstance(self.demos, ChunkStorage) and self.demos.keys.steps_to_next_obs not in self._exclude:
            key = self.demos.keys.steps_to_next_obs
            steps = batch.get(unravel_key(("next", key)), None)  # pyright: ignore[reportArgumentType]
            batch = batch if steps is None else batch.copy().set(key, steps)
        return self._to_device(batch)

    def _to_device(self, batch: TensorDictBase) -> TensorDictBase:
        return batch if self.batch_device is None else batch.to(self.batch_device, non_blocking=True)

    def _rows(self, index: Any) -> Tensor:
        size = len(self)
        if len(self.demos) != self.num_demos:
            raise RuntimeError(
                f"there were {self.num_demos} demonstrations when the MixedStorage was made, and there are "
                f"{len(self.demos)} now: write online data through the buffer, and demonstrations before."
            )
        if isinstance(index, slice):
            return torch.arange(*index.indices(size))
        rows = torch.as_tensor(index).cpu()
        if rows.dtype == torch.bool:
            return rows.nonzero().squeeze(-1)
        rows = rows.to(torch.int64)
        if rows.numel() and not (-size <= int(rows.min()) and int(rows.max()) < size):
            raise IndexError(f"index {rows.min()} ... {rows.max()} is outside a buffer of {size} rows.")
        return torch.where(rows < 0, rows + size, rows)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Write rows into the online part, at positions within that part."""
        if not isinstance(self.online, StepRing):
            set_last_cursor(self, cursor)
        self.online.set(cursor, data, set_cursor=set_cursor)
        self.max_size = self.num_demos + self.online.max_size

    def __setitem__(self, index: Any, value: Any) -> None:
        rows = self._rows(index)
        if isinstance(self.online, StepRing) or bool((rows < self.num_demos).any()):
            raise RuntimeError("demonstrations and folded steps are read-only: only online rows can be assigned to.")
        self.online[rows - self.num_demos] = value

    def _max_size_along_dim0(self, *, single_data: Any = None, batched_data: Any = None) -> int:
        return room_of(self.online, single_data=single_data, batched_data=batched_data)

    def _empty(self) -> None:
        clear(self.online)

    def contains(self, item: Any) -> Any:
        """Return which rows exist."""
        rows = torch.as_tensor(item)
        inside = (rows >= -len(self)) & (rows < len(self))
        return bool(inside) if inside.ndim == 0 else inside

    def __len__(self) -> int:
        return self.num_demos + len(self.online)

    def _content(self) -> tuple[TensorDictBase | None, int]:
        """Return the filled rows of the online part as stored, and the index of the newest step of a ring."""
        if len(self.online) == 0:
            return None, -1
        if isinstance(self.online, StepRing):
            return self.online.rows(), self.online.newest
        rows = slice(None) if isinstance(self.online, TensorStorage) else range(len(self.online))
        return _stacked(self.online.get(rows)), -1

    def _restore(self, rows: TensorDictBase | None, newest: int) -> None:
        clear(self.online)
        if rows is None:
            return
        if rows.shape.numel() > self.online.max_size:
            raise RuntimeError(
                f"the checkpoint has {rows.shape.numel()} online rows, and there is room for {self.online.max_size}."
            )
        if isinstance(self.online, StepRing):
            self.online.restore(rows, newest)
        else:
            cursor: Any = torch.arange(len(rows))
            self.online.set(cursor, rows)
        self.max_size = self.num_demos + self.online.max_size

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the online rows, and the identity of the demonstrations."""
        rows, newest = self._content()
        online = None if rows is None else rows.to("cpu").clone().to_dict()
        return {"demos": self.demos.state_dict(), "online": online, "shape": self._shape(rows), "newest": newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the online rows.

        Raises:
            RuntimeError: if the demonstrations differ, or the rows exceed the capacity.
        """
        self.demos.load_state_dict(state_dict["demos"])
        online = state_dict["online"]
        rows = None if online is None else TensorDict(online, batch_size=list(state_dict["shape"]))
        self._restore(rows, int(state_dict["newest"]))

    def dumps(self, path: str | Path) -> None:
        """Write the state into a directory, the rows memory-mapped."""
        path = Path(path)
        (path / "demos").mkdir(parents=True, exist_ok=True)
        self.demos.dumps(path / "demos")
        rows, newest = self._content()
        if rows is not None:
            rows.to("cpu").clone().memmap(path / "online")
        content = {"newest": newest, "shape": self._shape(rows)}
        (path / _METADATA).write_text(json.dumps(content), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Restore the state that :meth:`dumps` wrote; see :meth:`load_state_dict`.

        Raises:
            DataError: if an entry is not a plain tensor, is missing or has another size. The error names directory and
                member.
        """
        path = Path(path)
        require_members(list_members(path, path), ("demos", "online", _METADATA), path, path)
        content = read_json(path / _METADATA)
        shape = shape_of(content.get("shape")) if isinstance(content, dict) else None
        newest = content.get("newest") if isinstance(content, dict) else None
        if shape is None or not isinstance(newest, int) or isinstance(newest, bool):
            raise DataError(f"{path / _METADATA} must give the shape and the newest step of the online rows.")
        rows = load_memmap(path / "online") if shape else None
        if rows is not None and rows.shape != shape:
            raise DataError(f"{path}: online has the shape {list(rows.shape)} and {_METADATA} says {list(shape)}.")
        self.demos.loads(path / "demos")
        self._restore(rows, newest)

    @staticmethod
    def _shape(rows: TensorDictBase | None) -> list[int]:
        return [] if rows is None else list(rows.shape)

    def __repr__(self) -> str:
        online = f"{type(self.online).__name__}({len(self.online)} of {self.online.max_size} rows)"
        return f"MixedStorage({self.demos!r}, {online}, device={self.batch_device})"


def _on_device_of(storage: Any, rows: Tensor) -> Any:
    """Move rows to the device on which a storage is indexed; "auto" and None mean the CPU."""
    device = getattr(storage, "device", None)
    return rows.to(device) if isinstance(device, torch.device) else rows


def _stacked(rows: Any) -> TensorDictBase:
    """Return rows as one TensorDict, also if the storage returns a list."""
    return cast(TensorDictBase, rows if is_tensor_collection(rows) else torch.stack(list(rows)))


def _joined(demos: TensorDictBase, online: TensorDictBase) -> TensorDictBase:
    """Concatenate rows of both parts, which must have the same entries."""
    ours, theirs = (set(map(unravel_key, rows.keys(True, True))) for rows in (demos, online))
    if ours != theirs:
        raise ValueError(
            f"demonstrations have the entries {sorted(map(str, ours - theirs))} that online rows lack, and "
            f"online rows {sorted(map(str, theirs - ours))} that demonstrations lack: rows of a batch must have "
            "the same ones. Leave entries out with exclude_keys, or write the missing ones."
        )
    return cast(TensorDictBase, torch.cat([demos, online]))


class OnlineWriter(RoundRobinWriter):
    """Round-robin writer into the online part of a :class:`MixedStorage`; it returns indices of the whole storage."""

    def extend(self, data: Any) -> Tensor:
        """Write rows ``[n]``, or steps ``[n, E]`` of E environments; return their indices in the same shape."""
        index = super().extend(data)
        storage = self._storage
        if not isinstance(storage, MixedStorage):
            return index
        if isinstance(storage.online, StepRing):
            # The steps of all environments are counted.
            count_writes(self, data.shape.numel() - len(data))
            index = storage.online.flat_index(index)
        return index + storage.num_demos

    def _mark_update_entities(self, index: Any) -> None:
        storage = self._storage
        if isinstance(storage, MixedStorage) and not isinstance(storage.online, StepRing):
            super()._mark_update_entities(index + storage.num_demos)
