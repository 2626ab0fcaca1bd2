"""Statistics of the columns of a table that may be larger than memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["STATISTICS", "column_statistics"]

STATISTICS = ("min", "max", "mean", "std", "q01", "q99")


def column_statistics(table: Tensor, rows: Tensor | None = None, *, block_elements: int = 2**22) -> dict[str, Tensor]:
    """Compute min, max, mean, std (population), 1 % and 99 % quantile of each column.

    The first four are accumulated in float64 over blocks of rows, by Chan's update, so that precision does not depend
    on the number of rows or the offset; the quantiles (linear interpolation) are exact, over blocks of columns. At most
    ``block_elements`` values, or one column, are in memory at a time.

    Args:
        table: ``[N, D]`` or ``[N]``, on the CPU, typically memory-mapped.
        rows: indices of the rows to include, int64 ``[M]``. Defaults to all rows.
        block_elements: largest number of elements that is read at a time.

    Returns:
        float32 tensors ``[D]`` under the names of :data:`STATISTICS`.

    Raises:
        ValueError: if there is no row, or the table does not have one or two dimensions.

    Examples:
        >>> column_statistics(torch.tensor([[0.0], [2.0]]))["mean"]
        tensor([1.])
    """
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2:
        raise ValueError(f"table must be [N, D] or [N], got {list(table.shape)}.")
    count = table.shape[0] if rows is None else rows.numel()
    width = table.shape[1]
    if count == 0 or width == 0:
        raise ValueError(f"table has {count} rows and {width} columns: there is nothing to compute statistics of.")
    low, high, mean, variance = _moments(table, rows, count, max(1, block_elements // width))
    q01, q99 = _quantiles(table, rows, max(1, block_elements // count))
    values = (low, high, mean, variance.sqrt(), q01, q99)
    return {name: value.to(torch.float32) for name, value in zip(STATISTICS, values)}


def _moments(table: Tensor, rows: Tensor | None, count: int, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low = torch.full((table.shape[1],), torch.inf, dtype=torch.float64)
    high, mean, square = -low, torch.zeros_like(low), torch.zeros_like(low)
    for start in range(0, count, block):
        stop = min(count, start + block)
        part = (table[start:stop] if rows is None else table[rows[start:stop]]).to(torch.float64)
        low, high = torch.minimum(low, part.amin(0)), torch.maximum(high, part.amax(0))
        part_mean = part.mean(0)
        delta, size = part_mean - mean, stop - start
        square += ((part - part_mean) ** 2).sum(0) + delta**2 * (start * size / stop)
        mean += delta * (size / stop)
    return low, high, mean, square / count


def _quantiles(table: Tensor, rows: Tensor | None, block: int) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, table.shape[1], block):
        part = table[:, start : start + block]
        part = part if rows is None else part[rows]
        parts.append(np.quantile(part.to(torch.float64).numpy(), (0.01, 0.99), axis=0))
    low, high = torch.from_numpy(np.concatenate(parts, axis=1))
    return low, high
