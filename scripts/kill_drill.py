"""Kill recipes at random moments, resume them, and compare the result with an uninterrupted run.

    python scripts/kill_drill.py awsc_online --trials 20
    python scripts/kill_drill.py --trials 4 --kills 5     # 20 kills of every recipe

Every recipe runs with small sizes on the planar task or on small slates (scripts/drill_recipes.py). A trial starts the
recipe, kills it with SIGKILL at a random moment and resumes it, until the requested number of kills is reached; then it
is resumed to its end. The two runs must be equal in weights, optimisers, other states, counters, metrics and results,
except times. A kill counts if the run was not finished. Trials are added until TRIALS x KILLS kills count, at most
five times as many trials. The figures are printed as a Markdown table, a row for each recipe. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from drill_recipes import (  # noqa: E402
    DRILLED,
    PIPELINES,
    RECIPES,
    finish,
    fork,
    prepare,
    prepare_here,
    resuming,
    run_directories,
    run_here,
    run_options,
)

from torchrl_flow.figures import markdown_table  # noqa: E402
from torchrl_flow.runs import EVALUATION, load_checkpoint, read_metrics  # noqa: E402

__all__ = ["DRILLED", "RECIPES", "drill", "prepare_here", "run_here"]

TIMES = ("wall_s", "command", "commit", "date")
"""Columns of results.csv that differ between two runs."""


@dataclasses.dataclass
class Figures:
    """What a drill of one recipe found."""

    recipe: str
    wanted: int
    tried: int = 0
    killed: int = 0
    runs: int = 0
    equal: int = 0

    @property
    def good(self) -> bool:
        """Whether all kills happened and all runs are equal."""
        return self.killed >= self.wanted and self.equal == self.runs

    def row(self) -> list[str]:
        """Return the row of the table."""
        return [f"`{self.recipe}`", str(self.tried), str(self.killed), f"{self.equal} of {self.runs}"]


HEADER = ("recipe", "kills tried", "kills during the run", "runs equal")
MOST_TRIALS = 5
"""Trials at most, as a multiple of the requested ones."""


def is_finished(name: str, run: str) -> bool:
    """Return whether a run has written its last file, so that a kill cannot interrupt it any more."""
    last = "outcome.json" if name in PIPELINES else EVALUATION
    return (run_directories(name, run)[-1] / last).exists()


def trial(name: str, run: str, seconds: float, kills: int, rng: random.Random, figures: Figures) -> None:
    """Kill and resume a run until it has been killed so often or has ended by itself, and count the kills."""
    script, _, options = DRILLED[name]
    for _ in range(kills):
        pid = fork(script, run_options(run, options, *resuming(name)))
        # On average the slices add up to less than the run, so that nearly every kill hits the run.
        time.sleep(rng.uniform(0, 2 * seconds / (kills + 1)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        figures.tried += 1
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        if not killed or is_finished(name, run):
            break
        figures.killed += 1
    finish(script, run_options(run, options, *resuming(name)))


def differences_of(name: str, run: str, other: str) -> list[str]:
    """Return all differences of two runs of a recipe, with those of their stages."""
    pairs = zip(run_directories(name, run), run_directories(name, other))
    found = [part for pair in pairs for part in differences(*pair)]
    if name in PIPELINES:
        found += _unequal_results(Path("runs") / run, Path("runs") / other)
    return found


def differences(run: Path, other: Path) -> list[str]:
    """Return all differences of two runs, except times; empty if they are equal."""
    first, second = load_checkpoint(run), load_checkpoint(other)
    found: list[str] = []
    for group in ("roles", "optimizers", "states", "counters"):
        if getattr(first, group) != getattr(second, group):
            found.append(f"{group}: {getattr(first, group)} and {getattr(second, group)}")
    best = [load_checkpoint(path, which="best").step for path in (run, other)]
    if best[0] != best[1]:
        found.append(f"best step: {best[0]} and {best[1]}")
    for role in set(first.roles) & set(second.roles):
        found += _unequal(first.state_dict(role), second.state_dict(role), role)
    for name in set(first.optimizers) & set(second.optimizers):
        found += _unequal(first.optimizer_state_dict(name), second.optimizer_state_dict(name), name)
    metrics = [
        {key: value for key, value in read_metrics(path / "metrics.csv").items() if not _is_time(key)}
        for path in (run, other)
    ]
    found += _unequal(metrics[0], metrics[1], "metrics.csv")
    evaluations = [json.loads((path / EVALUATION).read_text(encoding="utf-8")) for path in (run, other)]
    found += _unequal(_timeless(evaluations[0]), _timeless(evaluations[1]), EVALUATION)
    return found + _unequal_results(run, other)


def _unequal_results(run: Path, other: Path) -> list[str]:
    tables = [_results(path.with_suffix(".csv")) for path in (run, other)]
    return [] if tables[0] == tables[1] else [f"results.csv: {tables[0]} and {tables[1]}"]


def _is_time(key: str) -> bool:
    return key.endswith(("_s", "_ms"))


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(item) for key, item in value.items() if not _is_time(key)}
    return value


def _unequal(first: Any, second: Any, name: str) -> list[str]:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [name]
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() != second.keys():
            return [f"{name}: entries {sorted(map(str, first.keys() ^ second.keys()))} in one alone"]
        return [part for key in first for part in _unequal(first[key], second[key], f"{name}.{key}")]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        return [part for i, pair in enumerate(zip(first, second)) for part in _unequal(*pair, f"{name}.{i}")]
    return [] if first == second or (first != first and second != second) else [f"{name}: {first} and {second}"]


def _results(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def drill(name: str, *, trials: int, kills: int, seed: int) -> Figures:
    """Do the trials of one recipe in the current directory, print what differs, and return the figures."""
    script, before, options = DRILLED[name]
    prepare(before)
    start = time.perf_counter()
    whole = f"{name}-whole"
    finish(script, run_options(whole, options))
    seconds, rng = time.perf_counter() - start, random.Random(seed)
    figures = Figures(name, trials * kills)
    while figures.killed < figures.wanted and figures.runs < MOST_TRIALS * trials:
        run = f"{name}-{figures.runs}"
        trial(name, run, seconds, min(kills, figures.wanted - figures.killed), rng, figures)
        unequal = differences_of(name, run, whole)
        figures.runs += 1
        figures.equal += not unequal
        if unequal:
            print(f"{run} differs: {'; '.join(unequal[:6])}", file=sys.stderr)
        for directory in run_directories(name, run):
            shutil.rmtree(directory)
    return figures


def main() -> int:
    """Parse the command line and run the drills."""
    if not hasattr(os, "fork"):
        raise SystemExit("kill_drill.py starts its runs by fork(), which this system lacks: run it on Linux or macOS.")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"which: {', '.join(DRILLED)}; all by default")
    parser.add_argument("--trials", type=int, default=3, help="runs that are killed, of each recipe")
    parser.add_argument("--kills", type=int, default=1, help="kills of each run; a run that ends before is replaced")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    unknown = [name for name in args.recipes if name not in DRILLED]
    if unknown:
        parser.error(f"there are no recipes {unknown}; there are {', '.join(DRILLED)}")
    if args.trials < 1 or args.kills < 1:
        parser.error(f"--trials and --kills must be at least 1, got {args.trials} and {args.kills}")
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory() as folder, _chdir(folder):
        print(markdown_table(HEADER, []), flush=True)
        for name in args.recipes or DRILLED:
            figures = drill(name, trials=args.trials, kills=args.kills, seed=args.seed)
            good &= figures.good
            print(markdown_table(HEADER, [figures.row()]).splitlines()[-1], flush=True)
    return 0 if good else 1


@contextlib.contextmanager
def _chdir(folder: str):  # contextlib.chdir exists since Python 3.11.
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    raise SystemExit(main())
