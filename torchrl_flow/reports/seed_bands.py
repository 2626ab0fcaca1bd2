"""Groups of runs that differ only in their seed, and the mean and spread of their curves."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrl_flow.data.checks.json import read_json, read_object
from torchrl_flow.runs.fields import AFTER_TRAINING, BOOKKEEPING

__all__ = ["SeedBand", "group_by_seed", "run_labels_of", "seed_band"]

Curve = tuple[Sequence[float], Sequence[float]]
#: Fields that may differ between the runs of one configuration, since they do not affect training.
_APART = frozenset({"seed", "threads", "progress", *AFTER_TRAINING, *BOOKKEEPING})
_MOST_STAGES = 8


class SeedBand(NamedTuple):
    """Mean of several curves, and the mean plus and minus one standard deviation."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def seed_band(curves: Sequence[Curve]) -> SeedBand:
    """Return the mean and the sample standard deviation (n - 1) of curves over their common range of x.

    Curves with equal x values are averaged point by point. Others are interpolated to the x values of all curves, from
    the largest first x value to the smallest last one.

    Args:
        curves: x and y values of each, x increasing.

    Raises:
        ValueError: if there is no curve.

    Examples:
        >>> seed_band([([0, 10], [0.0, 0.4]), ([0, 10], [0.2, 0.6])]).mean
        [0.1, 0.5]
    """
    if not curves:
        raise ValueError("a band needs at least one curve.")
    whole = [(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in curves]
    if any(len(x) == 0 for x, _ in whole):
        return SeedBand([], [], [], [])
    places = [x for x, _ in whole]
    if all(np.array_equal(places[0], x) for x in places):
        grid, heights = places[0], np.stack([y for _, y in whole])
    else:
        grid = np.unique(np.concatenate(places))
        grid = grid[(grid >= max(x[0] for x in places)) & (grid <= min(x[-1] for x in places))]
        heights = np.stack([np.interp(grid, x, y) for x, y in whole])
    mean = heights.mean(0)
    spread = heights.std(0, ddof=1) if len(whole) > 1 else np.zeros_like(mean)
    return SeedBand(grid.tolist(), mean.tolist(), (mean - spread).tolist(), (mean + spread).tolist())


def group_by_seed(runs: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Group the directories of runs that differ only in their seed, by a label for each group.

    Runs are compared by the recipe and by every configuration field that affects training. A field that names an
    earlier run, such as the initial policy, counts as equal if those runs differ only in their seed. Two runs with the
    same seed are never in one group; a run without ``config.json`` is a group by itself.

    Args:
        runs: directories of runs.

    Returns:
        ``{label: directories}`` in the order of first appearance.

    Raises:
        ValueError: if a run is named twice.
    """
    folders = [Path(run) for run in runs]
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for i, folder in enumerate(folders) if resolved[i] in resolved[:i]]
    if twice:
        raise ValueError(f"each run may be named once; named again: {', '.join(twice)}.")
    names = run_labels_of(folders)
    groups: dict[str, list[int]] = {}
    for i, folder in enumerate(folders):
        groups.setdefault(_identity(folder, _MOST_STAGES) or f"alone {i}", []).append(i)
    labelled: dict[str, list[Path]] = {}
    for members in groups.values():
        seeds = {_config(folders[i]).get("seed") for i in members}
        parts = [members] if len(seeds) == len(members) else [[i] for i in members]
        for part in parts:
            label = names[part[0]]
            if len(part) > 1:
                own = [_config(folders[i])["seed"] for i in part]
                label = f"{_common([names[i] for i in part], own)} ({len(part)} seeds)"
            if label in labelled:
                label = f"{label}, from {names[part[0]]}"
            labelled[label] = [folders[i] for i in part]
    return labelled


def run_labels_of(folders: Sequence[str | Path]) -> list[str]:
    """Return a unique name for each directory: its own name, preceded by as many parents as needed.

    Examples:
        >>> run_labels_of(["runs/a/online", "runs/b/online", "runs/bc"])
        ['a/online', 'b/online', 'bc']
    """
    parts = [Path(folder).resolve().parts for folder in folders]
    labels = []
    for own in parts:
        # A directory that is named twice cannot have a unique name.
        others = [other for other in parts if other != own]
        depth = next(n for n in range(1, len(own) + 1) if n == len(own) or all(o[-n:] != own[-n:] for o in others))
        labels.append("/".join(own[-depth:]))
    return labels


def _common(names: Sequence[str], seeds: Sequence[Any]) -> str:
    """Return the common name of runs without their seeds; the first name if the names differ otherwise."""
    left = {
        re.sub(rf"[-_ /]?(seed)?[-_ =]?(?<!\d){re.escape(str(seed))}(?!\d)", "", name, count=1)
        if name.count(str(seed)) == 1
        else name.removesuffix(str(seed))
        for name, seed in zip(names, seeds)
    }
    shared = left.pop().strip("-_ /") if len(left) == 1 else ""
    return shared or names[0]


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_object(file) if file.is_file() else {}


def _identity(folder: Path, depth: int) -> str | None:
    """Return the common identity of a group's runs as text; None for a directory that is not a run."""
    config = _config(folder)
    if "seed" not in config:
        return None
    own = {name: _without_seed(value, depth) for name, value in config.items() if name not in _APART}
    return json.dumps([_recipe(folder), own], sort_keys=True)


def _without_seed(value: Any, depth: int) -> Any:
    """Return a value of a configuration; the path of an earlier run is replaced by the identity of that run."""
    if not isinstance(value, str) or not value or depth == 0:
        return value
    path = Path(value)
    for folder in (path, *list(path.parents)[:2]):
        if (folder / "config.json").is_file():
            earlier = _identity(folder, depth - 1)
            return value if earlier is None else ["run", earlier]
    return value


def _recipe(folder: Path) -> str:
    """Return the name of the recipe, from the run or from the command that started it."""
    file = folder / "provenance.json"
    starts: Any = read_json(file) if file.is_file() else []
    first: Mapping[str, Any] = starts[0] if isinstance(starts, list) and starts and isinstance(starts[0], dict) else {}
    if first.get("recipe"):
        return str(first["recipe"])
    words = str(first.get("command", ""))
    try:
        split = shlex.split(words)
    except ValueError:
        return words
    script = next((word for word in split if word.endswith(".py")), None)
    if script is not None:
        return Path(script).stem
    return split[split.index("run") + 1] if "run" in split[:-1] else " ".join(split[:3])
