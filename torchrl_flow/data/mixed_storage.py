"""Demonstrations and online data as one storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import RoundRobinWriter, Storage, TensorStorage

from torchrl_flow.data.chunks import ChunkStorage
from torchrl_flow.data.step_ring import StepRing

__all__ = ["MixedStorage", "OnlineWriter", "drawable"]


def drawable(storage: TensorStorage | StepRing) -> int:
    """Number of rows of an online part that can be drawn."""
    return storage.num_drawable if isinstance(storage, StepRing) else len(storage)


class MixedStorage(Storage):
    """Rows 0 ... D - 1 are the steps of the demonstrations, rows from D on those of the online part.

    Args:
        demos: the demonstrations; read-only.
        online: the online part, a ring.

    Keyword Args:
        exclude_keys: entries of demonstrations that rows do without.
        device: where batches go. Default: as the demonstrations say, else each part's own.
    """

    device = None
    """Of no meaning: indices are drawn part by part. Where batches go is ``batch_device``."""

    def __init__(
        self,
        demos: ChunkStorage,
        online: TensorStorage | StepRing,
        *,
        exclude_keys: Sequence[NestedKey] = (),
        device: torch.device | str | None = None,
    ) -> None:
        self.demos, self.online, self.num_demos = demos, online, len(demos)
        super().__init__(max_size=len(demos) + online.max_size)
        self._exclude = list(exclude_keys)
        self.batch_device = demos.batch_device if device is None else torch.device(device)

    @property
    def _rng(self) -> torch.Generator | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.online._rng

    @_rng.setter
    def _rng(self, value: torch.Generator | None) -> None:
        self.demos._rng = self.online._rng = value

    def get(self, index: Any) -> TensorDictBase:
        """Reads rows.

        Args:
            index: int, slice, sequence, bool mask or int tensor, of one dimension at most.

        Returns:
            The rows, in the order of ``index``.

        Raises:
            IndexError: when a row does not exist.
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
            batch = torch.cat([self._read_demos(flat[of_demos]), self._read_online(flat[~of_demos])])
            if not bool(of_demos[:count].all()):
                place = torch.cat([of_demos.nonzero(), (~of_demos).nonzero()]).squeeze(-1)
                batch = batch[torch.argsort(place).to(batch.device or "cpu")]
        return cast(TensorDictBase, batch.reshape(rows.shape))

    def _read_demos(self, rows: Tensor) -> TensorDictBase:
        batch = self.demos.get(rows)
        return self._to_device(batch.exclude(*self._exclude) if self._exclude else batch)

    def _read_online(self, rows: Tensor) -> TensorDictBase:
        index: Any = (rows - self.num_demos).to(self.online.device)
        batch = self.online.get(index)
        return self._to_device(batch)

    def _to_device(self, batch: TensorDictBase) -> TensorDictBase:
        return batch if self.batch_device is None else batch.to(self.batch_device, non_blocking=True)

    def _rows(self, index: Any) -> Tensor:
        size = len(self)
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
        """Writes rows into the online part, at places counted within it."""
        if not isinstance(self.online, StepRing):
            self._set_last_cursor(cursor)
        self.online.set(cursor, data, set_cursor=set_cursor)
        self.max_size = self.num_demos + self.online.max_size

    def __setitem__(self, index: Any, value: Any) -> None:
        rows = self._rows(index)
        if isinstance(self.online, StepRing) or bool((rows < self.num_demos).any()):
            raise RuntimeError("demonstrations and folded steps are read-only: online rows alone can be assigned to.")
        self.online[rows - self.num_demos] = value

    def _max_size_along_dim0(self, *, single_data: Any = None, batched_data: Any = None) -> int:
        return self.online._max_size_along_dim0(single_data=single_data, batched_data=batched_data)

    def _empty(self) -> None:
        self.online._empty()

    def contains(self, item: Any) -> Any:
        """Tells which rows exist."""
        rows = torch.as_tensor(item)
        inside = (rows >= -len(self)) & (rows < len(self))
        return bool(inside) if inside.ndim == 0 else inside

    def __len__(self) -> int:
        return self.num_demos + len(self.online)

    def _content(self) -> tuple[TensorDictBase | None, int]:
        """The rows of the online part as stored, without unused room, and the place of the newest step of a ring."""
        if len(self.online) == 0:
            return None, -1
        if isinstance(self.online, StepRing):
            return self.online.rows(), self.online._newest
        return self.online.get(slice(None)), -1

    def _restore(self, rows: TensorDictBase | None, newest: int) -> None:
        self.online._empty()
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
        """Returns a copy of the online rows, and what identifies the demonstrations."""
        rows, newest = self._content()
        online = None if rows is None else rows.to("cpu").clone().to_dict()
        return {"demos": self.demos.state_dict(), "online": online, "shape": self._shape(rows), "newest": newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the online rows.

        Raises:
            RuntimeError: if the demonstrations are others, or there is no room for the rows.
        """
        self.demos.load_state_dict(state_dict["demos"])
        online = state_dict["online"]
        rows = None if online is None else TensorDict(online, batch_size=list(state_dict["shape"]))
        self._restore(rows, int(state_dict["newest"]))

    def dumps(self, path: str | Path) -> None:
        """Writes the state into a directory, the rows memory-mapped."""
        path = Path(path)
        self.demos.dumps(path / "demos")
        rows, newest = self._content()
        if rows is not None:
            rows.to("cpu").clone().memmap(path / "online")
        content = {"newest": newest, "shape": self._shape(rows)}
        (path / "mixed_storage.json").write_text(json.dumps(content), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Restores what :meth:`dumps` wrote; see :meth:`load_state_dict`."""
        path = Path(path)
        self.demos.loads(path / "demos")
        content = json.loads((path / "mixed_storage.json").read_text(encoding="utf-8"))
        rows = TensorDict.load_memmap(path / "online") if content["shape"] else None
        self._restore(rows, content["newest"])

    @staticmethod
    def _shape(rows: TensorDictBase | None) -> list[int]:
        return [] if rows is None else list(rows.shape)

    def __repr__(self) -> str:
        online = f"{type(self.online).__name__}({len(self.online)} of {self.online.max_size} rows)"
        return f"MixedStorage({self.demos!r}, {online}, device={self.batch_device})"


class OnlineWriter(RoundRobinWriter):
    """Writes to the online part of a :class:`MixedStorage`, round and round; returns rows of the whole."""

    def extend(self, data: Any) -> Tensor:
        """Writes rows ``[n]``, or steps ``[n, E]`` of E environments; returns where, in the same shape."""
        index = super().extend(data)
        storage = self._storage
        if not isinstance(storage, MixedStorage):
            return index
        if isinstance(storage.online, StepRing):
            # Steps of all environments count.
            self._write_count += data.shape.numel() - len(data)
            index = storage.online.flat_index(index)
        return index + storage.num_demos

    def _mark_update_entities(self, index: Any) -> None:
        storage = self._storage
        if isinstance(storage, MixedStorage) and not isinstance(storage.online, StepRing):
            super()._mark_update_entities(index + storage.num_demos)
