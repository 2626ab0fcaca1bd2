"""Offline baselines of the slate recommender: data x environments x algorithms x seeds, one table and one plot.

    python examples/offline_grid.py --preset short --steps 100000 --workers 2
    python examples/offline_grid.py --policies medium expert --algorithms td3_bc iql --alphas 0.1 0.3 1

Missing models and data are made first. Runs go through Ray if it is installed, otherwise one after the other. The same
command continues after a stop: it skips finished runs and resumes the others. The output is a table of mean returns and
standard deviations over seeds, with reference policies, and a plot (--eval-every).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from torchrl_flow.figures import markdown_table, mean_and_deviation
from torchrl_flow.figures.plots import has_matplotlib
from torchrl_flow.offline import measure_references, offline_task
from torchrl_flow.options import (
    Count,
    Distinct,
    NonNegative,
    NonNegativeInt,
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
from torchrl_flow.recsys import SLATE_ENVS, CollectSardineArgs, CollectSlatesArgs, SlateModelsArgs, SlatePolicyName
from torchrl_flow.recsys.sardine_task import SARDINE_PREFIX
from torchrl_flow.reports import CurvesArgs, draw_curves
from torchrl_flow.sweeps import RunStatus, SweepRun, Variant, plan_sweep, run_sweep
from torchrl_flow.util import Progress, write_text

SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("td3_bc.py", {"alpha": 0.0}),
    "bc_slates": ("flow_bc_slates.py", {}),
    "td3_bc": ("td3_bc.py", {}),
    "cql": ("cql.py", {}),
    "iql": ("iql.py", {}),
    "aw_flow": ("aw_flow_slates.py", {}),
    "return_flow": ("return_flow_slates.py", {}),
}
"""Script of each algorithm, and its options that differ from the defaults."""
ALSO = {"aw_flow": ("aw_flow_best",)}
"""Further rows of an algorithm: other policies made from the trained networks."""
Names = Annotated[tuple[str, ...], NotEmpty(), Distinct()]
Policies = Annotated[tuple[SlatePolicyName, ...], NotEmpty(), Distinct()]
_SHORT: dict[str, Any] = {"iterations": 1000, "lr": 1e-3}
_OTHERS: dict[str, dict[str, Any]] = {"td3_bc": {"alpha": 0.5}, "iql": {"temperature": 1.0}}
_OTHERS |= {"aw_flow": {"critic_warmup": 300}, "cql": {"bc_updates": 300, "num_random": 4, "min_q_weight": 1.0}}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"full": {}}
PRESETS["short"] = {name: {**_SHORT, **_OTHERS.get(name, {})} for name in SCRIPTS}
"""Budgets of each algorithm: those of the scripts, or short ones of less than a minute per run on one core."""
_THROUGH = ("behaviour_through_ranker", "oracle_through_ranker")
REFERENCES = ("random_latent", "mean_latent", "sto", "behaviour", *_THROUGH, "oracle")
"""Rows for comparison, in the order of the table."""


@dataclasses.dataclass(kw_only=True)
class Args(SweepArgs):
    """Options of the grid."""

    envs: Names = ("diffuse_topdown", "diffuse_mix", "diffuse_divpen")
    """environments of the slate recommender, or sardine/NAME if SARDINE is installed"""
    algorithms: Names = tuple(SCRIPTS)
    """algorithms to train"""
    seeds: Seeds = (0, 1, 2)
    policies: Policies = ("medium",)
    """policies that log the data, one data set for each; SARDINE uses a fixed policy"""
    steps: Count = 300_000
    """logged steps of each data set; SARDINE's data are 500 episodes"""
    alphas: tuple[NonNegative, ...] = ()
    """critic weights of td3_bc to compare; by default that of td3_bc"""
    eval_episodes: Count = 256
    eval_every: NonNegativeInt = 0
    """updates between evaluations during training, for the plot; 0 for none"""
    preset: Literal["full", "short"] = "full"
    """budgets: those of the scripts, 20,000 updates, or short ones, 1,000 updates"""
    iterations: Count | None = None
    """updates of each run; by default those of --preset"""
    directory: WritableDirectory = "runs/offline_grid"


def data_sets(args: Args) -> dict[str, CollectSlatesArgs | CollectSardineArgs]:
    """Return the arguments of the collection of each data set, by its name."""
    found: dict[str, CollectSlatesArgs | CollectSardineArgs] = {}
    for env in args.envs:
        if env.startswith(SARDINE_PREFIX):
            found[env.replace("/", "-")] = CollectSardineArgs(env=env.removeprefix(SARDINE_PREFIX))
        for policy in () if env.startswith(SARDINE_PREFIX) else args.policies:
            options: dict[str, Any] = {"env": env, "policy": policy, "steps": args.steps}
            found[env if policy == "medium" else f"{env}-{policy}"] = CollectSlatesArgs(**options)
    return found


def prepare(collect: CollectSlatesArgs | CollectSardineArgs) -> None:
    """Make the models and the data of an environment if they are missing."""
    if isinstance(collect, CollectSlatesArgs) and not collect.models_path.exists():
        print(SlateModelsArgs(env=collect.env)())
    if not collect.path.exists():
        print(collect())


def rows_of(args: Args) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return algorithm and options of each trained row; td3_bc has one row for each alpha."""
    weighed = {f"td3_bc_{alpha:g}": ("td3_bc", {"alpha": alpha}) for alpha in args.alphas}
    each = [weighed if name == "td3_bc" and weighed else {name: (name, {})} for name in args.algorithms]
    return {row: what for rows in each for row, what in rows.items()}


def plan(args: Args) -> list[SweepRun]:
    """Return all runs, ordered by seed, so that the table is complete early."""
    unknown = [name for name in args.algorithms if name not in SCRIPTS]
    if unknown:
        raise SystemExit(f"--algorithms must be of the known ones, got {unknown}; known are {', '.join(SCRIPTS)}.")
    given = {name: getattr(args, name) for name in ("eval_episodes", "eval_every", "results", "device", "threads")}
    shared, runs = {**given, "references": False}, []  # the references are measured once for all runs
    paths = {name: str(collect.path) for name, collect in data_sets(args).items()}
    for row, (name, own) in rows_of(args).items():
        script, different = SCRIPTS[name]
        options = {**PRESETS[args.preset].get(name, {}), **different, **own}
        options |= {} if args.iterations is None else {"iterations": args.iterations}
        variants = [Variant(f"{row}-{data}", row, {**options, "data": path}) for data, path in paths.items()]
        program = [sys.executable, str(Path(__file__).with_name(script))]
        runs += plan_sweep(variants, args.seeds, program=program, directory=args.directory, options=shared)
    return sorted(runs, key=lambda run: args.seeds.index(run.seed))


def references(args: Args, name: str, data: Path) -> dict[str, float]:
    """Measure and record, once, the returns of the reference policies for the users of the evaluations."""
    path = Path(args.directory) / f"references-{name}-{args.eval_episodes}.json"
    return measure_references(lambda: offline_task(data), path, episodes=args.eval_episodes, results=args.results)


def make_table(args: Args, runs: list[SweepRun], compared: dict[str, dict[str, float]]) -> str:
    """Return the Markdown table: a row for each algorithm and reference, a column for each data set."""
    finished = [(run, json.loads((run.directory / "evaluation.json").read_text(encoding="utf-8"))) for run in runs]
    rows = []
    for row, (algorithm, _) in rows_of(args).items():
        for score in (algorithm, *ALSO.get(algorithm, ())):
            found = [
                [scores[score] for run, scores in finished if run.variant.name == f"{row}-{data}"] for data in compared
            ]
            cells = [f"{mean_and_deviation(values)} ({len(values)})" if values else "" for values in found]
            rows.append([row if score == algorithm else score, *cells])
    for name in REFERENCES:
        rows.append([name, *(f"{compared[data][name]:.1f}" if name in compared[data] else "" for data in compared)])
    return markdown_table(["", *compared], [row for row in rows if any(row[1:])])


def main(args: Args) -> None:
    """Make models and data, run the grid, and write table and plot."""
    check_options(args)
    for env in (env for env in args.envs if not env.startswith(SARDINE_PREFIX)):
        problem = OneOf(SLATE_ENVS).problem(env, args)
        if problem is not None:
            raise SystemExit(f"--envs {problem}, or {SARDINE_PREFIX}NAME, got {env}.")
    runs = plan(args)
    if args.dry_run:
        print("\n".join(run.shell() for run in runs))
        return
    resolve_device(args.device)
    for collect in data_sets(args).values():
        prepare(collect)
    with Progress(len(runs), description="offline grid", unit="run") as progress:

        def show(statuses: list[RunStatus]) -> None:
            progress.update(sum(status.state == "finished" for status in statuses) - progress.done)

        statuses = run_sweep(runs, on_change=show, **args.sweep_options())
    for status in (status for status in statuses if status.state != "finished"):
        print(f"{status.run.name}: {status.state}. {status.detail}", file=sys.stderr)
    finished = [status.run for status in statuses if status.state == "finished"]
    compared = {name: references(args, name, collect.path) for name, collect in data_sets(args).items()}
    table = make_table(args, finished, compared)
    path = Path(args.directory) / "table.md"
    write_text(path, f"Mean return and standard deviation over (so many) seeds.\n\n{table}\n")
    print(table)
    if args.eval_every and finished and has_matplotlib():
        curves: dict[str, Any] = {
            "metric": "eval/return",
            "against": "step",
            "output": str(path.with_name("curves.svg")),
        }
        print(draw_curves(CurvesArgs(tuple(str(run.directory) for run in finished), **curves)).resolve())
    print(path.resolve())


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
