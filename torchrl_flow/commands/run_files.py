"""Reader of a run's files without torch: settings, progress and evaluation results."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.util.files import csv_rows
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["RunFiles", "find_runs", "format_age", "read_run", "require_runs", "text_table"]

_TAIL = 1 << 16
"""Number of bytes at the end of metrics.csv that are read for the last values; a step logs a few hundred."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """One run, as read from its directory; a field is ``None`` or empty if no file has it."""

    directory: Path
    config: Mapping[str, Any]
    recipe: str
    task: str
    step: int | None
    """Last step that was logged."""
    last: Mapping[str, float]
    """Last values of the metrics that were logged near the end."""
    evaluations: Mapping[str, Mapping[str, float]] | None
    """Results in ``evaluation.json`` by label; ``None`` if the run was not evaluated."""
    changed: float
    """Time of the last change, in seconds since 1970."""
    problem: str = ""
    """File that cannot be read, and the reason."""

    @property
    def name(self) -> str:
        """Name of the run, that of its directory."""
        return self.directory.resolve().name

    @property
    def label(self) -> str:
        """Label of the run's variant."""
        return str(self.config.get("label") or "")

    @property
    def seed(self) -> int | None:
        """Seed of training."""
        return self.config.get("seed")

    @property
    def state(self) -> str:
        """``evaluated``, ``not finished``, or ``unreadable``."""
        if self.problem:
            return "unreadable"
        return "not finished" if self.evaluations is None else "evaluated"

    @property
    def own(self) -> Mapping[str, float]:
        """Results of the policy at its own number of sampling steps; training results if it was not evaluated."""
        if self.evaluations:
            own = str(self.config.get("num_steps"))
            by_steps = {label: figures for label, figures in self.evaluations.items() if label.isdigit()}
            if by_steps:
                return by_steps.get(own) or by_steps[max(by_steps, key=int)]
            return next(iter(self.evaluations.values()))
        names = ("success_once", "success_at_end", "return")
        return {name: self.last[f"eval/{name}"] for name in names if f"eval/{name}" in self.last}


def read_run(directory: str | Path) -> RunFiles:
    """Read the files of a run; :attr:`RunFiles.problem` names a damaged one."""
    folder, problems = Path(directory), []

    def read(name: str, kind: type, default: Any) -> Any:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            if not isinstance(found, kind):
                raise ValueError(f"it holds a {type(found).__name__}")
            return found
        except FileNotFoundError:
            return default
        except (OSError, ValueError) as error:
            problems.append(f"{folder / name}: {error}")
            return default

    config = read("config.json", dict, {})
    found = read("evaluation.json", dict, None)
    starts = [start for start in read("provenance.json", list, []) if isinstance(start, dict)]
    first = starts[0] if starts else {}
    step, last = _last_metrics(folder / "metrics.csv")
    return RunFiles(
        directory=folder,
        config=config,
        recipe=_recipe(config, starts),
        task=_task(config, first, folder),
        step=step,
        last=last,
        evaluations=None if found is None else _evaluations(found),
        changed=max((file.stat().st_mtime for file in _dated(folder)), default=0.0),
        problem="; ".join(problems),
    )


def _dated(folder: Path) -> list[Path]:
    names = ("config.json", "metrics.csv", "evaluation.json")
    return [folder / name for name in names if (folder / name).exists()]


def _recipe(config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> str:
    for start in starts:
        if start.get("recipe"):
            return str(start["recipe"])
        # Older runs do not record the recipe: it is read from the command.
        found = re.search(r"(\w+)\.py\b|\brun (\w+)", str(start.get("command", "")))
        if found:
            return found[1] or found[2]
    return str(config.get("recipe") or "")


def _task(config: Mapping[str, Any], start: Mapping[str, Any], folder: Path) -> str:
    for value in (start.get("task"), config.get("task"), config.get("env"), config.get("data")):
        if value:
            return str(value)
    found = re.search(r"<title>[^<]* on ([^<]*)</title>", _head(folder / "report.html"))
    return found[1].strip() if found else ""


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(2048)
    except OSError:
        return ""


def _evaluations(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return results by label; offline baselines write returns by name, with a standard error for the recipe's own."""
    nested = {label: figures for label, figures in found.items() if isinstance(figures, dict)}
    if nested:
        return nested
    end = "_standard_error"
    own = next((name.removesuffix(end) for name in found if name.endswith(end)), None)
    return {} if own is None else {own: {"return": found[own], "return_standard_error": found[own + end]}}


def _last_metrics(path: Path) -> tuple[int | None, dict[str, float]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return None, {}
    step, last = None, {}
    # The first line may be cut off, and the last one incomplete.
    for line in lines[:-1]:
        try:
            (row,) = csv_rows([line], path)
            number, name, value = int(row[0]), row[1], float(row[2])
        except (IndexError, ValueError):
            continue
        step, last[name] = number, value
    return step, last


def find_runs(root: str | Path) -> list[RunFiles]:
    """Read all runs in a directory and its subdirectories, sorted by path; the directory itself may be a run."""
    found = []
    for folder, below, files in os.walk(root):
        below.sort()
        if "config.json" in files and ("metrics.csv" in files or "provenance.json" in files):
            found.append(read_run(folder))
            below.clear()
    return found


def require_runs(names: Sequence[str]) -> list[RunFiles]:
    """Read the named runs, and the runs in named directories that are not runs; each run once.

    Files are skipped, since `runs/*` also names the table of results.

    Raises:
        SystemExit: if a directory does not exist or holds no run. The error lists similar names.
    """
    found: dict[Path, RunFiles] = {}
    folders = any(Path(name).is_dir() for name in names)
    for name in names:
        path = Path(name)
        if folders and path.is_file():
            continue
        # A name without a directory is searched in the default directory of runs.
        if not path.exists() and len(path.parts) == 1 and (Path("runs") / path).is_dir():
            path = Path("runs") / path
        runs = find_runs(path) if path.is_dir() else []
        if not runs:
            near = path.parent if path.parent.is_dir() else Path()
            beside = [str(entry) for entry in near.iterdir() if entry.is_dir()]
            what = "holds no run (no config.json and metrics.csv)" if path.exists() else "does not exist"
            hint = "" if path.exists() else did_you_mean(str(path), beside)
            raise SystemExit(f"{path} {what}: name the directory of a run.{hint}")
        for run in runs:
            found.setdefault(run.directory.resolve(), run)
    return list(found.values())


def format_age(seconds: float) -> str:
    """Return a duration in its largest suitable unit.

    Examples:
        >>> format_age(30), format_age(200), format_age(7300), format_age(2e5)
        ('30 s', '3 min', '2 h', '2 d')
    """
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def age(run: RunFiles, now: float | None = None) -> str:
    """Return the time since a run was last written."""
    return format_age((time.time() if now is None else now) - run.changed)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as aligned columns for a terminal.

    Examples:
        >>> print(text_table(["run", "steps"], [["a-long-name", "10"]]))
        run          steps
        a-long-name  10
    """
    lines = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
