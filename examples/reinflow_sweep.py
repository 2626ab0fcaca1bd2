"""Compare settings of ReinFlow: a baseline and 21 configurations that change one setting each.

    python examples/reinflow_sweep.py --policy runs/bc --preset planar --dry-run
    python examples/reinflow_sweep.py --policy runs/bc --preset planar --seeds 0 1 --workers 2 --watch
    python examples/reinflow_sweep.py --policy runs/bc --only noise k4 --scale 0.25

Runs `examples/reinflow.py` once per configuration and seed, through Ray if it is installed (`pip install
'torchrl-flow[sweep]'`), otherwise one after the other. The same command continues after a stop: it skips finished runs
and resumes the others. A crashed run is reported and does not stop the others. The path of the report is printed last.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchrl_flow.options import (
    Count,
    NonNegativeInt,
    PolicyArgs,
    Positive,
    RunSource,
    SimulationArgs,
    SweepArgs,
    WritableDirectory,
    check_options,
    parse_options,
    refusals_in_one_line,
    resolve_device,
)
from torchrl_flow.sweeps import (
    RunStatus,
    SweepRun,
    Variant,
    format_statuses,
    plan_sweep,
    run_sweep,
    scale_options,
    select_variants,
    summarise_sweep,
    write_sweep_report,
)

SCRIPT = Path(__file__).with_name("reinflow.py")

PUBLISHED: dict[str, Any] = {
    "num_steps": 8,
    "total_env_steps": 1_000_000,
    "num_envs": 1,
    "rollout_steps": 128,
    "epochs": 4,
    "minibatch_size": 64,
    "lr": 3e-5,
    "critic_lr": 1e-4,
    "clip": 0.2,
    "entropy_coef": 0.01,
    "value_coef": 0.5,
    "critic_warmup_steps": 5000,
    "sigma_min": 0.01,
    "sigma_max": 0.3,
    "noise_schedule": "linear",
    "noise_decay_steps": 500_000,
}
"""The published baseline of a ManiSkill task, with one environment."""

PLANAR: dict[str, Any] = {
    **PUBLISHED,
    "total_env_steps": 2_000_000,
    "num_envs": 256,
    "rollout_steps": 12,
    "epochs": 2,
    "minibatch_size": 768,
    "lr": 2e-4,
    "critic_lr": 1e-3,
    "clip": 0.01,
    "critic_warmup_steps": 100_000,
    "sigma_min": 0.05,
    "noise_decay_steps": 4_000_000,
}
"""The baseline of the planar task: many environments, and noise large enough for actions of unit scale."""

PRESETS = {"published": PUBLISHED, "planar": PLANAR}

VARIANTS = (
    Variant("baseline", "baseline"),
    Variant("warmup_0", "warmup", {"critic_warmup_steps": 0}),
    Variant("warmup_2k", "warmup", {"critic_warmup_steps": 2000}),
    Variant("warmup_10k", "warmup", {"critic_warmup_steps": 10_000}),
    Variant("noise_constant", "noise", {"noise_schedule": "constant"}),
    Variant("noise_exponential", "noise", {"noise_schedule": "exponential"}),
    Variant("noise_fast", "noise", {"noise_decay_steps": 200_000}),
    Variant("noise_low", "noise", {"sigma_max": 0.15}),
    Variant("noise_high", "noise", {"sigma_max": 0.5}),
    Variant("clip_0.1", "ppo", {"clip": 0.1}),
    Variant("clip_0.3", "ppo", {"clip": 0.3}),
    Variant("entropy_0.05", "ppo", {"entropy_coef": 0.05}),
    Variant("entropy_0.001", "ppo", {"entropy_coef": 0.001}),
    Variant("value_1.0", "ppo", {"value_coef": 1.0}),
    Variant("lr_low", "lr", {"lr": 1e-5, "critic_lr": 3e-5}),
    Variant("lr_high", "lr", {"lr": 1e-4, "critic_lr": 3e-4}),
    Variant("lr_equal", "lr", {"lr": 5e-5, "critic_lr": 5e-5}),
    Variant("k4", "steps", {"num_steps": 4}),
    Variant("k16", "steps", {"num_steps": 16}),
    Variant("rollout_64", "rollout", {"rollout_steps": 64, "minibatch_size": 32}),
    Variant("rollout_256", "rollout", {"rollout_steps": 256, "minibatch_size": 128}),
    Variant("epochs_8", "rollout", {"rollout_steps": 128, "epochs": 8}),
)
"""The baseline and 21 ablations in six categories, in the units of PUBLISHED; add a line to add a configuration."""


@dataclasses.dataclass(kw_only=True)
class Args(SweepArgs, PolicyArgs, SimulationArgs):
    """Options of the sweep."""

    policy: RunSource = "runs/bc"
    num_videos: NonNegativeInt = 0
    preset: Literal["published", "planar"] = "published"
    """baseline configuration; each ablation changes it by the same factors as it changes the preset published"""
    only: tuple[str, ...] = ()
    """configurations or categories to run; by default all"""
    scale: Positive = 1.0
    """factor on every budget in environment steps: training, warm-up of the critic, decay of the noise"""
    directory: WritableDirectory = "runs/reinflow_sweep"
    evaluations: Count = 20
    """number of evaluations during each run, for the curves"""
    wandb: Literal["online", "offline"] | None = None
    """log the runs to Weights & Biases"""
    wandb_project: str = "torchrl_flow"
    """project in Weights & Biases"""
    wandb_group: str | None = None
    """group in Weights & Biases; by default the name of the directory"""
    watch: bool = False
    """show a table of all runs during the sweep"""


def make_runs(args: Args) -> list[SweepRun]:
    """Return the planned runs."""
    base = dict(PRESETS[args.preset])
    base |= {} if args.num_envs is None else {"num_envs": args.num_envs}
    budgets = ("total_env_steps", "critic_warmup_steps", "noise_decay_steps")
    base |= {name: max(1, round(args.scale * base[name])) for name in budgets}
    variants = []
    for variant in select_variants(VARIANTS, args.only):
        # The number of sampling steps is not scaled, since the network is trained only on certain step sizes.
        options = scale_options(variant.options, PUBLISHED, base, absolute=("num_steps",))
        settings = {**base, **options}
        chunks = settings["num_envs"] * settings["rollout_steps"]
        # The same number of evaluations for each configuration, for any length of its iterations.
        iterations = settings["total_env_steps"] / (8 * chunks)
        options["eval_every"] = max(1, round(iterations / args.evaluations))
        variants.append(Variant(variant.name, variant.category, options))
    names = ("policy", "which", "max_episode_steps", "results", "eval_episodes", "num_videos", "device", "sim_backend")
    common = {**base, "recipe": "reinflow_sweep", **{name: getattr(args, name) for name in (*names, "threads")}}
    if args.wandb is not None:
        group = args.wandb_group or Path(args.directory).name
        common |= {"wandb": args.wandb, "wandb_project": args.wandb_project, "wandb_group": group}
    program = [sys.executable, str(SCRIPT)]
    return plan_sweep(variants, args.seeds, program=program, directory=args.directory, options=common)


def report(args: Args, statuses: Sequence[RunStatus]) -> Path:
    """Write the report of finished runs, and report crashed ones."""
    for status in statuses:
        if status.state == "crashed":
            print(f"CRASHED {status.run.name}: {status.detail}\n  its output: {status.run.log}")
    results = summarise_sweep(statuses)
    return write_sweep_report(args.directory, results, title=f"ReinFlow sweep, {args.preset} baseline")


def main(args: Args) -> None:
    """Plan and run the sweep, and write the report."""
    # With --dry-run the policy need not exist yet.
    check_options(args, skip=("policy",) if args.dry_run else ())
    runs = make_runs(args)
    if args.dry_run:
        print("\n".join(run.shell() for run in runs))
        return
    resolve_device(args.device)
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""

    def show(statuses: list[RunStatus]) -> None:
        print(clear + format_statuses(statuses), flush=True)

    watching: dict[str, Any] = {"on_change": show if args.watch else None, "poll_s": 2.0 if clear else 30.0}
    statuses = run_sweep(runs, **args.sweep_options(), **watching)
    print(format_statuses(statuses))
    page = report(args, statuses)
    print(page.resolve())
    if any(status.state != "finished" for status in statuses):
        raise SystemExit(1)


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
