"""Train every algorithm on every task over several seeds, which reproduces the results of the documentation.

    python examples/benchmark_suite.py --tasks PickCube-v1 LiftPegUpright-v1 --seeds 0 1 2 --workers 2
    python examples/benchmark_suite.py --algorithms dsrl_sac --scale 0.34 --network concat_mlp     # ten minutes

A policy is cloned from demonstrations for each task and seed. Each algorithm then starts from the clone of its task and
seed, with a fixed budget. Runs are scheduled by Ray if it is installed (`pip install 'torchrl-flow[sweep]'`), otherwise
one after the other. The same command continues after a stop: it skips finished runs and resumes the others. If a run
crashes, only the runs that start from it are not run. At the end a table, curves over the seeds, and the steps at which
each run first reached --threshold are written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from torchrl_flow.commands.compare import CompareArgs
from torchrl_flow.envs import PLANAR
from torchrl_flow.options import (
    Distinct,
    Fraction,
    NonNegativeInt,
    NotEmpty,
    Positive,
    SimulationArgs,
    SweepArgs,
    TaskName,
    check_options,
    parse_options,
    refusals_in_one_line,
    resolve_device,
)
from torchrl_flow.reports import reach_table
from torchrl_flow.sweeps import SweepRun, Variant, plan_sweep, run_status, run_sweep
from torchrl_flow.util import Progress

Stage = tuple[str, dict[str, Any]]
Tasks = Annotated[tuple[TaskName, ...], NotEmpty(), Distinct()]
Names = Annotated[tuple[str, ...], NotEmpty(), Distinct()]

CLONES: dict[str, dict[str, Any]] = {
    PLANAR: {"iterations": 1500, "width": 128, "depth": 2, "pred_horizon": 8, "act_horizon": 4},
    "maniskill": {"iterations": 5000, "act_horizon": 4, "quality": "mixed", "compare_steps": (4,)},
}
"""Options of the clones: mixed demonstrations, so that online algorithms can improve the policy."""
ALGORITHMS: dict[str, tuple[Stage, ...]] = {
    "awsc": (
        ("aw_shortcut_flow_offline.py", {"critic_warmup": 3000, "iterations": 1000, "tau": 0.02}),
        ("awsc_online.py", {"chunks": 80_000, "utd_ratio": 0.25, "actor_every": 1, "tau": 0.02, "beta": 10.0}),
    ),
    "dsrl_ppo": (("dsrl_ppo.py", {"rollout": 25, "iterations": 80, "eval_every": 5}),),
    "dsrl_sac": (("dsrl_sac_online.py", {"iterations": 50, "warm_up": 3}),),
    "dsrl_na": (("dsrl_sac_online.py", {"iterations": 50, "warm_up": 3, "na": True}),),
    "reinflow": (("reinflow.py", {"total_env_steps": 600_000}),),
}
"""Stages of each algorithm: the script, its budget and its options that differ from the defaults. Each stage starts
from the one before it."""
BUDGETS = ("iterations", "warm_up", "critic_warmup", "chunks", "total_env_steps")
"""Options that --scale multiplies. Every stage names its own, because --scale does not know a recipe's defaults."""


@dataclasses.dataclass(kw_only=True)
class Args(SweepArgs, SimulationArgs):
    """Options of the suite."""

    tasks: Tasks = ("PickCube-v1",)
    """planar, and ids of ManiSkill tasks that have a motion planner"""
    algorithms: Names = tuple(ALGORITHMS)
    """algorithms: awsc, dsrl_ppo, dsrl_sac, dsrl_na, reinflow"""
    scale: Positive = 1.0
    """factor on the budgets of the algorithms; it does not change those of the clones"""
    network: Literal["mlp", "concat_mlp"] = "mlp"
    """velocity network of the clones; concat_mlp trains in half the time and is less successful on hard tasks"""
    threshold: Fraction = 0.8
    """success rate; the last table lists the steps at which each run first reached it"""
    directory: str = "runs/benchmark"
    num_envs: NonNegativeInt | None = 64
    num_videos: NonNegativeInt = 0


def make_run(args: Args, seed: int, name: str, stage: Stage, **more: Any) -> SweepRun:
    """Return one run: its script with the options of the stage and the suite."""
    script, own = stage
    shared = {name: getattr(args, name) for name in ("eval_episodes", "results", "device", "threads", "num_videos")}
    shared |= {name: getattr(args, name) for name in ("sim_backend", "max_episode_steps")}
    program = [sys.executable, str(Path(__file__).with_name(script))]
    variant = Variant(name, name, {**own, **more})
    return plan_sweep([variant], [seed], program=program, directory=args.directory, options=shared)[0]


def plan(args: Args) -> list[list[SweepRun]]:
    """Return the runs in levels: clones first, then the stages of all algorithms, each after its previous stage."""
    levels: list[list[SweepRun]] = [[]]
    for seed in args.seeds:
        for task in args.tasks:
            settings = CLONES.get(task, CLONES["maniskill"])
            start = {"task": task, "network": args.network, "eval_every": 0}
            clone = make_run(args, seed, f"{task}-clone", ("shortcut_flow_bc.py", settings), **start)
            levels[0].append(clone)
            for algorithm in args.algorithms:
                before, stages = clone, ALGORITHMS[algorithm]
                for number, (script, settings) in enumerate(stages, 1):
                    name = f"{task}-{algorithm}" + ("" if number == len(stages) else f"-stage{number}")
                    own = {
                        key: max(1, round(value * args.scale)) if key in BUDGETS else value
                        for key, value in settings.items()
                    }
                    # Stages without training environments evaluate with the task's default number of environments.
                    simulated = {} if script.startswith("aw_") else {"num_envs": args.num_envs}
                    before = make_run(args, seed, name, (script, own), policy=before.directory, **simulated)
                    levels.extend([] for _ in range(number + 1 - len(levels)))
                    levels[number].append(before)
    return levels


def run_level(args: Args, runs: Sequence[SweepRun], progress: Progress) -> None:
    """Run one level, and report crashed runs."""
    done = progress.done

    def show(statuses: Sequence[Any]) -> None:
        progress.update(done + sum(status.state == "finished" for status in statuses) - progress.done)

    for status in run_sweep(runs, on_change=show, **args.sweep_options()):
        if status.state != "finished":
            print(f"CRASHED {status.run.name}: {status.detail}\n  its output: {status.run.log}", file=sys.stderr)


def main(args: Args) -> None:
    """Plan, run and compare the runs."""
    check_options(args)
    unknown = [name for name in args.algorithms if name not in ALGORITHMS]
    if unknown:
        raise SystemExit(f"--algorithms must be one or more of {', '.join(ALGORITHMS)}, got {', '.join(unknown)}.")
    levels = plan(args)
    if args.dry_run:
        print("\n".join(run.shell() for level in levels for run in level))
        return
    resolve_device(args.device)
    crashed: set[str] = set()
    with Progress(sum(map(len, levels)), description="benchmark", unit="run") as progress:
        for level in levels:
            ready = [run for run in level if not crashed & set(run.command)]
            run_level(args, ready, progress)
            crashed |= {str(run.directory) for run in level if run_status(run).state != "finished"}
    finished = [run for level in levels for run in level if run_status(run).state == "finished"]
    if not finished:
        raise SystemExit(f"No run has finished: their output is in {Path(args.directory) / 'logs'}.")
    CompareArgs(runs=tuple(str(run.directory) for run in finished), output=str(Path(args.directory) / "results"))()
    trained = [run.directory for run in finished if run not in levels[0] and "-stage" not in run.name]
    if trained:
        print(
            f"\nFirst evaluation with a success of {args.threshold:g}, in environment steps and seconds of training:\n"
        )
        print(reach_table(trained, "eval/success_once", args.threshold, against=("train/env_steps", "train/wall_s")))
    if crashed:
        raise SystemExit(1)


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
