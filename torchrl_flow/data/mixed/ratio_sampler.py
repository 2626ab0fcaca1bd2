"""A sampler that draws an exact share of every batch from each of the two parts of a mixed storage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import RandomSampler, SamplerWithoutReplacement, Storage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.replay import check_dump
from torchrl_flow.data.errors import DataError
from torchrl_flow.data.mixed.storage import MixedStorage, drawable
from torchrl_flow.data.mixed.storage_parts import StorageParts
from torchrl_flow.util.signature import InitSignature
from torchrl_flow.util.torchrl_compat import clear, generator_of, set_generator

__all__ = ["LinearRatio", "RatioSampler", "split_batch"]

RatioSchedule = Callable[[int], float]


def split_batch(batch_size: int, online_ratio: float) -> tuple[int, int]:
    """Return the number of demonstration rows and of online rows of a batch.

    The online rows are ``online_ratio * batch_size``, rounded to the nearest whole number, a half upwards; the
    demonstrations are the rest.

    Args:
        batch_size: rows of the batch.
        online_ratio: share of online rows, in [0, 1].

    Raises:
        ValueError: if the ratio is outside [0, 1].

    Examples:
        >>> split_batch(256, 0.5), split_batch(5, 0.5), split_batch(10, 0.04)
        ((128, 128), (2, 3), (10, 0))
    """
    if not 0.0 <= online_ratio <= 1.0:
        raise ValueError(f"online_ratio must lie in [0, 1], got {online_ratio}.")
    # The small constant keeps a product such as 50 * 0.29 from being rounded down because of its rounding error.
    online = min(batch_size, math.floor(online_ratio * batch_size + 0.5 + 1e-9))
    return batch_size - online, online


@dataclass(frozen=True)
class LinearRatio:
    """A ratio that goes from ``start`` to ``end`` in ``num_batches`` batches and stays there.

    Raises:
        ValueError: if a ratio is outside [0, 1] or ``num_batches`` below 1.

    Examples:
        >>> ratio = LinearRatio(0.0, 0.5, 100)
        >>> ratio(0), ratio(50), ratio(1000)
        (0.0, 0.25, 0.5)
    """

    start: float
    end: float
    num_batches: int

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("start", "end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, got {self.num_batches}.")

    def __call__(self, batch: int) -> float:
        """Return the ratio of batch number ``batch``, the first being 0."""
        return self.start + (self.end - self.start) * min(batch / self.num_batches, 1.0)


class RatioSampler(Sampler):
    """Sampler of a fixed number of demonstrations and of online rows per batch, with one sampler for each part.

    It works with any replay buffer of TorchRL. Demonstrations are distinguished from online rows:

    - in a :class:`MixedStorage`, by its parts;
    - in another storage by ``num_demos``: rows 0 ... num_demos - 1 are the demonstrations. Give the buffer a
      :class:`~torchrl_flow.data.DemoKeepingWriter`, which never overwrites them; another writer overwrites them once
      the storage is full, which raises an error;
    - otherwise by the bool entry ``is_demo_key`` of the rows. The entry is read again after each write to the storage.

    Args:
        demo_sampler: sampler of the demonstrations. Defaults to a ``RandomSampler``.
        online_sampler: sampler of the online rows. Defaults to a ``RandomSampler``. If ``num_demos`` is None, both must
            be a ``RandomSampler`` or ``SamplerWithoutReplacement``: indices within a part change.

    Keyword Args:
        online_ratio: share of online rows, see :func:`split_batch`; or a function of the number of batches drawn
            before, such as :class:`LinearRatio`.
        if_empty: behaviour without online rows: ``"demos"`` draws only demonstrations, ``"error"`` raises an error.
        num_demos: number of demonstrations at the start of the storage; ``None`` reads ``is_demo_key`` instead.
        is_demo_key: bool entry that is True for demonstrations.

    Raises:
        ValueError: if an argument is out of range; in sampling, if rows lack ``is_demo_key``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> sampler = RatioSampler(online_ratio=0.25)
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), sampler=sampler, batch_size=8)
        >>> for is_demo in (True, False):
        ...     _ = buffer.extend(TensorDict(is_demo=torch.full((20, 1), is_demo), batch_size=[20]))
        >>> buffer.sample()["is_demo"].sum().item()
        6
    """

    __signature__ = InitSignature()

    def __init__(
        self,
        demo_sampler: Sampler | None = None,
        online_sampler: Sampler | None = None,
        *,
        online_ratio: float | RatioSchedule = 0.5,
        if_empty: Literal["demos", "error"] = "demos",
        num_demos: int | None = None,
        is_demo_key: NestedKey = "is_demo",
    ) -> None:
        if if_empty not in ("demos", "error"):
            raise ValueError(f"if_empty must be 'demos' or 'error', got {if_empty!r}.")
        if num_demos is not None and num_demos < 0:
            raise ValueError(f"num_demos must be at least 0, or None to ask the rows, got {num_demos}.")
        self.demo_sampler = RandomSampler() if demo_sampler is None else demo_sampler
        self.online_sampler = RandomSampler() if online_sampler is None else online_sampler
        self.if_empty = if_empty
        self.num_batches = 0
        self._split, self._written = StorageParts(num_demos, is_demo_key), 0
        self.set_schedule(online_ratio)

    def set_schedule(self, online_ratio: float | RatioSchedule) -> None:
        """Replace the ratio.

        Raises:
            ValueError: if the next batch's ratio is outside [0, 1].
        """
        split_batch(1, float(online_ratio(self.num_batches) if callable(online_ratio) else online_ratio))
        self.schedule = online_ratio

    @property
    def online_ratio(self) -> float:
        """Share of online rows in the next batch."""
        return float(self.schedule(self.num_batches) if callable(self.schedule) else self.schedule)

    @property
    def _rng(self) -> torch.Generator | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return generator_of(self.demo_sampler)

    @_rng.setter
    def _rng(self, value: torch.Generator | None) -> None:
        for sampler in (self.demo_sampler, self.online_sampler):
            set_generator(sampler, value)

    def _parts(self, storage: Any) -> tuple[Any, Any]:
        """Return the storages of demonstrations and of online rows."""
        if isinstance(storage, MixedStorage):
            return storage.demos, storage.online
        samplers = (self.demo_sampler, self.online_sampler)
        fixed = self._split.num_demos is not None
        if not fixed and not all(isinstance(own, (RandomSampler, SamplerWithoutReplacement)) for own in samplers):
            raise ValueError(
                f"if {self._split.is_demo_key!r} tells demonstrations from online rows, both samplers must be a "
                f"RandomSampler or a SamplerWithoutReplacement, got {samplers[0]!r} and {samplers[1]!r}: give "
                "num_demos."
            )
        parts = self._split.of(storage)
        self._written = max(self._written, len(storage))
        for part in parts:
            set_generator(part, generator_of(self))
        return parts

    def sample(self, storage: Storage, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """Draw indices ``[batch_size]``: first those of demonstrations, then those of online rows."""
        parts = self._parts(storage)
        demos, online = split_batch(batch_size, self.online_ratio)
        if online and drawable(parts[1]) == 0:
            if self.if_empty == "error":
                raise RuntimeError(
                    f"{online} of {batch_size} rows must be online data, but there is none yet: collect first, "
                    "or make the buffer with if_empty='demos'."
                )
            demos, online = batch_size, 0
        if demos and len(parts[0]) == 0:
            raise RuntimeError(f"{demos} of {batch_size} rows must be demonstrations, but the storage has none.")
        drawn = _draw(self.demo_sampler, parts[0], demos), _draw(self.online_sampler, parts[1], online)
        self.num_batches += 1
        index = torch.cat([self._to_whole(storage, parts, i, drawn[i][0]) for i in (0, 1)])
        return _as_index(storage, index), _join_infos([part[1] for part in drawn], (demos, online))

    @staticmethod
    def _to_whole(storage: Storage, parts: tuple[Any, Any], which: int, index: Tensor) -> Tensor:
        if isinstance(storage, MixedStorage):
            return index + which * storage.num_demos
        return parts[which].to_whole(index)

    def can_sample(self, storage: Storage, batch_size: int) -> bool:
        """Return whether a batch can be drawn."""
        parts = self._parts(storage)
        demos, online = split_batch(batch_size, self.online_ratio)
        if online and drawable(parts[1]) == 0:
            return self.if_empty == "demos" and len(parts[0]) > 0
        return demos == 0 or len(parts[0]) > 0

    def _by_offset(self, storage: Storage | None) -> tuple[int, Any, Any] | None:
        """Return the number of demonstrations and both parts if rows keep their indices; otherwise None."""
        if isinstance(storage, MixedStorage):
            return storage.num_demos, storage.demos, storage.online
        if storage is None or self._split.num_demos is None:
            return None
        return self._split.num_demos, *self._split.of(storage)

    def update_priority(self, index: Any, priority: Any, *, storage: Storage | None = None) -> None:
        """Pass priorities to the samplers of the parts that have priorities."""
        if storage is None:
            raise TypeError("RatioSampler needs the storage here: call update_priority of the buffer.")
        found = self._by_offset(storage)
        if found is None:
            return
        first, demo_part, online_part = found
        index = torch.as_tensor(index).reshape(-1).cpu()
        priority = torch.as_tensor(priority).reshape(-1).cpu().expand(index.shape)
        demos = index < first
        parts: list[tuple[Tensor, Sampler, Any, int]] = [
            (demos, self.demo_sampler, demo_part, 0),
            (~demos, self.online_sampler, online_part, first),
        ]
        for rows, sampler, part, start in parts:
            if rows.any() and type(sampler).update_priority is not Sampler.update_priority:
                sampler.update_priority(index[rows] - start, priority[rows], storage=part)

    def mark_update(self, index: Any, *, storage: Storage | None = None) -> None:
        """Give new rows the default priority.

        Raises:
            RuntimeError: if a writer has overwritten demonstrations that ``num_demos`` counts.
        """
        found = self._by_offset(storage)
        if storage is None or found is None:
            return
        rows = torch.as_tensor(index).reshape(-1).cpu()
        if isinstance(storage, MixedStorage):
            if rows.numel() and int(rows.min()) < found[0]:
                raise RuntimeError(
                    "only OnlineWriter can write to a MixedStorage: give the buffer writer=OnlineWriter()."
                )
            self.online_sampler.mark_update(rows - found[0], storage=found[2])
            return
        if storage.ndim == 1 and rows.numel() and int(rows.min()) < min(found[0], self._written):
            raise RuntimeError(
                f"row {int(rows.min())}, one of the {found[0]} demonstrations, was overwritten. Give the buffer "
                f"writer=DemoKeepingWriter({found[0]}), or mark rows by an entry {self._split.is_demo_key!r} and "
                "leave num_demos out."
            )
        self._written = max(self._written, int(rows.max()) + 1 if rows.numel() else 0)
        for own, part, sampler, first in (
            (rows < found[0], found[1], self.demo_sampler, 0),
            (rows >= found[0], found[2], self.online_sampler, found[0]),
        ):
            if own.any():
                sampler.mark_update(rows[own] - first, storage=part)

    def _empty(self) -> None:
        clear(self.online_sampler)
        self._written = 0

    def state_dict(self) -> dict[str, Any]:
        """Return both samplers' states and the number of batches drawn."""
        return {
            "demos": self.demo_sampler.state_dict(),
            "online": self.online_sampler.state_dict(),
            "num_batches": self.num_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        self.demo_sampler.load_state_dict(state_dict["demos"])
        self.online_sampler.load_state_dict(state_dict["online"])
        self.num_batches = int(state_dict["num_batches"])

    def dumps(self, path: str | Path) -> None:
        """Write the state into a directory."""
        path = Path(path)
        for name, sampler in (("demos", self.demo_sampler), ("online", self.online_sampler)):
            (path / name).mkdir(parents=True, exist_ok=True)
            sampler.dumps(path / name)
        (path / "ratio_sampler.json").write_text(json.dumps({"num_batches": self.num_batches}), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Restore the state that :meth:`dumps` wrote.

        Raises:
            DataError: if a file could run code or does not belong to a sampler. The error names directory and member.
        """
        path = Path(path)
        check_dump(path)
        content = read_json(path / "ratio_sampler.json")
        count = content.get("num_batches") if isinstance(content, dict) else None
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise DataError(f"{path / 'ratio_sampler.json'} must give num_batches, a count, got {count!r}.")
        self.demo_sampler.loads(path / "demos")
        self.online_sampler.loads(path / "online")
        self.num_batches = count

    def __repr__(self) -> str:
        return f"RatioSampler(online_ratio={self.schedule!r}, {self.demo_sampler!r}, {self.online_sampler!r})"


def _draw(sampler: Sampler, storage: Storage, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw ``count`` indices and their metadata, in several calls if a sampler reaches the end of its epoch."""
    parts, infos, missing = [torch.zeros(0, dtype=torch.int64)], [], count
    while missing > 0:
        index, info = sampler.sample(storage, missing)
        index = torch.as_tensor(index).to("cpu", torch.int64)
        parts.append(index)
        infos.append({key: torch.as_tensor(value).cpu() for key, value in info.items() if key != "index"})
        missing -= len(index)
    names = set.intersection(*(set(info) for info in infos)) if infos else set()
    return torch.cat(parts), {key: torch.cat([info[key].reshape(-1) for info in infos]) for key in names}


def _as_index(storage: Storage, rows: Tensor) -> Any:
    """Convert rows ``[B]`` to an index of the storage, on its device."""
    device = getattr(storage, "device", None)
    rows = rows.to(device) if isinstance(device, torch.device) else rows
    return rows if storage.ndim == 1 else torch.unravel_index(rows, storage.shape)


def _join_infos(infos: list[dict[str, Tensor]], sizes: tuple[int, int]) -> dict[str, Any]:
    """Join the metadata from both samplers, such as weights; 1 for a sampler without them."""
    joined: dict[str, Any] = {}
    for key in {key for info in infos for key in info}:
        dtype = next(info[key].dtype for info in infos if key in info)
        values = [info.get(key, torch.ones(size, dtype=dtype)) for info, size in zip(infos, sizes, strict=True)]
        if all(len(value) == size for value, size in zip(values, sizes, strict=True)):
            joined[key] = torch.cat(values)
    return joined
