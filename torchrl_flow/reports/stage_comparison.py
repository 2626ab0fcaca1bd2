"""Comparison of a flow before and after each stage of steering, on equal seeds: table, plot and report."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase

from torchrl_flow.evaluation.protocol import evaluate, warm_up
from torchrl_flow.evaluation.result import EvaluationResult
from torchrl_flow.figures.plots import bars_svg, has_matplotlib, standalone_svg
from torchrl_flow.modules import FlowActor, SteeredFlowActor
from torchrl_flow.policies.acting import load_acting_policy
from torchrl_flow.reports.report import write_report
from torchrl_flow.reports.results import record_results
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.util.files import write_text
from torchrl_flow.util.task_info import TaskInfo
from torchrl_flow.util.versions import collect_versions, command_line, today

__all__ = ["compare_stages", "stages_svg"]

_COLUMNS = ("success_once", "success_once_low", "success_once_high", "success_at_end", "return", "length")


def compare_stages(
    directory: str | Path,
    stages: Mapping[str, FlowActor | SteeredFlowActor | TrainingCheckpoint | str | Path],
    env: EnvBase,
    seeds: Sequence[int],
    *,
    task: Mapping[str, Any],
    recipe: str,
    seed: int = 0,
    diagnostics: Mapping[str, Mapping[str, float]] | None = None,
    results: str | Path | None = None,
    env_steps: Mapping[str, int] | None = None,
    wall_s: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, EvaluationResult]:
    """Evaluate the stages on the same seeds, each episode with the same noise, and write the results.

    Args:
        directory: directory of ``stages.csv``, ``stages.svg`` and ``stages.html``.
        stages: actors by name, such as ``{"prior": flow, "1": ..., "2": ...}``, or the checkpoints or runs that hold
            them (:func:`~torchrl_flow.policies.load_acting_policy`).
        env: chunk env for evaluation.
        seeds: seeds, one per episode.

    Keyword Args:
        task: identity of the task (:func:`~torchrl_flow.envs.task_info`) or a mapping of its fields.
        recipe: name of the recipe.
        seed: seed of the training.
        diagnostics: further columns of the table by stage, such as ``q_prior`` and ``q_policy``.
        results: ``results.csv`` to write to, a row for each stage; the rows of an earlier comparison are replaced.
        env_steps: environment steps that training took, by stage.
        wall_s: seconds that training took, by stage.
        notes: paragraphs for the report.
        progress: show progress.

    Returns:
        the evaluations by stage.

    Raises:
        ValueError: if there is no stage.
    """
    if not stages:
        raise ValueError("stages must name at least one actor.")
    directory, task = Path(directory), TaskInfo.of(task)
    directory.mkdir(parents=True, exist_ok=True)
    diagnostics, env_steps, wall_s = diagnostics or {}, env_steps or {}, wall_s or {}
    actors = {
        name: given if isinstance(given, nn.Module) else load_acting_policy(given)[0] for name, given in stages.items()
    }
    found = {}
    for name, actor in actors.items():
        warm_up(env, actor, seeds)
        found[name] = evaluate(env, actor, seeds, progress=progress)
    rows = [{"stage": name, **_figures(found[name]), **diagnostics.get(name, {})} for name in found]
    _write_table(directory / "stages.csv", rows)
    if has_matplotlib():
        write_text(directory / "stages.svg", stages_svg(found, title=f"{recipe} on {task.task}"))
    threads = torch.get_num_threads()
    write_report(
        directory / "stages.html",
        title=f"{recipe} on {task.task}: prior and stages",
        subtitle=f"{task.obs_mode} observations, {len(seeds)} episodes from equal seeds and noise, {today()}",
        results=found,
        notes=[*(f"{name}: {values}" for name, values in diagnostics.items()), f"{threads} thread(s).", *notes],
        versions=collect_versions(),
        command=command_line(),
    )
    if results is not None:
        columns = {"recipe": recipe, "task": task.task, "obs": task.obs_mode, "seed": seed}
        rows = [
            {**columns, "stage": name, "env_steps": env_steps.get(name), "wall_s": wall_s.get(name, 0.0)}
            | result.result_columns()
            for name, result in found.items()
        ]
        # Not in the directory itself, in which the run stores the rows of its own stage.
        record_results(results, rows, directory=directory / "comparison")
    return found


def _figures(result: EvaluationResult) -> dict[str, float]:
    metrics = result.metrics("")
    return {"episodes": result.episodes, **{name: metrics[name] for name in _COLUMNS if name in metrics}}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def stages_svg(results: Mapping[str, EvaluationResult], *, title: str) -> str:
    """Return an SVG with a bar for each stage's ``success_once`` and its 95 % interval (or for its return).

    Raises:
        RuntimeError: if matplotlib is missing. The error names the extra.
    """
    success = all(result.success_once is not None for result in results.values())
    heights = {n: r.success_once_rate if success else r.returns.mean().item() for n, r in results.items()}
    intervals = {n: r.success_once_interval for n, r in results.items()} if success else None
    label = "success rate (once)" if success else "return"
    return standalone_svg(bars_svg(heights, title=title, intervals=intervals, unit_interval=success, y_label=label))
