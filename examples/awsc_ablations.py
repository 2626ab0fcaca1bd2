"""Compare AWSC's online stage with ablations: a baseline, and runs that change one setting each.

    python examples/awsc_ablations.py --policy runs/awsc-planar-state-0-2 --workers 2

Runs `examples/awsc_online.py` once per configuration and seed from one checkpoint of `aw_shortcut_flow_offline.py`,
through Ray if it is installed (`pip install 'torchrl-flow[sweep]'`), otherwise one after the other, and prints one
table. All configurations make the same number of critic updates; those of the update-to-data ratio differ in the number
of collected chunks. When started again, it skips finished runs.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.figures import markdown_table, mean_and_deviation
from torchrl_flow.options import (
    Count,
    NonNegative,
    NonNegativeInt,
    PolicyArgs,
    SimulationArgs,
    SweepArgs,
    WritableDirectory,
    check_options,
    parse_options,
    refusals_in_one_line,
    resolve_device,
)
from torchrl_flow.reports import read_evaluation, variant_labels
from torchrl_flow.runs import load_checkpoint
from torchrl_flow.sweeps import (
    RunStatus,
    SweepRun,
    Variant,
    format_statuses,
    plan_sweep,
    run_sweep,
    select_variants,
)
from torchrl_flow.util import write_text

SCRIPT = Path(__file__).with_name("awsc_online.py")
UTD_RATIO = 0.5


@dataclasses.dataclass(kw_only=True)
class Args(SweepArgs, PolicyArgs, SimulationArgs):
    """Options of the ablations."""

    num_videos: NonNegativeInt = 0
    only: tuple[str, ...] = ()
    """configurations or categories to run; by default all"""
    updates: Count = 2000
    """critic updates of each run"""
    directory: WritableDirectory = "runs/awsc_ablations"
    noise_scales: tuple[NonNegative, ...] = (0.5,)
    """also evaluate each policy with the flow noise multiplied by these factors"""
    best_of: tuple[Count, ...] = (4, 16)
    """also evaluate each policy with the best of this many samples"""


def variants(updates: int) -> list[Variant]:
    """Return the configurations; add a line to add a configuration."""

    def utd(ratio: float) -> dict[str, Any]:
        return {"utd_ratio": ratio, "chunks": round(updates / ratio)}

    return [
        Variant("baseline", "baseline"),
        Variant("beta_0", "beta", {"beta": 0.0}),
        Variant("beta_10", "beta", {"beta": 10.0}),
        Variant("beta_100", "beta", {"beta": 100.0}),
        Variant("min_of_1", "ensemble", {"num_min_qs": 1}),
        Variant("min_of_10", "ensemble", {"num_min_qs": 10}),
        Variant("no_filter", "filter", {"filter_policy_data": False}),
        Variant("online_ratio_0", "data", {"online_ratio": 0.0}),
        Variant("online_ratio_1", "data", {"online_ratio": 1.0}),
        Variant("utd_1", "utd", utd(1.0)),
        Variant("utd_8", "utd", utd(8.0)),
        Variant("target_best_of_4", "best of N", {"num_action_samples": 4}),
        Variant("target_best_of_16", "best of N", {"num_action_samples": 16}),
        Variant("batch_baseline", "baseline", {"baseline": "batch"}),
    ]


def make_runs(args: Args) -> list[SweepRun]:
    """Return the planned runs."""
    common = {
        "policy": args.policy,
        "utd_ratio": UTD_RATIO,
        "chunks": round(args.updates / UTD_RATIO),
        "actor_every": 1,
        "results": args.results,
        "recipe": "awsc_ablations",
        "eval_episodes": args.eval_episodes,
        "noise_scales": args.noise_scales,
        "best_of": args.best_of,
        "num_videos": args.num_videos,
        "which": args.which,
        "max_episode_steps": args.max_episode_steps,
        "threads": args.threads,
        **{name: getattr(args, name) for name in ("device", "num_envs", "sim_backend")},
    }
    chosen = select_variants(variants(args.updates), args.only)
    program = [sys.executable, str(SCRIPT)]
    return plan_sweep(chosen, args.seeds, program=program, directory=args.directory, options=common)


def table(args: Args, statuses: Sequence[RunStatus]) -> str:
    """Return a Markdown table of finished runs: success over the seeds, plain, with less noise, by the best of N."""
    names = variant_labels(args.noise_scales, args.best_of)
    body = []
    done = [status for status in statuses if status.state == "finished"]
    for name in dict.fromkeys(status.run.variant.name for status in done):
        mine = [status.run.directory for status in done if status.run.variant.name == name]
        figures = [read_evaluation(directory) for directory in mine]
        plain = [next(iter(by_steps.values())) for by_steps, _ in figures]
        columns = [plain, *([found[label] for _, found in figures] for label in names)]
        checkpoints = [load_checkpoint(directory) for directory in mine]
        cells = [
            name,
            str(len(mine)),
            *(mean_and_deviation([values["success_once"] for values in column], 2) for column in columns),
        ]
        # Over all environments, in the order of the columns before.
        times = (statistics.mean(values["policy_ms"] for values in column) for column in columns)
        cells.append(" / ".join(f"{time:.1f}" for time in times))
        cells.append(f"{statistics.mean(c.counters['env_steps'] for c in checkpoints):.0f}")
        cells.append(f"{statistics.mean(c.metadata['wall_s'] for c in checkpoints) / 60:.1f}")
        body.append(cells)
    header = ("configuration", "seeds", "success_once", *names, "policy ms", "env steps", "minutes")
    return markdown_table(header, body)


def main(args: Args) -> None:
    """Plan and run the ablations, and print the table."""
    # With --dry-run the policy need not exist yet.
    check_options(args, skip=("policy",) if args.dry_run else ())
    runs = make_runs(args)
    if args.dry_run:
        print("\n".join(run.shell() for run in runs))
        return
    resolve_device(args.device)
    watching: dict[str, Any] = {"on_change": lambda found: print(format_statuses(found)), "poll_s": 30.0}
    statuses = run_sweep(runs, **args.sweep_options(), **watching)
    for status in statuses:
        if status.state != "finished":
            print(f"CRASHED {status.run.name}: {status.detail}\n  its output: {status.run.log}")
    text = table(args, statuses)
    write_text(Path(args.directory) / "table.md", text + "\n")
    print("\n" + text)
    if any(status.state != "finished" for status in statuses):
        raise SystemExit(1)


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
