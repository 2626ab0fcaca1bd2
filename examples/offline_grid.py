"""Offline baselines of the slate recommender: environments x algorithms x seeds, and one table beside references.

    python examples/offline_grid.py --dry-run
    python examples/offline_grid.py --envs diffuse_topdown diffuse_mix diffuse_divpen --seeds 0 1 2 --workers 2
    python examples/offline_grid.py --algorithms td3_bc iql --iterations 5000
    python examples/offline_grid.py --envs sardine/SlateTopK-Bored-v0

Models and data of an environment are made where they are missing. The runs go through Ray where it is installed, else
one after the other; started again, the grid leaves finished runs alone and resumes the others. At the end comes a
table of mean returns, with the standard deviation over seeds, and rows for random latents, the short-term oracle, the
policy that logged the data, and the oracle; its path is printed last.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from torchrl_flow.figures import markdown_table, mean_and_deviation
from torchrl_flow.offline import offline_row, offline_task
from torchrl_flow.options import (
    Count,
    Distinct,
    NotEmpty,
    OneOf,
    Seeds,
    SweepArgs,
    WritableDirectory,
    check_options,
    parse_options,
    refusals_in_one_line,
    resolve_device,
)
from torchrl_flow.recsys import SLATE_ENVS, CollectSardineArgs, CollectSlatesArgs, SlateModelsArgs
from torchrl_flow.recsys.sardine_task import SARDINE_PREFIX
from torchrl_flow.reports import record_results
from torchrl_flow.sweeps import RunStatus, SweepRun, Variant, plan_sweep, run_sweep
from torchrl_flow.util import Progress, write_json, write_text

SCRIPTS = {
    "bc": ("td3_bc.py", {"alpha": 0.0}),
    "bc_slates": ("flow_bc_slates.py", {}),
    "td3_bc": ("td3_bc.py", {}),
    "cql": ("cql.py", {}),
    "iql": ("iql.py", {}),
}
"""For each algorithm its script and what is different from its defaults."""
Names = Annotated[tuple[str, ...], NotEmpty(), Distinct()]
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {},
    "short": {
        "bc": {"iterations": 4000, "lr": 1e-3},
        "bc_slates": {"iterations": 3000},
        "td3_bc": {"iterations": 4000, "lr": 1e-3},
        "cql": {"iterations": 1500, "bc_updates": 300, "num_random": 4, "lr": 1e-3},
        "iql": {"iterations": 3000, "lr": 1e-3},
    },
}
"""Budgets of each algorithm: the scripts' own, or about two minutes a run on one core."""
REFERENCES = ("random_latent", "sto", "behaviour", "behaviour_through_ranker", "oracle_through_ranker", "oracle")
"""Rows for comparison, in the order of the table."""


@dataclasses.dataclass(kw_only=True)
class Args(SweepArgs):
    """What the grid can be told on the command line."""

    envs: Names = ("diffuse_topdown", "diffuse_mix", "diffuse_divpen")
    """environments of the slate recommender, or sardine/NAME where SARDINE is installed"""
    algorithms: Names = tuple(SCRIPTS)
    """algorithms to train"""
    seeds: Seeds = (0, 1, 2)
    eval_episodes: Count = 256
    """users of an evaluation"""
    policy: Literal["expert", "medium", "random", "logged"] = "medium"
    """policy that logs the data; SARDINE uses a fixed policy"""
    steps: Count = 300_000
    """logged steps of each environment; SARDINE's data are 500 episodes"""
    preset: Literal["full", "short"] = "full"
    """budgets: the scripts' own, 20,000 updates, or about two minutes a run on one core"""
    iterations: Count | None = None
    """updates of each run; by default those of --preset"""
    directory: WritableDirectory = "runs/offline_grid"


def collection(args: Args, env: str) -> CollectSlatesArgs | CollectSardineArgs:
    """How the data of an environment are made, and where they are."""
    if env.startswith(SARDINE_PREFIX):
        return CollectSardineArgs(env=env.removeprefix(SARDINE_PREFIX))
    return CollectSlatesArgs(env=env, policy=args.policy, steps=args.steps)


def prepare(args: Args, env: str) -> None:
    """Make the models and the data of an environment where they are missing."""
    models = SlateModelsArgs(env=env)
    if not env.startswith(SARDINE_PREFIX) and not models.path.exists():
        print(models())
    collect = collection(args, env)
    if not collect.path.exists():
        print(collect())


def variant_name(algorithm: str, env: str) -> str:
    """Name of the runs of an algorithm in an environment."""
    return f"{algorithm}-{env.replace('/', '-')}"


def plan(args: Args) -> list[SweepRun]:
    """Return all runs, seeds outermost, so that the table is whole early."""
    unknown = [name for name in args.algorithms if name not in SCRIPTS]
    if unknown:
        raise SystemExit(f"There are no algorithms {unknown}; there are {', '.join(SCRIPTS)}.")
    runs = []
    for name in args.algorithms:
        script, options = SCRIPTS[name]
        options = {**PRESETS[args.preset].get(name, {}), **options}
        if args.iterations is not None:
            options["iterations"] = args.iterations
        given = {name: getattr(args, name) for name in ("results", "device", "threads")}
        shared = {"eval_episodes": args.eval_episodes, "eval_every": 0, **given}
        paths = {env: str(collection(args, env).path) for env in args.envs}
        variants = [Variant(variant_name(name, env), name, {**options, "data": paths[env]}) for env in args.envs]
        program = [sys.executable, str(Path(__file__).with_name(script))]
        runs += plan_sweep(variants, args.seeds, program=program, directory=args.directory, options=shared)
    return sorted(runs, key=lambda run: args.seeds.index(run.seed))


def scores(run: SweepRun) -> dict[str, float]:
    """What a finished run wrote of its evaluation."""
    return json.loads((run.directory / "evaluation.json").read_text(encoding="utf-8"))


def references(args: Args, env: str) -> dict[str, float]:
    """Returns to compare with, of the users that the runs were evaluated with; measured once and recorded."""
    path = Path(args.directory) / f"{variant_name('references', env)}-{args.eval_episodes}.json"
    if not path.exists():
        task = offline_task(collection(args, env).path)
        found = task.references(episodes=args.eval_episodes)
        for name, value in found.items():
            row = offline_row(task, name, value, seed=0, episodes=args.eval_episodes)
            # A directory for each, as for a run: measured again, a reference takes the place of its old row.
            record_results(args.results, [row], directory=path.with_suffix("") / name)
        write_json(path, found)
    return json.loads(path.read_text(encoding="utf-8"))


def make_table(args: Args, statuses: list[RunStatus], compared: dict[str, dict[str, float]]) -> str:
    """Return the table in Markdown: a row for each algorithm and reference, a column for each environment."""
    finished = [status.run for status in statuses if status.state == "finished"]
    rows = []
    for name in args.algorithms:
        cells = []
        for env in args.envs:
            found = [scores(run)[name] for run in finished if run.variant.name == variant_name(name, env)]
            cells.append(f"{mean_and_deviation(found)} ({len(found)})" if found else "")
        rows.append([name, *cells])
    for name in REFERENCES:
        cells = [f"{compared[env][name]:.1f}" if name in compared[env] else "" for env in args.envs]
        if any(cells):
            rows.append([name, *cells])
    return markdown_table(["", *args.envs], rows)


def main(args: Args) -> None:
    """Models and data, runs, table."""
    check_options(args)
    known = OneOf(SLATE_ENVS)
    for env in args.envs:
        problem = None if env.startswith(SARDINE_PREFIX) else known.problem(env, args)
        if problem is not None:
            raise SystemExit(f"--envs {problem}, or {SARDINE_PREFIX}NAME, got {env}.")
    runs = plan(args)
    if args.dry_run:
        print("\n".join(run.shell() for run in runs))
        return
    resolve_device(args.device)
    for env in args.envs:
        prepare(args, env)
    with Progress(len(runs), description="offline grid", unit="run") as progress:

        def show(statuses: list[RunStatus]) -> None:
            progress.update(sum(status.state == "finished" for status in statuses) - progress.done)

        statuses = run_sweep(runs, on_change=show, **args.sweep_options())
    for status in statuses:
        if status.state != "finished":
            print(f"{status.run.name}: {status.state}. {status.detail}", file=sys.stderr)
    table = make_table(args, statuses, {env: references(args, env) for env in args.envs})
    path = Path(args.directory) / "table.md"
    write_text(path, f"Mean return and standard deviation over (so many) seeds.\n\n{table}\n")
    print(table)
    print(path.resolve())


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
