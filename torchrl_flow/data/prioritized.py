"""Prioritised replay without TorchRL's compiled extension."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import MemoryMappedTensor
from torch import Tensor
from torchrl.data import PrioritizedSampler as CompiledSampler
from torchrl.data import Storage

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.replay import check_dump
from torchrl_flow.data.errors import DataError
from torchrl_flow.util.signature import InitSignature

__all__ = ["PrioritizedSampler"]

METADATA, SUMS, MINIMA = "sampler_metadata.json", "sumtree.memmap", "mintree.memmap"


class PrioritizedSampler(CompiledSampler):
    """TorchRL's :class:`~torchrl.data.PrioritizedSampler`, which needs no compiled extension.

    A row of priority p is drawn with probability ``(p + eps)^alpha / sum_j (p_j + eps)^alpha``. Its importance weight,
    the entry ``priority_weight`` of a batch, is ``(P(i) / min_j P(j))^-beta``, as in TorchRL: the weight of the least
    probable row is 1. A written row without a priority has the largest priority so far.

    TorchRL's class stores its sums in a tree of its C++ extension, and cannot be constructed if the wheels of TorchRL
    and torch do not match; ``torchrl-flow doctor`` reports this. This class uses NumPy arrays of float64. Arguments,
    annealing of ``alpha`` and ``beta``, ``update_priority`` and files are TorchRL's. It is a subclass of TorchRL's
    class, so buffers and trainers treat it alike. Draws come from torch's global generator or the buffer's, whereas
    TorchRL uses NumPy's; the state holds only tensors and numbers.

    Use it in a ``TensorDictReplayBuffer(priority_key=...)``, or as the sampler of either part of a
    :class:`~torchrl_flow.data.MixedReplayBuffer` or :class:`~torchrl_flow.data.RatioSampler`. Losses of this package
    write ``td_error`` into their batch, which ``buffer.update_tensordict_priority(batch)`` reads.

    Args:
        max_capacity (int): capacity of the storage in rows.
        alpha (float): exponent of the priorities; 0 draws uniformly.
        beta (float): exponent of the importance weights; 1 corrects the bias of the sampling fully.
        eps (float): constant added to every priority. Defaults to 1e-8.
        **options: options of TorchRL's class, except ``device``: the trees are on the CPU.

    Raises:
        ValueError: if ``alpha``, ``beta`` or a priority is below 0, or a priority is not finite; in sampling, if the
            storage has more rows than ``max_capacity``, or ``eps`` and a priority are 0.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> sampler = PrioritizedSampler(100, alpha=1.0, beta=1.0)
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=LazyTensorStorage(100), sampler=sampler, batch_size=1000, priority_key="td_error"
        ... )
        >>> rows = TensorDict(x=torch.arange(2), td_error=torch.tensor([1.0, 3.0]), batch_size=[2])
        >>> _ = buffer.extend(rows)
        >>> batch = buffer.sample()
        >>> batch["x"].float().mean() > 0.6, batch["priority_weight"].unique()
        (tensor(True), tensor([0.3333, 1.0000]))
    """

    __signature__ = InitSignature()

    def __init__(self, max_capacity: int, alpha: float, beta: float, eps: float = 1e-8, **options: Any) -> None:
        if options.pop("device", None) not in (None, "cpu", torch.device("cpu")):
            raise ValueError("device must be the CPU, where the trees of priorities are, or left out.")
        with _without_warning_of_the_extension():
            super().__init__(max_capacity, alpha, beta, eps=eps, **options)

    def _init(self) -> None:
        self._sum_tree = _Tree(self._max_capacity, np.add, 0.0)
        self._min_tree = _Tree(self._max_capacity, np.minimum, np.inf)
        self._max_priority = (None, None)
        self._rows_seen = 0

    def _maybe_init_from_storage(self, storage: Storage | None) -> None:
        """Do nothing: the trees are always on the CPU."""

    def sample(self, storage: Storage, batch_size: int) -> Any:
        """Draw indices ``[batch_size]``, with replacement.

        Returns:
            The indices, a tuple of them for a storage of several dimensions, and ``priority_weight`` ``[batch_size]``.
        """
        size: int = len(storage)  # pyright: ignore[reportArgumentType]
        if size == 0:
            raise RuntimeError("Cannot sample from an empty storage.")
        self._give_priorities(size)
        if self._min_tree.total <= 0:
            raise ValueError("a row has priority 0, and its importance weight would be infinite: set eps above 0.")
        mass = torch.rand(batch_size, dtype=torch.float64, generator=self._rng) * self._sum_tree.total
        index = torch.from_numpy(self._sum_tree.find(mass.numpy()))
        weight = (torch.from_numpy(self._sum_tree[index]) / self._min_tree.total) ** -self._beta
        found: Any = index if storage.ndim == 1 else torch.unravel_index(index, storage.shape)
        return found, {"priority_weight": weight.to(self.dtype)}

    def _give_priorities(self, size: int) -> None:
        """Set the priority of new rows for rows without a priority."""
        if size > self._max_capacity:
            raise ValueError(f"the storage has {size} rows, and max_capacity is {self._max_capacity}: raise it.")
        if size <= self._rows_seen:
            return
        rows = torch.arange(self._rows_seen, size)
        unknown = rows[torch.from_numpy(np.isinf(self._min_tree[rows]))]
        if len(unknown):
            super().update_priority(unknown, self.default_priority)
        self._rows_seen = size

    def update_priority(self, index: Any, priority: Any, *, storage: Any = None) -> None:
        """Set the priorities of rows.

        Args:
            index: rows ``[n]``; or ``[n, D]``, or a tuple of D tensors, for a storage of D dimensions. A negative index
                is ignored.
            priority: priorities ``[n]``, or one number for all rows.
            storage: storage; required if it has several dimensions.

        Raises:
            ValueError: if a priority is below 0 or not finite; no priority is then set.
        """
        values = torch.as_tensor(priority).detach().cpu()
        if not bool((values.isfinite() & (values >= 0)).all()):
            wrong = values.reshape(-1)[~(values.isfinite() & (values >= 0)).reshape(-1)]
            raise ValueError(f"priorities must be finite and at least 0, got {wrong[:5].tolist()}.")
        if isinstance(index, tuple):
            index = torch.stack([torch.as_tensor(part) for part in index], -1)
        index = torch.as_tensor(index).cpu()
        if index.numel():
            super().update_priority(index, values, storage=storage)

    def _leaves(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(self._max_capacity)
        return torch.from_numpy(self._sum_tree[rows].copy()), torch.from_numpy(self._min_tree[rows].copy())

    def _restore(self, sums: Tensor, minima: Tensor, values: dict[str, Any]) -> None:
        if len(sums) != self._max_capacity:
            raise RuntimeError(f"{len(sums)} priorities were saved, and max_capacity is {self._max_capacity} here.")
        self._init()
        rows = torch.arange(self._max_capacity)
        self._sum_tree[rows], self._min_tree[rows] = sums, minima
        self._alpha, self._beta, self._eps = (float(values[key]) for key in ("_alpha", "_beta", "_eps"))
        value, place = values["_max_priority"]
        largest: Any = None if value is None else torch.tensor(float(value))
        row: Any = None if place is None else torch.tensor(int(place))
        self._max_priority = (largest, row)

    def _values(self) -> dict[str, Any]:
        value, place = self._max_priority
        return {
            "_schema_version": self._STATE_SCHEMA_VERSION,
            "_alpha": self._alpha,
            "_beta": self._beta,
            "_eps": self._eps,
            "_max_priority": [None if value is None else float(value), None if place is None else int(place)],
            "_max_capacity": self._max_capacity,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return priorities, exponents and the largest priority, as tensors and numbers."""
        sums, minima = self._leaves()
        return {**self._values(), "_sum_tree": sums, "_min_tree": minima}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned.

        Raises:
            RuntimeError: if the state has another ``max_capacity``.
        """
        self._restore(state_dict["_sum_tree"], state_dict["_min_tree"], state_dict)

    def dumps(self, path: str | Path) -> None:
        """Write the state into a directory, in TorchRL's format."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name, leaves in zip((SUMS, MINIMA), self._leaves(), strict=True):
            (path / name).unlink(missing_ok=True)
            MemoryMappedTensor.from_tensor(leaves, filename=path / name)
        (path / METADATA).write_text(json.dumps(self._values()), encoding="utf-8")

    def loads(self, path: str | Path) -> None:
        """Restore the state that :meth:`dumps` wrote.

        Raises:
            DataError: if a file is missing, has another size, or does not belong to a sampler. The error names
                directory and member.
        """
        path = Path(path)
        check_dump(path)
        missing = [name for name in (METADATA, SUMS, MINIMA) if not (path / name).is_file()]
        if missing:
            raise DataError(f"{path} is not a dump of a prioritised sampler: it has no {', '.join(missing)}.")
        values = read_json(path / METADATA)
        try:
            count = int(values["_max_capacity"])
            parts = [
                MemoryMappedTensor.from_filename(path / name, dtype=torch.float64, shape=(count,)).as_subclass(Tensor)
                for name in (SUMS, MINIMA)
            ]
            self._restore(parts[0].clone(), parts[1].clone(), values)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path} is not a dump of a prioritised sampler: {error!r}.") from error


class _Tree:
    """Sums or minima of rows, in float64: a row is set, and a prefix of the sums is found, in O(log rows).

    Args:
        rows: number of rows.
        combine: function that combines the values of two children.
        neutral: value of rows that have not been set.
    """

    def __init__(self, rows: int, combine: np.ufunc, neutral: float) -> None:
        self._first = 1 << max(rows - 1, 0).bit_length()
        self._combine = combine
        # Node n has the children 2n and 2n + 1; the root is node 1, the leaves begin at `_first`.
        self._nodes = np.full(2 * self._first, neutral)

    @property
    def total(self) -> float:
        """The combination of all rows."""
        return float(self._nodes[1])

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._nodes[np.asarray(index) + self._first]

    def __setitem__(self, index: Any, value: Any) -> None:
        nodes = np.asarray(index).reshape(-1) + self._first
        self._nodes[nodes] = np.asarray(value, dtype=np.float64).reshape(-1)
        # Update the parents n // 2, level by level; siblings have one parent, which is computed once.
        while (nodes := np.unique(nodes >> 1))[0] > 0:
            self._nodes[nodes] = self._combine(self._nodes[2 * nodes], self._nodes[2 * nodes + 1])

    def find(self, mass: np.ndarray) -> np.ndarray:
        """Return, for each mass, the first row at which the cumulative sum exceeds the mass."""
        node, mass = np.ones(mass.shape, dtype=np.int64), mass.copy()
        # All leaves have the same depth, so all descents end in the same iteration.
        while node[0] < self._first if len(node) else False:
            left = self._nodes[2 * node]
            # Rounding may leave some mass at a node whose right subtree is empty.
            right = (mass >= left) & (self._nodes[2 * node + 1] > 0)
            mass -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - self._first


@contextmanager
def _without_warning_of_the_extension() -> Iterator[None]:
    """Suppress TorchRL's warnings about its extension, which this sampler does not need."""
    logger = logging.getLogger("torchrl")

    def keep(record: logging.LogRecord) -> bool:
        return "C++ binaries" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
