"""Rows of ``results.csv``: what the figures in the documentation are made from."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_flow.training.versions import command_line, git_commit, today

__all__ = ["BENCHMARK_COLUMNS", "RESULT_COLUMNS", "append_benchmark", "append_result"]

RESULT_COLUMNS = (
    "recipe", "task", "obs", "stage", "seed", "episodes", "success_once", "success_at_end", "return",
    "env_steps", "wall_s", "command", "commit", "date",
)  # fmt: skip
BENCHMARK_COLUMNS = (
    "pair", "mode", "device", "threads", "ours_ms", "reference_ms", "ratio", "ratio_low", "ratio_high",
    "command", "commit", "date",
)  # fmt: skip

_PROVENANCE = {"command": command_line, "commit": git_commit, "date": today}
_WHOLE = {"seed", "episodes", "env_steps", "threads"}
_RATES = {"success_once", "success_at_end"}
_AT_LEAST_ZERO = {"wall_s", "ours_ms", "reference_ms", "ratio", "ratio_low", "ratio_high"}
_MAY_BE_EMPTY = {"success_once", "success_at_end", "env_steps", "stage", "commit"}
_NUMBERS = _RATES | _AT_LEAST_ZERO | {"return"}


def append_result(path: str | Path, **columns: Any) -> None:
    """Append one learning result, a row of ``recipe, task, obs, stage, seed, episodes, ...``.

    Args:
        path: the CSV file; made with its header if it is not there.
        **columns: a value for each of :data:`RESULT_COLUMNS`; ``command``, ``commit`` and ``date`` are filled
            in if left out. ``None`` leaves a cell empty where a result has no such figure (success of a task
            without success, env steps of cloning). ``return`` is a word of Python: pass
            ``**result.result_columns()``, or ``**{"return": 1.0}``.

    Raises:
        ValueError: if a column is missing, unknown or out of range, or the file has another header.
    """
    _append(Path(path), RESULT_COLUMNS, columns)


def append_benchmark(path: str | Path, **columns: Any) -> None:
    """Append one pair of timings, a row of :data:`BENCHMARK_COLUMNS`; see :func:`append_result`."""
    _append(Path(path), BENCHMARK_COLUMNS, columns)


def _append(path: Path, header: tuple[str, ...], columns: Mapping[str, Any]) -> None:
    columns = {**{name: make() for name, make in _PROVENANCE.items() if name not in columns}, **columns}
    missing, unknown = [c for c in header if c not in columns], [c for c in columns if c not in header]
    if missing or unknown:
        raise ValueError(
            f"{path.name} has the columns {', '.join(header)}; missing: {missing or 'none'}, unknown: "
            f"{unknown or 'none'}."
        )
    row = [_cell(name, columns[name]) for name in header]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not text:
            text = ",".join(header) + "\n"
        found = next(csv.reader(io.StringIO(text)))
        if tuple(found) != header:
            raise ValueError(f"{path} has the header {found}, not {list(header)}; give another file.")
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow(row)
        _replace(path, text.rstrip("\n") + "\n" + buffer.getvalue())


def _cell(name: str, value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value == "":
        if name in _MAY_BE_EMPTY:
            return ""
        raise ValueError(f"{name} must not be empty.")
    if name in _WHOLE:
        if isinstance(value, bool) or int(value) != value or value < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}.")
        return str(int(value))
    if name in _NUMBERS:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value!r}.")
        if (name in _RATES and not 0 <= number <= 1) or (name in _AT_LEAST_ZERO and number < 0):
            raise ValueError(f"{name} must be {'in [0, 1]' if name in _RATES else 'at least 0'}, got {value!r}.")
        return f"{number:.6g}"
    return " ".join(str(value).split())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold off other programs that append to the same file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    # The directory, not the file: the file is replaced, and a lock file would be left over.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Write the file anew beside the old one and rename it, so that no reader or kill meets half a row."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
