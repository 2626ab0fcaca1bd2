"""Conclusion of a run: evaluation of the policy, video, report and rows of results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchrl.envs import EnvBase
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.data.checks.json import read_object
from torchrl_flow.envs.own import own_identity
from torchrl_flow.envs.tasks import filming_env
from torchrl_flow.envs.unwrap import base_env
from torchrl_flow.evaluation.group_rollout import Policy
from torchrl_flow.evaluation.protocol import compare_num_steps, evaluate, warm_up
from torchrl_flow.evaluation.result import EvaluationResult
from torchrl_flow.evaluation.seeds import evaluation_seeds
from torchrl_flow.figures.video import can_write_video, tile_episodes, video_suffix, write_video
from torchrl_flow.modules import BestOfN, FlowActor, QEnsemble, SteeredFlowActor
from torchrl_flow.reports.report import write_report
from torchrl_flow.reports.results import record_results
from torchrl_flow.runs.metrics import read_metrics
from torchrl_flow.runs.run import EVALUATION, Run
from torchrl_flow.training.finite import require_finite_modules
from torchrl_flow.util.files import write_json
from torchrl_flow.util.task_info import TaskInfo
from torchrl_flow.util.versions import collect_versions, command_line, today

__all__ = ["best_of_variants", "can_film", "conclude", "conclude_run", "read_evaluation", "variant_labels"]

Figures = dict[str, float]


def variant_labels(noise_scales: Sequence[float] = (), best_of: Sequence[int] = ()) -> list[str]:
    """Return the labels in evaluations of a policy at several noise scales and with the best of several samples."""
    return [*(f"noise {scale:g}" for scale in noise_scales), *(f"best of {n}" for n in best_of)]


def best_of_variants(actor: FlowActor, critic: QEnsemble, best_of: Sequence[int]) -> dict[str, Policy]:
    """Return variants of the policy for :func:`conclude`, by label, that take the best of N samples for each N."""
    policies = (BestOfN(actor, critic, num_samples=n) for n in best_of)
    return dict(zip(variant_labels(best_of=best_of), policies))


def read_evaluation(directory: str | Path) -> tuple[dict[int, Figures], dict[str, Figures]]:
    """Read the evaluation written by :func:`conclude`: metrics by number of sampling steps, and of variants by label.

    Args:
        directory: directory of the run.

    Raises:
        FileNotFoundError: if the run was not evaluated.
        ValueError: if the file is damaged. The error names the file.
    """
    path = Path(directory) / EVALUATION
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file: the run was not evaluated.")
    found = read_object(path)
    for label, figures in found.items():
        numbers = figures.values() if isinstance(figures, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError(f"{path} is damaged: {label!r} must have numbers by name. Evaluate the run again.")
    by_steps = {int(label): figures for label, figures in found.items() if label.isdigit()}
    return by_steps, {label: figures for label, figures in found.items() if not label.isdigit()}


def can_film(env: EnvBase) -> bool:
    """Return whether an environment can render frames; ManiSkill without a Vulkan device draws poses."""
    env = base_env(env)
    if isinstance(env, BatchedEnvBase) and env.is_closed:
        env.start()  # workers respond only while they run
    if not callable(getattr(env, "render", None)) or not getattr(env, "can_render", True):
        return False
    if own_identity(env) is None:
        return True
    # Gymnasium's render modes; a batch of environments has a list of them.
    mode = getattr(env, "render_mode", "rgb_array")
    return all(m not in (None, "human") for m in (mode if isinstance(mode, (list, tuple)) else (mode,)))


def conclude(
    directory: str | Path,
    actor: FlowActor | SteeredFlowActor,
    env: EnvBase,
    seeds: Sequence[int],
    *,
    task: Mapping[str, Any],
    recipe: str,
    stage: str | None = None,
    seed: int = 0,
    num_steps: Sequence[int] = (),
    noise_scales: Sequence[float] = (),
    variants: Mapping[str, Policy] | None = None,
    num_videos: int = 4,
    results: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    env_steps: int | None = None,
    wall_s: float | None = None,
    notes: Sequence[str] = (),
    run: Run | None = None,
    progress: bool = True,
) -> tuple[EvaluationResult, Path]:
    """Evaluate a policy over fixed seeds and write a self-contained report.

    Files and rows of ``results`` from an earlier call with the same directory are replaced. The file
    ``evaluation.json``, which marks the run as finished, is written last.

    Args:
        directory: directory of ``report.html``, ``evaluation.json`` and the video. If it holds a run, the run's metrics
            are drawn as curves.
        actor: the policy.
        env: chunk env for evaluation (see :func:`~torchrl_flow.envs.make_chunk_env`).
        seeds: seeds, one per episode.

    Keyword Args:
        task: identity of the task (:func:`~torchrl_flow.envs.task_info`) or a mapping of its fields.
        recipe: name of the recipe, for the title and ``results.csv``.
        stage: stage of the recipe, if it has several.
        seed: seed of the training.
        num_steps: further numbers of sampling steps to evaluate at.
        noise_scales: further scales of the flow's initial noise.
        variants: other policies to evaluate on the same seeds, by name, such as those of :func:`best_of_variants`.
        num_videos: number of episodes to film, if the environment can render.
        results: ``results.csv`` to write to, a row for each number of sampling steps, scale and variant
            (:func:`~torchrl_flow.reports.record_results`). Defaults to None: no rows.
        config: the script's arguments. Defaults to those of ``run``.
        env_steps: environment steps of the training. Defaults to the count of ``run``.
        wall_s: seconds of the training. Defaults to those of ``run``.
        notes: paragraphs for the report.
        run: run that trained the policy. The results and the video are logged to its W&B and TensorBoard, too.
        progress: show progress.

    Returns:
        the evaluation at the actor's own number of sampling steps, and the path of the report.

    Raises:
        NonFiniteError: if a weight of the policy is not finite; nothing is written.
    """
    directory, task = Path(directory), TaskInfo.of(task)
    require_finite_modules({"policy": actor}, doing="the policy is not evaluated and no result is written")
    config, env_steps, wall_s = _of_run(run, config, env_steps, wall_s)
    films = min(num_videos, len(seeds)) if can_film(env) else 0
    compared, others = _evaluations(env, actor, seeds, num_steps, noise_scales, variants or {}, progress)
    result = compared[actor.num_steps]
    video, pictures = _video(directory, actor, env, seeds[:films], run)
    title = f"{recipe} {stage}" if stage else recipe
    curves = directory / "metrics.csv"
    path = write_report(
        directory / "report.html",
        title=f"{title} on {task.task}",
        subtitle=f"{task.obs_mode} observations, {task.control_mode}, {today()}",
        results={f"{title}, K = {actor.num_steps}": result, **others},
        num_steps=dict(sorted(compared.items())) if len(compared) > 1 else None,
        curves=read_metrics(curves) if curves.exists() else None,
        video=video,
        video_caption=f"The first {films} episodes, {pictures}, in a pass of their own, which no time includes.",
        notes=[_conditions(seeds, actor), *notes, *_why_no_video(num_videos, films, video)],
        config=config,
        versions=collect_versions(),
        command=command_line(),
    )
    if run is not None:
        run.logger.log_final(run.step, result.metrics("final/"))
    if results is not None:
        columns = {"recipe": recipe, "task": task.task, "obs": task.obs_mode, "seed": seed}
        columns |= {"env_steps": env_steps, "wall_s": wall_s or 0.0}
        record_results(results, _rows(compared, others, stage, columns), directory=directory)
    named = {str(k): value for k, value in sorted(compared.items())} | others
    write_json(directory / EVALUATION, {name: value.metrics("") for name, value in named.items()})
    return result, path


def _of_run(
    run: Run | None, config: Mapping[str, Any] | None, env_steps: int | None, wall_s: float | None
) -> tuple[Mapping[str, Any] | None, int | None, float | None]:
    """Return the given configuration, environment steps and seconds of training, with the run's values as defaults."""
    if run is None:
        return config, env_steps, wall_s
    config = run.config if config is None else config
    env_steps = run.counters.get("env_steps") if env_steps is None else env_steps
    return config, env_steps, run.wall_s if wall_s is None else wall_s


def _evaluations(
    env: EnvBase,
    actor: FlowActor | SteeredFlowActor,
    seeds: Sequence[int],
    num_steps: Sequence[int],
    noise_scales: Sequence[float],
    variants: Mapping[str, Policy],
    progress: bool,
) -> tuple[dict[int, EvaluationResult], dict[str, EvaluationResult]]:
    """Evaluate the policy at each number of sampling steps (its own first), noise scale and variant, by label."""
    more = [k for k in dict.fromkeys(num_steps) if k != actor.num_steps]
    compared = compare_num_steps(env, actor, seeds, [actor.num_steps, *more], progress=progress)
    others = {
        label: evaluate(env, actor, seeds, noise_scale=scale, progress=progress)
        for label, scale in zip(variant_labels(noise_scales), noise_scales)
    }
    for name, policy in variants.items():
        warm_up(env, policy, seeds)
        others[name] = evaluate(env, policy, seeds, progress=progress)
    return compared, others


def conclude_run(
    run: Run,
    actor: FlowActor | SteeredFlowActor,
    env: EnvBase,
    *,
    recipe: str,
    stage: str | None = None,
    num_steps: Sequence[int] = (),
    variants: Mapping[str, Policy] | None = None,
    notes: Sequence[str] = (),
) -> tuple[EvaluationResult, Path]:
    """Call :func:`conclude` with the values of the recipes' common options in the run's configuration.

    These are ``eval_episodes`` (seeds from 10000 on), ``seed``, ``label`` (appended to the stage), ``num_videos``,
    ``results`` and, if the recipe has it, ``noise_scales``. The other arguments are those of :func:`conclude`.
    """
    options = run.config
    words = [word for word in (stage, options["label"]) if word]
    return conclude(
        run.directory,
        actor,
        env,
        evaluation_seeds(options["eval_episodes"]),
        task=run.task,
        recipe=recipe,
        stage=" ".join(words) or None,
        seed=options["seed"],
        num_steps=num_steps,
        noise_scales=options.get("noise_scales", ()),
        variants=variants,
        num_videos=options["num_videos"],
        results=options["results"],
        notes=notes,
        run=run,
    )


def _video(
    directory: Path, actor: FlowActor | SteeredFlowActor, env: EnvBase, seeds: Sequence[int], run: Run | None
) -> tuple[Path | None, str]:
    """Film one episode for each seed in a separate pass, so that rendering does not change the measured times.

    Returns:
        the file, or ``None`` without a video; and a text that describes how its frames are made.
    """
    if not seeds or not can_write_video():
        return None, ""
    with filming_env(env) as camera:
        frames = tile_episodes(evaluate(camera, actor, seeds, num_videos=len(seeds), progress=False).videos)
        pictures = _pictures(camera)
    video = write_video(directory / f"episodes{video_suffix()}", frames)
    if run is not None:
        run.logger.log_video(run.step, "final/episodes", video, frames)
    return video, pictures


def _pictures(env: EnvBase) -> str:
    if getattr(base_env(env), "has_visuals", True):
        return "filmed"
    return "drawn from the poses of gripper (orange), objects and goal (green), from above and from the side"


def _why_no_video(num_videos: int, films: int, video: Path | None) -> list[str]:
    """Return a note for the report if videos were requested and none exist."""
    if films and video is None:
        return ["No video: no package writes one (pip install 'torchrl-flow[plot]')."]
    if num_videos and not films:
        return ["No video: this environment draws none (one of Gymnasium needs render_mode='rgb_array')."]
    return []


def _rows(
    compared: Mapping[int, EvaluationResult],
    others: Mapping[str, EvaluationResult],
    stage: str | None,
    columns: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of ``results.csv``. The label, and K if several were evaluated, is appended to the stage."""
    several = len(compared) > 1
    by_steps = {f"K={k}" if several else None: value for k, value in sorted(compared.items())}
    labelled: dict[str | None, EvaluationResult] = {**by_steps, **others}
    stages = [" ".join(part for part in (stage, label) if part) or None for label in labelled]
    return [{**columns, "stage": name, **value.result_columns()} for name, value in zip(stages, labelled.values())]


def _conditions(seeds: Sequence[int], actor: FlowActor | SteeredFlowActor) -> str:
    device = next(actor.parameters()).device
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    )
    return (
        f"{len(seeds)} episodes from the fixed seeds {min(seeds)} to {max(seeds)}, terminations ignored, noise "
        f"sampled; latency measured on: {hardware}. Intervals are Wilson's at 95 %."
    )
