"""Kill recipes at random moments, resume them, and compare the result with an uninterrupted run.

    python scripts/kill_drill.py awsc_online --trials 20
    python scripts/kill_drill.py --trials 3          # every recipe

Every recipe runs with small sizes on the planar task or on small slates. A trial starts the recipe, kills it with
SIGKILL at a random moment and resumes it, until the requested number of kills is reached; then it is resumed to its
end. The two runs must be equal in weights, optimisers, other states, counters, metrics and results, except times. The
processes are forked from this one, so that they do not import torch again. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
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
import tyro

ROOT = Path(__file__).resolve().parents[1]
for folder in (str(ROOT / "examples"), str(ROOT)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from torchrl_flow.runs import EVALUATION, load_checkpoint, read_metrics  # noqa: E402

TIMES = ("wall_s", "command", "commit", "date")
"""Columns of results.csv that differ between two runs."""
SMALL = ("--eval-episodes", "6", "--save-every", "2", "--num-videos", "0")
BC = (
    *("--task", "planar", "--num-demos", "10", "--width", "16", "--depth", "1", "--pred-horizon", "8"),
    *("--act-horizon", "4", "--batch-size", "16", "--compare-steps", "1", "--iterations", "40", "--eval-every", "15"),
)
AW = ("--policy", "runs/bc", "--num-qs", "2", "--critic-hidden", "16", "--batch-size", "16", "--critic-warmup", "10")
DSRL = ("--policy", "runs/bc", "--hidden-sizes", "16", "16")
ONLINE = ("--num-envs", "4", "--rollout", "4", "--iterations", "10", "--eval-every", "4")
SAC = (*DSRL, *ONLINE, "--batch-size", "16", "--warm-up", "1", "--policy-delay", "2", "--utd", "0.5")
CRITIC = ("--batch-size", "16", "--critic-iterations", "10", "--iterations", "10")
LOGGED = ("--data", "data/slates.npz", "--iterations", "40", "--save-every", "10", "--eval-episodes", "8")
BASELINE = (*LOGGED, "--batch-size", "16", "--hidden-sizes", "16", "--eval-every", "15")

RECIPES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # name: (script, prerequisite recipes, options)
    "bc": ("shortcut_flow_bc", (), (*BC, *SMALL)),
    # A policy that solves some episodes.
    "expert": (
        "shortcut_flow_bc",
        (),
        (
            *("--task", "planar", "--quality", "expert", "--num-demos", "60", "--width", "96", "--depth", "2"),
            *("--iterations", "400", "--compare-steps", "1", "--eval-every", "0", *SMALL[:2], *SMALL[4:]),
        ),
    ),
    "offline": (
        "aw_shortcut_flow_offline",
        ("bc",),
        (*AW, *SMALL, "--iterations", "20", "--eval-every", "12"),
    ),
    "awsc_online": (
        "awsc_online",
        ("bc", "offline"),
        (
            *("--policy", "runs/offline", "--chunks", "64", "--num-envs", "4", "--batch-size", "16"),
            *("--eval-every", "5", *SMALL),
        ),
    ),
    "awsc_rounds": (
        "awsc_rounds",
        ("expert",),
        (
            *(
                "--policy",
                "runs/expert",
                "--rounds",
                "2",
                "--episodes",
                "20",
                "--iterations",
                "10",
                "--batch-size",
                "16",
            ),
            *("--batch-size", "16", "--eval-every", "1", *SMALL),
        ),
    ),
    "dsrl_offline": ("dsrl_offline", ("bc",), (*DSRL, *CRITIC, *SMALL)),
    "dsrl_ppo": ("dsrl_ppo", ("bc",), (*DSRL, *ONLINE, "--minibatch", "8", "--epochs", "2", *SMALL)),
    "dsrl_sac_offline": (
        "dsrl_sac_offline",
        ("bc",),
        (*DSRL, *CRITIC, "--distill-iterations", "6", "--aliasing", "retrieval", *SMALL),
    ),
    "dsrl_sac": ("dsrl_sac_online", ("bc",), (*SAC, *SMALL)),
    "dsrl_na": ("dsrl_sac_online", ("bc",), (*SAC, "--na", "--aliasing", "retrieval", *SMALL)),
    "reinflow": (
        "reinflow",
        ("bc",),
        (
            *("--policy", "runs/bc", "--num-envs", "4", "--rollout-steps", "4", "--minibatch-size", "8"),
            *("--epochs", "2", "--num-steps", "2", "--total-env-steps", "640", "--critic-warmup-steps", "128"),
            *("--eval-every", "4", *SMALL),
        ),
    ),
    "td3_bc": ("td3_bc", ("slates",), BASELINE),
    "cql": ("cql", ("slates",), BASELINE),
    "iql": ("iql", ("slates",), BASELINE),
    "flow_bc_slates": ("flow_bc_slates", ("slates",), LOGGED),
    "aw_flow_slates": ("aw_flow_slates", ("slates",), LOGGED),
    "return_flow_slates": ("return_flow_slates", ("slates",), LOGGED),
    "sac_slates": (
        "sac_slates",
        ("slates",),
        (
            *("--num-envs", "4", "--iterations", "10", "--updates", "2", "--batch-size", "16", "--hidden-sizes", "16"),
            *("--eval-every", "4", "--eval-episodes", "8", "--save-every", "2"),
        ),
    ),
}


def run_recipe(script: str, options: list[str]) -> None:
    """Run a recipe in this process, with its output in ``log.txt``."""
    with Path("log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        module = importlib.import_module(script)
        sys.argv = [f"{script}.py", *options]
        module.main(tyro.cli(module.Args, args=options))


def fork(script: str, options: list[str]) -> int:
    """Start a recipe in a separate process; return the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        run_recipe(script, options)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(script: str, options: list[str]) -> None:
    """Run a recipe to its end.

    Raises:
        RuntimeError: if it fails.
    """
    _, status = os.waitpid(fork(script, options), 0)
    if status:
        tail = Path("log.txt").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{script} {' '.join(options)} failed:\n{tail}")


def run_options(name: str, options: tuple[str, ...], *more: str) -> list[str]:
    """Return the options of a run of this name, with a separate table of results."""
    return [*options, "--name", name, "--results", f"runs/{name}.csv", *more]


def run_here(name: str, run: str, *more: str) -> None:
    """Run a recipe in this process, under the name of a run."""
    script, _, options = RECIPES[name]
    module = importlib.import_module(script)
    module.main(tyro.cli(module.Args, args=run_options(run, options, *more)))


def prepare_here(name: str) -> None:
    """Run the missing prerequisites of a recipe in this process."""
    for before in RECIPES[name][1]:
        if before == "slates" and not Path("data/slates.npz").exists():
            make_slates_here()
        elif before != "slates" and not (Path("runs") / before / EVALUATION).exists():
            prepare_here(before)
            run_here(before, before)


def make_slates_here() -> None:
    """Make small models and a log of slates."""
    from torchrl_flow.recsys import CollectSlatesArgs, SlateModelsArgs

    SlateModelsArgs(num_items=60, episodes=32, belief_updates=4, ranker_updates=8)()
    CollectSlatesArgs(steps=2000, num_envs=10, output="data/slates.npz")()


def make_slates() -> None:
    """Make small models and a log of slates, once, in a separate process."""
    pid = os.fork()
    if not pid:
        with Path("log.txt").open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            make_slates_here()
            os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"no slates:\n{Path('log.txt').read_text(encoding='utf-8')[-2000:]}")


def prepare(names: tuple[str, ...]) -> None:
    """Run the missing prerequisites of a recipe."""
    for name in names:
        if name == "slates":
            if not Path("data/slates.npz").exists():
                make_slates()
            continue
        script, before, options = RECIPES[name]
        prepare(before)
        if not (Path("runs") / name / EVALUATION).exists():
            finish(script, run_options(name, options, "--resume"))


def trial(script: str, options: tuple[str, ...], name: str, seconds: float, kills: int, rng: random.Random) -> int:
    """Kill and resume a run; return the number of kills before it ended by itself."""
    done = 0
    for _ in range(kills):
        pid = fork(script, run_options(name, options, "--resume"))
        # On average the slices add up to less than the run, so that nearly every kill hits the run.
        time.sleep(rng.uniform(0, 2 * seconds / (kills + 1)))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        done += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    finish(script, run_options(name, options, "--resume"))
    return done


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
    tables = [_results(path.with_suffix(".csv")) for path in (run, other)]
    if tables[0] != tables[1]:
        found.append(f"results.csv: {tables[0]} and {tables[1]}")
    return found


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


def drill(name: str, *, trials: int, kills: int, seed: int) -> bool:
    """Do the trials of one recipe in the current directory, print a line each, and return whether all were equal."""
    script, before, options = RECIPES[name]
    prepare(before)
    start = time.perf_counter()
    whole = f"{name}-whole"
    finish(script, run_options(whole, options))
    seconds, rng, equal, killed = time.perf_counter() - start, random.Random(seed), 0, 0
    for number in range(trials):
        run = f"{name}-{number}"
        killed += trial(script, options, run, seconds, kills, rng)
        unequal = differences(Path("runs") / run, Path("runs") / whole)
        equal += not unequal
        if unequal:
            print(f"  {run} differs: {'; '.join(unequal[:6])}")
        shutil.rmtree(Path("runs") / run)
    print(f"{name:18} {killed:3} kills, {equal} of {trials} resumed runs equal the uninterrupted one", flush=True)
    return equal == trials


def main() -> int:
    """Parse the command line and run the drills."""
    if not hasattr(os, "fork"):
        raise SystemExit("kill_drill.py starts its runs by fork(), which this system lacks: run it on Linux or macOS.")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"which: {', '.join(RECIPES)}; all by default")
    parser.add_argument("--trials", type=int, default=3, help="runs that are killed, of each recipe")
    parser.add_argument("--kills", type=int, default=1, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args()
    unknown = [name for name in args.recipes if name not in RECIPES]
    if unknown:
        parser.error(f"there are no recipes {unknown}; there are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory() as folder, _chdir(folder):
        for name in args.recipes or RECIPES:
            good &= drill(name, trials=args.trials, kills=args.kills, seed=args.seed)
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
