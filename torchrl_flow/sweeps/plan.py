"""Plan, execution through Ray, and status of many runs of one script.

Ray schedules the runs on the CPUs and GPUs of a machine or a cluster. Without Ray they run one after the other. The
state of a run is in its own files, so a restarted sweep skips finished runs and resumes stopped ones, and its progress
can be read from any process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from torchrl_flow.data.checks.json import read_object
from torchrl_flow.runs.run import EVALUATION
from torchrl_flow.util.files import write_json
from torchrl_flow.util.platform import is_alive
from torchrl_flow.util.ray_cluster import connect_ray, disconnect_ray, has_ray

RunState = Literal["waiting", "running", "finished", "crashed"]

__all__ = ["RunStatus", "SweepRun", "Variant", "gpu_share", "plan_sweep", "run_status", "run_sweep", "select_variants"]

_has_ray = has_ray()
_LOG_LINES = 5
_ORPHAN_S = 120.0
# Loaded at import, since between fork and exec little more than a system call is safe.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One configuration of a sweep."""

    name: str
    """Name of the variant."""
    category: str
    """Name of the group of variants with which it is compared."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the script that differ from the baseline's."""


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One variant with one seed: a command, and its output directory."""

    variant: Variant
    seed: int
    directory: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run, that of its directory."""
        return self.directory.name

    @property
    def log(self) -> Path:
        """File with the output of the run."""
        return self.directory.parent / "logs" / f"{self.name}.log"

    @property
    def record(self) -> Path:
        """File with the status of the run."""
        return self.directory.parent / "logs" / f"{self.name}.json"

    def shell(self) -> str:
        """Return the command, quoted for this system's shell."""
        return subprocess.list2cmdline(self.command) if sys.platform == "win32" else shlex.join(self.command)


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """State of a run of the sweep."""

    run: SweepRun
    state: RunState
    detail: str = ""
    """Last lines of the output of a crashed run."""
    wall_s: float | None = None
    """Wall time of its last execution in seconds."""


def select_variants(variants: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """Return the variants with these names or categories; all variants if none is named.

    Raises:
        ValueError: if a name is unknown. The error names those that are known.

    Examples:
        >>> found = [Variant("baseline", "baseline"), Variant("k4", "steps"), Variant("k16", "steps")]
        >>> [variant.name for variant in select_variants(found, ["steps"])]
        ['k4', 'k16']
    """
    known = {variant.name for variant in variants} | {variant.category for variant in variants}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"there are no configurations {unknown}; there are {', '.join(v.name for v in variants)}, in the "
            f"categories {', '.join(dict.fromkeys(v.category for v in variants))}."
        )
    return [v for v in variants if not names or v.name in names or v.category in names]


def plan_sweep(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    program: Sequence[str],
    directory: str | Path,
    options: Mapping[str, Any] | None = None,
) -> list[SweepRun]:
    """Return the runs of every variant with every seed, ordered by seed, so that variants can be compared early.

    The script must take ``--runs``, ``--name``, ``--seed``, ``--label`` and ``--resume``, and end with
    :func:`~torchrl_flow.reports.conclude`, whose files mark the run as finished.

    Args:
        variants: configurations.
        seeds: seeds of each configuration.
        program: the script's command without options, such as ``["python", "examples/reinflow.py"]``.
        directory: directory of the sweep; that of a run is ``directory/<variant>-<seed>``.
        options: options of all runs; the options of a variant follow them. ``None`` omits an option; a sequence becomes
            several words.

    Raises:
        ValueError: if there is nothing to run or a name occurs twice.
    """
    if not variants or not seeds:
        raise ValueError("a sweep needs at least one configuration and one seed.")
    if len({v.name for v in variants}) < len(variants) or len(set(seeds)) < len(seeds):
        raise ValueError("each configuration and each seed may come once.")
    runs, root = [], Path(directory)
    for seed in seeds:
        for variant in variants:
            own = {"runs": root, "name": f"{variant.name}-{seed}", "label": variant.name, "seed": seed}
            given = {**(options or {}), **variant.options, **own, "resume": True}
            command = (*program, *(word for name, value in given.items() for word in _option(name, value)))
            runs.append(SweepRun(variant, seed, root / f"{variant.name}-{seed}", command))
    return runs


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [flag, *map(str, values)]


def gpu_share(device: str, workers: int | None = None) -> float:
    """Return the GPU share of each run such that all workers fit; Ray hides GPUs from runs without a share.

    Args:
        device: device of the runs; ``"auto"`` is a GPU if there is one.
        workers: runs at a time. Defaults to the number of CPUs.

    Examples:
        >>> gpu_share("cpu")
        0.0
    """
    if device != "auto" and not device.startswith("cuda"):
        return 0.0
    return min(1.0, torch.cuda.device_count() / (workers or os.cpu_count() or 1))


def run_status(run: SweepRun) -> RunStatus:
    """Read the status of a run from its files."""
    record: dict[str, Any] = {}
    if run.record.exists():
        record = read_object(run.record)
    wall_s = record.get("wall_s")
    if (run.directory / EVALUATION).exists():
        return RunStatus(run, "finished", wall_s=wall_s)
    if record.get("returncode") is not None:
        return RunStatus(run, "crashed", f"exit status {record['returncode']}: {_tail(run.log)}", wall_s)
    if record and _is_alive(record):
        return RunStatus(run, "running", wall_s=time.time() - record["started"])
    return RunStatus(run, "crashed", "killed", wall_s) if record else RunStatus(run, "waiting")


def _runs_here(run: SweepRun) -> bool:
    if not run.record.exists():
        return False
    record = read_object(run.record)
    return "returncode" not in record and record["host"] == platform.node() and _is_alive(record)


def _await_orphan(run: SweepRun) -> None:
    """Wait until a run whose sweep was killed has finished its step and saved; it ends with its sweep.

    Raises:
        RuntimeError: if it does not end.
    """
    deadline = time.monotonic() + _ORPHAN_S
    while _runs_here(run):
        parent = read_object(run.record).get("parent")
        if parent is None or is_alive(parent):
            return  # the run of another sweep
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{run.directory} is still at work, {_ORPHAN_S:.0f} s after its sweep has ended: stop its process, "
                f"{read_object(run.record)['pid']}, and start again."
            )
        time.sleep(0.1)


def _is_alive(record: Mapping[str, Any]) -> bool:
    if record["host"] != platform.node():
        return True  # Processes of another machine cannot be queried.
    return is_alive(record["pid"])


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-_LOG_LINES:])


def _die_with_parent() -> None:
    """Make the kernel end this process when its parent ends, so that no run continues after its sweep."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)


def _execute(run: SweepRun, threads: int) -> int:
    """Run the command to its end, with its output in the log; return its exit status."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "Agg"}
    start = time.time()
    with run.log.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            run.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Only Linux has this call. Elsewhere a run continues after its sweep was killed, and the next sweep skips
            # it.
            preexec_fn=None if _LIBC is None else _die_with_parent,
        )
        record = {
            "pid": process.pid,
            "parent": os.getpid(),
            "host": platform.node(),
            "started": start,
            "command": run.shell(),
        }
        write_json(run.record, record)
        returncode = process.wait()
    write_json(run.record, {**record, "returncode": returncode, "wall_s": time.time() - start})
    return returncode


def run_sweep(
    runs: Sequence[SweepRun],
    *,
    workers: int | None = None,
    cpus_per_run: int = 1,
    gpus_per_run: float | None = 0.0,
    device: str = "cpu",
    address: str | None = None,
    on_change: Callable[[list[RunStatus]], None] | None = None,
    poll_s: float = 2.0,
) -> list[RunStatus]:
    """Run the unfinished runs, several at a time; a run that crashes does not stop the others.

    Runs of another sweep on this machine are skipped.

    Args:
        runs: runs of :func:`plan_sweep`.
        workers: runs at a time on this machine. Defaults to the number that its CPUs allow. Ignored on a cluster.
        cpus_per_run: CPUs, and threads, of a run.
        gpus_per_run: GPUs of a run, which may be a fraction. Defaults to the share of :func:`gpu_share`.
        device: device of the runs, for the share of a GPU.
        address: address of a Ray cluster, which must have access to this directory. Defaults to None: this machine
            only.
        on_change: function called with the state of every run at the start, every ``poll_s`` seconds and at the end.
        poll_s: seconds between two calls of ``on_change``.

    Returns:
        The status of each run, in their order.
    """
    show = on_change or (lambda statuses: None)
    gpus_per_run = gpu_share(device, workers) if gpus_per_run is None else gpus_per_run
    for run in runs:
        _await_orphan(run)
    todo = [run for run in runs if run_status(run).state != "finished" and not _runs_here(run)]
    for run in todo:
        run.record.unlink(missing_ok=True)
    show([run_status(run) for run in runs])
    if todo and _has_ray:
        _run_with_ray(todo, lambda: show([run_status(run) for run in runs]), workers, cpus_per_run, gpus_per_run,
                      address, poll_s)  # fmt: skip
    elif address is not None:
        raise RuntimeError(f"address={address!r} needs ray: pip install 'torchrl-flow[sweep]'.")
    else:
        for run in todo:
            _execute(run, cpus_per_run)
            show([run_status(run) for run in runs])
    return [run_status(run) for run in runs]


def _run_with_ray(
    todo: Sequence[SweepRun],
    show: Callable[[], None],
    workers: int | None,
    cpus: int,
    gpus: float,
    address: str | None,
    poll_s: float,
) -> None:
    import ray

    connected = connect_ray(address, None if workers is None else workers * cpus)
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_execute)
        waiting = [remote.remote(run, cpus) for run in todo]  # pyright: ignore[reportAttributeAccessIssue]
        while waiting:
            # A worker that dies leaves no exit status: its run counts as killed, and the others continue.
            _, waiting = ray.wait(waiting, timeout=poll_s)
            show()
    finally:
        if connected:
            disconnect_ray()
