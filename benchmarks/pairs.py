"""Pairs of timings for the benchmarks: comparison of several forms of a computation, and the row of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from torchrl_flow.reports import append_benchmark
from torchrl_flow.util.timing import Form, alternate, count_flops, gemm_rate, ratio_of


class Pair(NamedTuple):
    """Two forms to compare, by name, and the pair's name and mode in the table."""

    ours: str
    reference: str
    title: str
    mode: str


@dataclass
class Side:
    """A form of a computation.

    Args:
        call: function that performs the computation ``calls`` times.
        parameters: number of trained values.
        calls: number of computations in a call.
        products: function with the same matrix products as ``call``, for a compiled form, whose products are not
            counted. Defaults to ``call``.
    """

    call: Form
    parameters: int
    calls: int = 1
    products: Form | None = None

    def floor_ms(self, rate: float) -> float:
        """Return the milliseconds that the matrix products of one computation take at this rate."""
        return 1e3 * count_flops(self.products or self.call) / self.calls / rate


def compare(
    sides: Mapping[str, Side],
    pairs: Iterable[Pair],
    *,
    rounds: int,
    repeats: int = 1,
    warmup: int = 3,
    device: str = "cpu",
    results: Path | None = None,
) -> None:
    """Time the forms alternately, and record each pair with both numbers of parameters and both lower bounds.

    The lower bound (floor) is the time of the matrix products only, at the rate measured in this process.

    Args:
        sides: the forms, by name.
        pairs: the forms to compare.
        rounds: number of measurements of each form.
        repeats: calls in a measurement.
        warmup: number of discarded measurements.
        device: device of the work.
        results: CSV file of the table; ``None`` to print only.
    """
    rate = gemm_rate(device)
    floors = {name: side.floor_ms(rate) for name, side in sides.items()}
    forms = {name: side.call for name, side in sides.items()}
    times = alternate(forms, rounds=rounds, repeats=repeats, warmup=warmup, device=device)
    each = {name: [value / sides[name].calls for value in values] for name, values in times.items()}
    print(f"matrix products of 256: {rate / 1e9:.0f} GFLOP/s")
    for ours, reference, title, mode in pairs:
        sizes = f"{sides[ours].parameters} / {sides[reference].parameters} parameters"
        full = f"{mode}, " * bool(mode) + f"{sizes}, floor {floors[ours]:.3g} / {floors[reference]:.3g} ms"
        record_pair(title, full, each[ours], each[reference], device=device, results=results)


def record_pair(
    title: str,
    mode: str,
    ours: list[float],
    reference: list[float],
    *,
    device: str = "cpu",
    threads: int | None = None,
    results: Path | None = None,
) -> None:
    """Print a pair of timings, and append it to the table.

    Args:
        title: names of both sides, ``"ours / reference"``.
        mode: kind and sizes of the work.
        ours: milliseconds of each measurement.
        reference: likewise, of the adjacent measurement of the reference.
        device: device of the work.
        threads: number of CPU threads. Defaults to that of torch.
        results: CSV file of the table; ``None`` to print only.
    """
    columns = ratio_of(ours, reference)
    print(f"{title}, {mode}:", {key: float(f"{value:.4g}") for key, value in columns.items()}, flush=True)
    if results is not None:
        threads = torch.get_num_threads() if threads is None else threads
        append_benchmark(results, pair=title, mode=mode, device=device, threads=threads, **columns)
