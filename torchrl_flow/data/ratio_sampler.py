"""Exactly so many rows of each batch from one part of a mixed storage, and the rest from the other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchrl.data import Storage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_flow.data.mixed_storage import MixedStorage, drawable

__all__ = ["LinearRatio", "RatioSampler", "split_batch"]

RatioSchedule = Callable[[int], float]


def split_batch(batch_size: int, online_ratio: float) -> tuple[int, int]:
    """Number of demonstration rows and of online rows of a batch.

    The online rows are ``online_ratio * batch_size``, rounded to the nearest whole number, a half upwards; the
    demonstrations are the rest.

    Args:
        batch_size: rows of the batch.
        online_ratio: in [0, 1].

    Raises:
        ValueError: if the ratio is outside [0, 1].

    Examples:
        >>> split_batch(256, 0.5), split_batch(5, 0.5), split_batch(10, 0.04)
        ((128, 128), (2, 3), (10, 0))
    """
    if not 0.0 <= online_ratio <= 1.0:
        raise ValueError(f"online_ratio must lie in [0, 1], got {online_ratio}.")
    # The small number keeps a product such as 50 * 0.29 from being rounded below the half it stands for.
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
        """Refuses what is no ratio."""
        for name in ("start", "end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.num_batches < 1:
            raise ValueError(f"num_batches must be at least 1, got {self.num_batches}.")

    def __call__(self, batch: int) -> float:
        """Returns the ratio of batch number ``batch``, the first being 0."""
        return self.start + (self.end - self.start) * min(batch / self.num_batches, 1.0)


class RatioSampler(Sampler):
    """Draws a batch from both parts of a :class:`MixedStorage`, each by a sampler of its own.

    Args:
        demo_sampler: sampler of the demonstrations.
        online_sampler: sampler of the online part.

    Keyword Args:
        online_ratio: share of online rows, see :func:`split_batch`; or a function of the number of batches drawn
            before, such as :class:`LinearRatio`.
        if_empty: what to do while the online part has nothing to draw: ``"demos"`` alone, or ``"error"``.
    """

    def __init__(
        self,
        demo_sampler: Sampler,
        online_sampler: Sampler,
        *,
        online_ratio: float | RatioSchedule = 0.5,
        if_empty: Literal["demos", "error"] = "demos",
    ) -> None:
        if if_empty not in ("demos", "error"):
            raise ValueError(f"if_empty must be 'demos' or 'error', got {if_empty!r}.")
        self.demo_sampler, self.online_sampler, self.if_empty = demo_sampler, online_sampler, if_empty
        self.num_batches = 0
        self.set_schedule(online_ratio)

    def set_schedule(self, online_ratio: float | RatioSchedule) -> None:
        """Replaces the ratio.

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
        return self.demo_sampler._rng

    @_rng.setter
    def _rng(self, value: torch.Generator | None) -> None:
        self.demo_sampler._rng = self.online_sampler._rng = value

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draws indices ``[batch_size]``: first those of demonstrations, then those of online rows."""
        if not isinstance(storage, MixedStorage):
            raise TypeError(f"RatioSampler draws from a MixedStorage, got a {type(storage).__name__}.")
        demos, online = split_batch(batch_size, self.online_ratio)
        if online and drawable(storage.online) == 0:
            if self.if_empty == "error":
                raise RuntimeError(
                    f"{online} of {batch_size} rows are to be online data, and there is none yet: collect first, or "
                    "make the buffer with if_empty='demos'."
                )
            demos, online = batch_size, 0
        parts = (
            _draw(self.demo_sampler, storage.demos, demos),
            _draw(self.online_sampler, storage.online, online),
        )
        self.num_batches += 1
        index = torch.cat([parts[0][0], parts[1][0] + storage.num_demos])
        return index, _join_infos([part[1] for part in parts], (demos, online))

    def can_sample(self, storage: Storage, batch_size: int) -> bool:
        """Tells whether a batch can be drawn."""
        if self.if_empty == "demos" or split_batch(batch_size, self.online_ratio)[1] == 0:
            return True
        return isinstance(storage, MixedStorage) and drawable(storage.online) > 0

    def update_priority(self, index: Any, priority: Any, *, storage: Storage | None = None) -> None:
        """Hands priorities on to the samplers of the parts that have any."""
        if not isinstance(storage, MixedStorage):
            raise TypeError("RatioSampler needs its storage to tell the parts: call the buffer's update_priority.")
        index = torch.as_tensor(index).reshape(-1).cpu()
        priority = torch.as_tensor(priority).reshape(-1).cpu().expand(index.shape)
        demos = index < storage.num_demos
        parts: list[tuple[Tensor, Sampler, Any, int]] = [
            (demos, self.demo_sampler, storage.demos, 0),
            (~demos, self.online_sampler, storage.online, storage.num_demos),
        ]
        for rows, sampler, part, first in parts:
            if rows.any() and type(sampler).update_priority is not Sampler.update_priority:
                sampler.update_priority(index[rows] - first, priority[rows], storage=part)

    def mark_update(self, index: Any, *, storage: Storage | None = None) -> None:
        """Gives new rows the default priority."""
        if isinstance(storage, MixedStorage):
            index = torch.as_tensor(index).reshape(-1) - storage.num_demos
            self.online_sampler.mark_update(index, storage=storage.online)

    def _empty(self) -> None:
        self.online_sampler._empty()

    def state_dict(self) -> dict[str, Any]:
        """Returns both samplers' states and the number of batches drawn."""
        return {
            "demos": self.demo_sampler.state_dict(),
            "online": self.online_sampler.state_dict(),
            "num_batches": self.num_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.demo_sampler.load_state_dict(state_dict["demos"])
        self.online_sampler.load_state_dict(state_dict["online"])
        self.num_batches = int(state_dict["num_batches"])

    def dumps(self, path: str | Path) -> None:
        """Writes the state into a directory."""
        path = Path(path)
        for name, sampler in (("demos", self.demo_sampler), ("online", self.online_sampler)):
            (path / name).mkdir(parents=True, exist_ok=True)
            sampler.dumps(path / name)
        (path / "ratio_sampler.json").write_text(json.dumps({"num_batches": self.num_batches}), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Restores what :meth:`dumps` wrote."""
        path = Path(path)
        self.demo_sampler.loads(path / "demos")
        self.online_sampler.loads(path / "online")
        self.num_batches = int(json.loads((path / "ratio_sampler.json").read_text(encoding="utf-8"))["num_batches"])

    def __repr__(self) -> str:
        return f"RatioSampler(online_ratio={self.schedule!r}, {self.demo_sampler!r}, {self.online_sampler!r})"


def _draw(sampler: Sampler, storage: Storage, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws ``count`` indices, again where a sampler's epoch ends before, and what it says of each."""
    parts, infos, missing = [torch.zeros(0, dtype=torch.int64)], [], count
    while missing > 0:
        index, info = sampler.sample(storage, missing)
        index = torch.as_tensor(index).to("cpu", torch.int64)
        parts.append(index)
        infos.append({key: torch.as_tensor(value).cpu() for key, value in info.items() if key != "index"})
        missing -= len(index)
    names = set.intersection(*(set(info) for info in infos)) if infos else set()
    return torch.cat(parts), {key: torch.cat([info[key].reshape(-1) for info in infos]) for key in names}


def _join_infos(infos: list[dict[str, Tensor]], sizes: tuple[int, int]) -> dict[str, Any]:
    """What the samplers say of their rows, such as weights; 1 where one of them says nothing."""
    joined: dict[str, Any] = {}
    for key in {key for info in infos for key in info}:
        dtype = next(info[key].dtype for info in infos if key in info)
        values = [info.get(key, torch.ones(size, dtype=dtype)) for info, size in zip(infos, sizes, strict=True)]
        if all(len(value) == size for value, size in zip(values, sizes, strict=True)):
            joined[key] = torch.cat(values)
    return joined
