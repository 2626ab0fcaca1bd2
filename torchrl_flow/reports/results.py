"""Rows of ``results.csv``, the source of the results in the documentation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_flow.data.checks.json import read_object
from torchrl_flow.util.files import csv_rows, read_text, write_json, write_text
from torchrl_flow.util.platform import locked
from torchrl_flow.util.versions import command_line, git_commit, today

__all__ = ["BENCHMARK_COLUMNS", "RESULT_COLUMNS", "append_benchmark", "append_result", "record_results"]

RESULT_COLUMNS = (
    "recipe", "task", "obs", "stage", "seed", "episodes", "success_once", "success_at_end", "return",
    "env_steps", "wall_s", "command", "commit", "date",
)  # fmt: skip
"""Columns of ``results.csv``."""
BENCHMARK_COLUMNS = (
    "pair", "mode", "device", "threads", "ours_ms", "reference_ms", "ratio", "ratio_low", "ratio_high",
    "command", "commit", "date",
)  # fmt: skip
"""Columns of ``benchmarks/results.csv``."""

RESULT_ROWS = "result_rows.json"
"""File of a run that stores its rows of results.csv, by stage."""

_PROVENANCE = {"command": command_line, "commit": git_commit, "date": today}
_WHOLE = {"seed", "episodes", "env_steps", "threads"}
_RATES = {"success_once", "success_at_end"}
_AT_LEAST_ZERO = {"wall_s", "ours_ms", "reference_ms", "ratio", "ratio_low", "ratio_high"}
_MAY_BE_EMPTY = {"success_once", "success_at_end", "env_steps", "stage", "commit"}
_NUMBERS = _RATES | _AT_LEAST_ZERO | {"return"}


def append_result(path: str | Path, **columns: Any) -> None:
    """Append one learning result, a row of ``recipe, task, obs, stage, seed, episodes, ...``.

    Args:
        path: CSV file; it is created with its header if it is missing.
        **columns: value of each of :data:`RESULT_COLUMNS`; ``command``, ``commit`` and ``date`` are filled in if they
            are missing. ``None`` leaves a cell empty (success of a task without success, env steps of behaviour
            cloning). ``return`` is a keyword of Python: pass ``**result.result_columns()``, or ``**{"return": 1.0}``.

    Raises:
        ValueError: if a column is missing, unknown or out of range, or the file has another header.
    """
    path = Path(path)
    with _table(path, RESULT_COLUMNS) as lines:
        lines.append(_line(path, RESULT_COLUMNS, columns))


def record_results(path: str | Path, rows: Sequence[Mapping[str, Any]], *, directory: str | Path) -> None:
    """Write the results of one run; each replaces the run's earlier row of the same stage.

    Therefore a run that is evaluated again, resumed after its end, or killed between two files never has two rows of
    one stage. Its rows are stored in ``directory/result_rows.json`` before the table is changed. Rows of other runs are
    not changed.

    Args:
        path: CSV file; it is created with its header if it is missing.
        rows: columns of each result, see :func:`append_result`; each stage may occur once.
        directory: directory of the run.

    Raises:
        ValueError: if a column is missing, unknown or out of range, the file has another header, or two rows have the
            same stage.
    """
    path, memory = Path(path), Path(directory) / RESULT_ROWS
    written = {str(row.get("stage") or ""): _line(path, RESULT_COLUMNS, row) for row in rows}
    if len(written) < len(rows):
        raise ValueError(f"rows must be of different stages, got {[row.get('stage') for row in rows]}.")
    with _table(path, RESULT_COLUMNS) as lines:
        known = _remembered(memory)
        for stage, line in written.items():
            before = known.setdefault(stage, [])
            places = [lines.index(old) for old in dict.fromkeys(before) if old in lines]
            if line not in before:
                before.append(line)
            place = min(places, default=len(lines))
            lines[:] = [old for i, old in enumerate(lines) if i not in places]
            lines.insert(place, line)
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known)


def _remembered(memory: Path) -> dict[str, list[str]]:
    """Return the rows that a run has written, by stage."""
    known = read_object(memory) if memory.exists() else {}
    for stage, lines in known.items():
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"{memory} is damaged: {stage!r} must have a list of rows. Remove it.")
    return known


def append_benchmark(path: str | Path, **columns: Any) -> None:
    """Append one pair of timings, with the columns of :data:`BENCHMARK_COLUMNS`; see :func:`append_result`."""
    path = Path(path)
    with _table(path, BENCHMARK_COLUMNS) as lines:
        lines.append(_line(path, BENCHMARK_COLUMNS, columns))


def _line(path: Path, header: tuple[str, ...], columns: Mapping[str, Any]) -> str:
    """Check a row of the table, and return it as text."""
    columns = {**{name: make() for name, make in _PROVENANCE.items() if name not in columns}, **columns}
    missing, unknown = [c for c in header if c not in columns], [c for c in columns if c not in header]
    if missing or unknown:
        raise ValueError(
            f"{path.name} has the columns {', '.join(header)}; missing: {missing or 'none'}, unknown: "
            f"{unknown or 'none'}."
        )
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow([_cell(name, columns[name]) for name in header])
    return buffer.getvalue()


@contextmanager
def _table(path: Path, header: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the lines of a table for changes, then write it atomically; other processes wait meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        text = read_text(path) if path.exists() else ""
        first, *lines = text.rstrip("\n").split("\n") if text else [",".join(header)]
        found = next(csv_rows([first], path), [])
        if tuple(found) != header:
            raise ValueError(f"{path} has the header {found}, not {list(header)}; give another file.")
        yield lines
        write_text(path, "\n".join([first, *lines]) + "\n")


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
