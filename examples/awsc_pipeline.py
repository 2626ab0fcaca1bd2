"""Run all three stages of AWSC, from demonstrations to online learning, over several seeds, and print one table.

    python examples/awsc_pipeline.py --task planar --seeds 0 1 2

Stage 1 clones mixed demonstrations (`shortcut_flow_bc.py`). Stage 2 clones them with advantage weights
(`aw_shortcut_flow_offline.py`). Stage 3 continues online (`awsc_online.py`). Each stage starts from the checkpoint of
the previous stage. All stages are evaluated on the same seeds. For times and scores see docs/awsc.md. The same command
continues after a stop; finished runs are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import aw_shortcut_flow_offline
import awsc_online
import shortcut_flow_bc

from torchrl_flow.envs import PLANAR, ObsMode
from torchrl_flow.options import (
    Count,
    NonNegative,
    NonNegativeInt,
    Positive,
    RunName,
    Seeds,
    TaskName,
    WritableDirectory,
    WritableFile,
    check_options,
    check_task,
    parse_options,
    refusals_in_one_line,
    resolve_device,
)
from torchrl_flow.policies import training_env_options
from torchrl_flow.reports import evaluation_rows, has_evaluation_rows, record_results, stage_table
from torchrl_flow.util import write_json
from torchrl_flow.util.differences import differing_fields

STAGES = {"1": "cloning", "2": "advantage-weighted, offline", "3": "online"}
BUDGETS = ("iterations", "critic_warmup", "chunks")
"""Options that `--scale` multiplies."""
SHORT = {"act_horizon": 4}
"""Half of the usual chunk length: the critic ranks chunks better if they have fewer actions."""
PLANAR_STAGES: dict[str, dict[str, Any]] = {
    "1": {"iterations": 2000, "width": 128, "depth": 2, "pred_horizon": 8, **SHORT},
    "2": {"critic_warmup": 2000, "iterations": 1200, "tau": 0.02, "critic_hidden": (128, 128)},
    "3": {
        **{"chunks": 50_000, "num_envs": 256, "utd_ratio": 0.08, "actor_every": 1, "tau": 0.02},
        **{"beta": 10.0, "weight_clip": 10.0, "buffer_size": 25_000},
    },
}
MANISKILL_STAGES: dict[str, dict[str, Any]] = {
    "1": {"iterations": 5000, **SHORT},
    "2": {"critic_warmup": 3000, "iterations": 1000, "tau": 0.02},
    "3": {"chunks": 10_000, "utd_ratio": 0.4, "actor_every": 1, "tau": 0.02, "beta": 10.0, "weight_clip": 10.0},
}


@dataclasses.dataclass
class Args:
    """Options of the pipeline; other options have the defaults of the stages' scripts."""

    task: TaskName = "planar"
    """planar, or a ManiSkill id"""
    obs_mode: ObsMode = "state"
    """observations of the policy"""
    num_demos: Count = 100
    """number of demonstrations"""
    quality: Literal["mixed", "expert"] = "mixed"
    """quality of the demonstrations: mixed or expert"""
    seeds: Seeds = (0,)
    """seeds; the pipeline runs once for each"""
    workers: Count = 1
    """number of seeds that run at the same time, each in its own process with one thread"""
    scale: Positive = 1.0
    """factor on the budgets of all stages; use a small one for a trial"""
    noise_scales: tuple[NonNegative, ...] = (0.5,)
    """also evaluate each stage with the flow noise multiplied by these factors"""
    best_of: tuple[Count, ...] = ()
    """also evaluate stages 2 and 3 with the best of this many samples"""
    eval_episodes: Count | None = None
    """episodes of an evaluation, from seed 10000 on; default 100, or 1000 for the planar task"""
    eval_every: NonNegativeInt = 0
    """steps between evaluations during training, 0 for none; above 0, a stage starts from the best previous policy"""
    num_videos: NonNegativeInt = 4
    """episodes of each stage to film, if the machine can render"""
    device: str = "cpu"
    """device of networks and batches: cpu, cuda (cuda:1, ...), or auto for cuda if there is a GPU"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension: in the online stage, with ManiSkill in all
    evaluations, too; default: 256 of the planar task, one of ManiSkill"""
    sim_backend: str | None = None
    """ManiSkill's simulation; default: physx_cuda for several environments on a GPU, else physx_cpu"""
    name: RunName = "awsc"
    """name of the runs: <name>-<task>-<obs>-<seed>-<stage>"""
    runs: WritableDirectory = "runs"
    """directory of the runs"""
    results: WritableFile | None = "runs/results.csv"
    """table of results; the rows of a run replace the rows that the same run wrote before"""


def stage_arguments(args: Args, seed: int) -> dict[str, tuple[Any, Any]]:
    """Return module and arguments of each stage of one seed."""
    budgets = PLANAR_STAGES if args.task == PLANAR else MANISKILL_STAGES
    episodes = args.eval_episodes or (1000 if args.task == PLANAR else 100)
    names = {stage: f"{args.name}-{args.task}-{args.obs_mode}-{seed}-{stage}" for stage in STAGES}
    scaled = {
        stage: {key: max(1, round(value * args.scale)) if key in BUDGETS else value for key, value in budget.items()}
        for stage, budget in budgets.items()
    }
    common = {"runs": args.runs, "results": None, "seed": seed, "resume": True, "eval_episodes": episodes}
    common |= {name: getattr(args, name) for name in ("device", "eval_every", "num_videos", "noise_scales")}
    if args.task != PLANAR:
        common |= {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    elif args.num_envs is not None:
        scaled["3"]["num_envs"] = args.num_envs
    data: Any = {"task": args.task, "obs_mode": args.obs_mode, "num_demos": args.num_demos, "quality": args.quality}
    before = {stage: str(Path(args.runs) / names[stage]) for stage in STAGES}
    one, two, three = ({"name": names[stage], **common, **scaled[stage]} for stage in STAGES)
    first = shortcut_flow_bc.Args(compare_steps=(), **data, **one)
    second = aw_shortcut_flow_offline.Args(policy=before["1"], best_of=args.best_of, **two)
    third = awsc_online.Args(policy=before["2"], best_of=args.best_of, **three)
    return {"1": (shortcut_flow_bc, first), "2": (aw_shortcut_flow_offline, second), "3": (awsc_online, third)}


def run_seed(args: Args, seed: int) -> list[dict[str, Any]]:
    """Run the unfinished stages of one seed; record and return a row for each evaluation."""
    rows = []
    for stage, (script, stage_args) in stage_arguments(args, seed).items():
        directory = Path(stage_args.runs) / stage_args.name
        require_same_budgets(directory, stage_args)
        outcome = directory / "outcome.json"
        found = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else []
        variants = {"noise_scales": stage_args.noise_scales, "best_of": getattr(stage_args, "best_of", ())}
        if not has_evaluation_rows(found, stage, stage_args.eval_episodes, **variants):
            # A finished run is resumed only for its evaluation.
            script.main(stage_args)
            columns = {"recipe": "awsc", "task": args.task, "obs": args.obs_mode, "seed": seed}
            found = evaluation_rows(directory, stage=stage, episodes=stage_args.eval_episodes, **columns)
            write_json(outcome, found)
        if args.results is not None:
            record_results(args.results, found, directory=directory)
        rows += found
    return rows


def require_same_budgets(directory: Path, stage_args: Any) -> None:
    """Refuse a run with other budgets, since later stages have already started from it."""
    file = directory / "config.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = [name for name in BUDGETS if name in before and hasattr(stage_args, name)]
    differing = differing_fields(before, vars(stage_args), names, form="{name}: {found!r} before, {wanted!r} now")
    if differing:
        raise SystemExit(f"{directory} holds a run with other budgets ({'; '.join(differing)}): choose another --name.")


def run_quietly(args: Args, seed: int) -> list[dict[str, Any]]:
    """Run one seed with its output in a file, as one of several workers."""
    log = Path(args.runs) / f"{args.name}-{args.task}-{args.obs_mode}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return run_seed(args, seed)


def main(args: Args) -> list[dict[str, Any]]:
    """Run all seeds, write the rows and print the table."""
    check_options(args)
    check_task(args.task, args.obs_mode)
    training_env_options(args.task, num_envs=args.num_envs, sim_backend=args.sim_backend, planar_envs=256)
    args.device = resolve_device(args.device)
    rows: list[dict[str, Any]] = []
    if args.workers == 1 or len(args.seeds) == 1:
        rows = [row for seed in args.seeds for row in run_seed(args, seed)]
    else:
        print(f"Progress is in {args.runs}/{args.name}-{args.task}-{args.obs_mode}-<seed>.log.")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.workers, context) as pool:
            jobs = {pool.submit(run_quietly, args, seed): seed for seed in args.seeds}
            for job in as_completed(jobs):
                rows += job.result()
                print(f"Seed {jobs[job]} is done.")
    print("\nReports:")
    for seed in args.seeds:
        for _, stage_args in stage_arguments(args, seed).values():
            print(f"  {Path(stage_args.runs) / stage_args.name / 'report.html'}")
    print("\n" + stage_table(rows, STAGES))
    return rows


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
