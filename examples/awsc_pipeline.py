"""Run AWSC from demonstrations to online learning, all three stages, over several seeds, and print one table.

    python examples/awsc_pipeline.py --task planar --seeds 0 1 2

Stage 1 clones mixed demonstrations (`shortcut_flow_bc.py`). Stage 2 clones them with advantage weights
(`aw_shortcut_flow_offline.py`). Stage 3 continues online (`awsc_online.py`). Each stage starts from the checkpoint of
the previous stage. All stages are evaluated on the same seeds. For times and scores see docs/awsc.md. To continue after
a stop, give the same command; finished runs are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import aw_shortcut_flow_offline
import awsc_online
import shortcut_flow_bc

from torchrl_flow.envs import PLANAR, ObsMode
from torchrl_flow.figures import markdown_table
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
from torchrl_flow.reports import read_evaluation, record_results, variant_labels
from torchrl_flow.runs import load_checkpoint
from torchrl_flow.util import command_line, git_commit, today, write_json

STAGES = {"1": "cloning", "2": "advantage-weighted, offline", "3": "online"}
BUDGETS = ("iterations", "critic_warmup", "chunks")
"""What `--scale` scales."""
SHORT = {"act_horizon": 4}
"""Half the usual chunk: the fewer actions a critic must weigh together, the better it tells good ones from bad."""
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
    """What the pipeline can be told on the command line; everything else is as in the stages' scripts."""

    task: TaskName = "planar"
    """planar, or a ManiSkill id"""
    obs_mode: ObsMode = "state"
    """what the policy sees"""
    num_demos: Count = 100
    """number of demonstrations"""
    quality: Literal["mixed", "expert"] = "mixed"
    """quality of the demonstrations: mixed or expert"""
    seeds: Seeds = (0,)
    """seeds; the pipeline runs once for each"""
    workers: Count = 1
    """number of seeds that run at the same time, each in its own process with one thread"""
    scale: Positive = 1.0
    """factor on the budgets of all stages; small for a trial"""
    noise_scales: tuple[NonNegative, ...] = (0.5,)
    """also evaluate each stage with the flow noise multiplied by these factors"""
    best_of: tuple[Count, ...] = ()
    """also evaluate stages 2 and 3 acting by the best of so many samples"""
    eval_episodes: Count | None = None
    """episodes of an evaluation, from seed 10000 on; default 100, or 1000 for the planar task"""
    eval_every: NonNegativeInt = 0
    """steps between evaluations during training, 0 for none; above 0, a stage starts from the best previous policy"""
    num_videos: NonNegativeInt = 4
    """episodes of each stage to film, where the machine can render"""
    device: str = "cpu"
    """device of networks and batches: cpu, cuda (cuda:1, ...), or auto for cuda if there is a GPU"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one that is not batched: in the online stage, and with ManiSkill in all
    evaluations; 256 of the planar task and one of ManiSkill where none is given"""
    sim_backend: str | None = None
    """ManiSkill's simulation; several environments take physx_cuda where there is a CUDA device, and else physx_cpu"""
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
    common = {"runs": args.runs, "results": None, "seed": seed, "resume": True, "device": args.device}
    common |= {"eval_every": args.eval_every}
    if args.task != PLANAR:
        common |= {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    elif args.num_envs is not None:
        scaled["3"]["num_envs"] = args.num_envs
    common |= {"eval_episodes": episodes, "num_videos": args.num_videos, "noise_scales": args.noise_scales}
    data: Any = {"task": args.task, "obs_mode": args.obs_mode, "num_demos": args.num_demos, "quality": args.quality}
    before = {stage: str(Path(args.runs) / names[stage]) for stage in STAGES}
    one, two, three = ({"name": names[stage], **common, **scaled[stage]} for stage in STAGES)
    return {
        "1": (shortcut_flow_bc, shortcut_flow_bc.Args(compare_steps=(), **data, **one)),
        "2": (
            aw_shortcut_flow_offline,
            aw_shortcut_flow_offline.Args(policy=before["1"], best_of=args.best_of, **two),
        ),
        "3": (awsc_online, awsc_online.Args(policy=before["2"], best_of=args.best_of, **three)),
    }


def run_seed(args: Args, seed: int) -> list[dict[str, Any]]:
    """Run the three stages of one seed, those that are not done yet; record and return a row for each evaluation."""
    rows = []
    for stage, (script, stage_args) in stage_arguments(args, seed).items():
        directory = Path(stage_args.runs) / stage_args.name
        require_same_budgets(directory, stage_args)
        outcome = directory / "outcome.json"
        found = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else []
        if not is_evaluated(found, stage, stage_args):
            # A run that is finished resumes to be evaluated.
            script.main(stage_args)
            found = read_outcome(args, seed, stage, directory, stage_args.eval_episodes)
            write_json(outcome, found)
        if args.results is not None:
            record_results(args.results, found, directory=directory)
        rows += found
    return rows


def require_same_budgets(directory: Path, stage_args: Any) -> None:
    """Refuse a run of other budgets: later stages have started from it as it is."""
    file = directory / "config.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    differing = [
        f"{name}: {before[name]!r} before, {getattr(stage_args, name)!r} now"
        for name in BUDGETS
        if name in before and before[name] != getattr(stage_args, name, before[name])
    ]
    if differing:
        raise SystemExit(f"{directory} holds a run of other budgets ({'; '.join(differing)}): choose another --name.")


def is_evaluated(rows: list[dict[str, Any]], stage: str, stage_args: Any) -> bool:
    """Tell whether rows are of the episodes and variants that are asked for."""
    variants = variant_labels(stage_args.noise_scales, getattr(stage_args, "best_of", ()))
    wanted = {(name, stage_args.eval_episodes) for name in (stage, *(f"{stage} {variant}" for variant in variants))}
    return {(row["stage"], row["episodes"]) for row in rows} == wanted


def read_outcome(args: Args, seed: int, stage: str, directory: Path, episodes: int) -> list[dict[str, Any]]:
    """Return the rows of results.csv of a stage from what its evaluation left."""
    checkpoint = load_checkpoint(directory)
    by_steps, variants = read_evaluation(directory)
    rows = []
    for label, values in [*((stage, values) for values in by_steps.values()), *variants.items()]:
        names = ("success_once", "success_at_end", "return")
        row: dict[str, Any] = {"recipe": "awsc", "task": args.task, "obs": args.obs_mode, "seed": seed}
        row["stage"] = label if label == stage else f"{stage} {label}"
        row |= {"episodes": episodes, **{name: values[name] for name in names}}
        row |= {"env_steps": checkpoint.counters.get("env_steps"), "wall_s": checkpoint.metadata["wall_s"]}
        row |= {"command": command_line(), "commit": git_commit(), "date": today()}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, the seeds of each stage side by side."""
    header = ("stage", "success_once by seed", "mean", "standard deviation", "at end", "env steps", "minutes")
    body = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["seed"])
        once = [row["success_once"] for row in mine]
        spread = f"{statistics.stdev(once):.3f}" if len(once) > 1 else ""
        steps = {row["env_steps"] for row in mine if row["env_steps"]}
        cells = [
            f"{stage} ({STAGES[stage]})" if stage in STAGES else stage,
            " ".join(f"{value:.2f}" for value in once),
            f"{statistics.mean(once):.3f}",
            spread,
            f"{statistics.mean(row['success_at_end'] for row in mine):.3f}",
            f"{statistics.mean(steps):.0f}" if steps else "",
            f"{statistics.mean(row['wall_s'] for row in mine) / 60:.1f}",
        ]
        body.append(cells)
    return markdown_table(header, body)


def run_quietly(args: Args, seed: int) -> list[dict[str, Any]]:
    """Run one seed with its output in a file, as one of several workers."""
    log = Path(args.runs) / f"{args.name}-{args.task}-{args.obs_mode}-{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return run_seed(args, seed)


def check(args: Args) -> None:
    """Validate the options of all stages before the first stage starts.

    Raises:
        SystemExit: naming the option.
    """
    check_options(args)
    check_task(args.task, args.obs_mode)
    training_env_options(args.task, num_envs=args.num_envs, sim_backend=args.sim_backend, planar_envs=256)
    args.device = resolve_device(args.device)


def main(args: Args) -> list[dict[str, Any]]:
    """Run all seeds, write the rows and print the table."""
    check(args)
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
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
