"""Alternating timings of several forms of one computation in one process, and counts of its arithmetic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Form = Callable[[], Any]
"""Function that performs the computation once."""

__all__ = ["Form", "alternate", "count_flops", "gemm_rate", "num_parameters", "ratio_of"]


def clock_of(device: torch.device | str) -> Form:
    """Return a clock in seconds: this thread's CPU time on a CPU with one thread, otherwise wall time.

    On a GPU the clock waits for the device's work. Other programs disturb CPU time less than wall time.
    """
    if torch.device(device).type == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        return synchronized
    # On a CPU, a backward pass runs in the calling thread.
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def alternate(
    forms: Mapping[str, Form], *, rounds: int, repeats: int = 1, warmup: int = 3, device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """Time forms in the order A B A B ..., so that a slowdown of the machine affects all of them.

    Args:
        forms: by name.
        rounds: measurements of each form.
        repeats: calls of a form per measurement.
        warmup: discarded measurements at the start.
        device: device of the computation.

    Returns:
        milliseconds per call, ``[form][round]``.

    Examples:
        >>> times = alternate({"a": lambda: None, "b": lambda: None}, rounds=2)
        >>> [len(values) for values in times.values()]
        [2, 2]
    """
    clock = clock_of(device)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(warmup + rounds):
        for name, form in forms.items():
            start = clock()
            for _ in range(repeats):
                form()
            times[name].append(1e3 * (clock() - start) / repeats)
    return {name: values[warmup:] for name, values in times.items()}


def ratio_of(ours: list[float], reference: list[float]) -> dict[str, float]:
    """Return the table columns of two timings: medians, and the median ratio of adjacent measurements with quartiles.

    Examples:
        >>> ratio_of([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])["ratio"]
        0.5
    """
    ratios = [a / b for a, b in zip(ours, reference)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    medians = {"ours_ms": statistics.median(ours), "reference_ms": statistics.median(reference)}
    return {**medians, "ratio": ratio, "ratio_low": low, "ratio_high": high}


def gemm_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, size: int = 256, rounds: int = 50
) -> float:
    """Return the multiplications and additions per second of matrix products ``[size, size]``, from their median time.

    Examples:
        >>> gemm_rate(size=16, rounds=3) > 0
        True
    """
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    times = alternate({"product": lambda: left @ right}, rounds=rounds, repeats=10, device=device)["product"]
    return 2 * size**3 / (1e-3 * statistics.median(times))


def count_flops(form: Form) -> int:
    """Count the multiplications and additions of a form's matrix products, backward passes included.

    Examples:
        >>> count_flops(lambda: torch.zeros(2, 3) @ torch.zeros(3, 4))
        48
    """
    with _ProductCounter() as counter:
        form()
    return counter.flops


class _ProductCounter(TorchDispatchMode):
    """Counter like PyTorch's FLOP counter, which fails on modules with TensorDictParams."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def num_parameters(tensors: Iterable[torch.Tensor]) -> int:
    """Return the number of trained values; each tensor is counted once.

    Examples:
        >>> num_parameters([torch.zeros(2, 3, requires_grad=True), torch.zeros(4)])
        6
    """
    return sum(one.numel() for one in {id(one): one for one in tensors}.values() if one.requires_grad)
