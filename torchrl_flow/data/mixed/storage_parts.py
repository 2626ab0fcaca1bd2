"""Views of the demonstrations and of the online rows of one storage, from which samplers draw."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from tensordict.utils import expand_as_right
from torch import Tensor
from torchrl.data import Storage, TensorDictRoundRobinWriter

from torchrl_flow.util.torchrl_compat import count_writes, finish_write, revision_of, room_of, write_cursor

__all__ = ["DemoKeepingWriter", "StorageParts"]


class _Part(Storage):
    """Some rows of a storage; samplers see them as rows 0 ... n - 1."""

    def __init__(self, storage: Storage, rows: Tensor | range) -> None:
        super().__init__(max_size=storage.max_size)
        self.storage: Any = storage
        self.rows = rows

    def to_whole(self, index: Tensor) -> Tensor:
        """Convert row indices of the part to row indices of the storage."""
        return index + self.rows.start if isinstance(self.rows, range) else self.rows[index]

    def get(self, index: Any) -> Any:
        return self.storage.get(self.to_whole(torch.as_tensor(index)))

    def __len__(self) -> int:
        return len(self.rows)

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        raise RuntimeError("rows are written to the whole storage, not to a part of it.")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the storage holds the rows."""

    def _empty(self) -> None:
        """Do nothing: the storage holds the rows."""


class StorageParts:
    """Division of a storage into demonstrations and online rows.

    Args:
        num_demos: number of demonstrations, which are the first rows; ``None`` reads ``is_demo_key`` of each row
            instead.
        is_demo_key: bool entry ``[*]`` or ``[*, 1]`` that is true for demonstrations; used if ``num_demos`` is
            ``None``.
    """

    def __init__(self, num_demos: int | None, is_demo_key: NestedKey) -> None:
        self.num_demos, self.is_demo_key = num_demos, is_demo_key
        self._seen: tuple[int, ...] | None = None
        self._parts: tuple[_Part, _Part] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None, "_parts": None}

    def of(self, storage: Any) -> tuple[_Part, _Part]:
        """Return demonstrations and online rows, recomputed after each change of the storage.

        Raises:
            ValueError: if rows lack ``is_demo_key``.
        """
        seen = (id(storage), len(storage), revision_of(storage))
        if self._parts is not None and seen == self._seen:
            return self._parts
        rows = self._by_offset(len(storage)) if self.num_demos is not None else self._by_entry(storage)
        if self._parts is None or self._parts[0].storage is not storage:
            self._parts = _Part(storage, rows[0]), _Part(storage, rows[1])
        for part, own in zip(self._parts, rows, strict=True):
            part.rows = own
        self._seen = seen
        return self._parts

    def _by_offset(self, size: int) -> tuple[range, range]:
        first = min(self.num_demos or 0, size)
        return range(first), range(first, size)

    def _by_entry(self, storage: Any) -> tuple[Tensor, Tensor]:
        flags = _column(storage, self.is_demo_key)
        return flags.nonzero().squeeze(-1), (~flags).nonzero().squeeze(-1)


def _column(storage: Any, key: NestedKey) -> Tensor:
    """Read a bool entry of all rows, ``[N]``; several dimensions are flattened in memory order."""
    if len(storage) == 0:
        return torch.zeros(0, dtype=torch.bool)
    rows: Any = storage.get(range(len(storage)) if storage.ndim == 1 else slice(None))
    items = [rows] if is_tensor_collection(rows) else list(rows)
    values = [item.get(key, None) if is_tensor_collection(item) else None for item in items]
    if any(value is None for value in values):
        has = sorted(map(str, items[0].keys(True, True))) if is_tensor_collection(items[0]) else type(items[0]).__name__
        raise ValueError(
            f"rows of the storage have no entry {key!r} that tells demonstrations from online rows; they have {has}. "
            "Write it with every row, or say by num_demos how many rows at the start are demonstrations."
        )
    parts = [torch.as_tensor(value) for value in values]
    column = parts[0] if is_tensor_collection(rows) else torch.stack(parts)
    flat = column.reshape(-1)
    if flat.dtype != torch.bool or flat.numel() != len(storage):
        raise ValueError(
            f"entry {key!r} must be bool, one for each of {len(storage)} rows, got {column.dtype} {list(column.shape)}."
        )
    return flat.cpu()


class DemoKeepingWriter(TensorDictRoundRobinWriter):
    """A round-robin writer that never overwrites the demonstrations at the start.

    Write the demonstrations first; all later rows are online data. A stock writer would start again at row 0 once the
    storage is full, and replace demonstrations.

    Args:
        num_demos: number of rows at the start that are never overwritten.

    Raises:
        ValueError: if the number is below 0; in writing, if the storage has no room for online rows, or one call
            exceeds that room.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(5), writer=DemoKeepingWriter(3))
        >>> for n in (3, 1, 2):
        ...     print(buffer.extend(TensorDict(x=torch.zeros(n), batch_size=[n])).tolist())
        [0, 1, 2]
        [3]
        [4, 3]
    """

    def __init__(self, num_demos: int, **options: Any) -> None:
        if num_demos < 0:
            raise ValueError(f"num_demos must be at least 0, got {num_demos}.")
        super().__init__(**options)
        self.num_demos = num_demos

    def add(self, data: TensorDictBase) -> Any:
        """Write one row; return its index."""
        return self.extend(data.unsqueeze(0))[0]

    def extend(self, data: Any) -> Tensor:
        """Write rows; return their indices."""
        storage: Any = self._storage
        rows = len(data)
        size = room_of(storage, batched_data=data)
        if size <= self.num_demos:
            raise ValueError(f"a storage of {size} rows has no room beside {self.num_demos} demonstrations.")
        first, room = write_cursor(self), size - self.num_demos
        # A first call may write the demonstrations and online rows; it does not wrap around.
        if rows > (size - first if first < self.num_demos else room):
            raise ValueError(f"{rows} rows in one call exceed the online part of {room}: make the storage larger.")
        # One position more than rows: the last one is the cursor of the next call. Past the end of the storage,
        # positions continue behind the demonstrations.
        position = torch.arange(first, first + rows + 1, device=getattr(data, "device", None) or "cpu")
        position = torch.where(position < size, position, self.num_demos + (position - size) % room)
        index = position[:-1]
        write_cursor(self, int(position[-1]))
        count_writes(self, rows)
        data.set("index", expand_as_right(index, data))
        storage.set(index, data)
        return finish_write(self, index, data)
