"""Report of a sweep: each configuration compared with the baseline, as a table, curves and a page."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.functional.statistics import wilson_interval
from torchrl_flow.training.conclusion import read_evaluation
from torchrl_flow.training.files import write_text
from torchrl_flow.training.html_pages import render_page
from torchrl_flow.training.metrics import read_metrics
from torchrl_flow.training.report_plots import curves_svg, standalone_svg
from torchrl_flow.training.sweep import RunStatus, Variant
from torchrl_flow.training.tables import markdown_table

__all__ = ["VariantResult", "format_statuses", "summarise_sweep", "write_sweep_report"]

BASELINE = "baseline"


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """One configuration over its finished seeds; what none of them tells is ``None``."""

    variant: Variant
    seeds: int
    success: float | None
    """Rate of success over the final evaluations of all seeds."""
    success_interval: tuple[float, float] | None
    """Its 95 % Wilson interval."""
    steps_to_baseline: float | None
    """Mean over the seeds of the environment steps until an evaluation reached the baseline's final success; ``None``
    where a seed never did."""
    curve_variance: float | None
    """Half the variance of the differences between successive evaluations: the curve's noise, without its trend."""
    epoch_s: float | None
    """Median seconds of a pass over an iteration's chunks."""
    curve: tuple[list[float], list[float]]
    """Environment steps and success of the evaluations, averaged over the seeds."""
    crashed: int = 0
    """Seeds that crashed."""


@dataclasses.dataclass(frozen=True)
class _Finished:
    successes: int
    episodes: int
    steps: list[float]
    success: list[float]
    epoch_s: float | None


def _read(status: RunStatus, metric: str) -> _Finished:
    folder = status.run.directory
    by_steps, _ = read_evaluation(folder)
    metrics = read_metrics(folder / "metrics.csv")
    env_steps = dict(zip(*metrics.get("train/env_steps", ([], []))))
    steps, success = metrics.get(metric, ([], []))
    times = metrics.get("train/epoch_s", ([], []))[1]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The policy's own number of sampling steps is what the configuration asked for.
    result = by_steps.get(config.get("num_steps")) or by_steps[max(by_steps)]
    episodes = int(config["eval_episodes"])
    return _Finished(
        successes=round(result["success_once"] * episodes),
        episodes=episodes,
        steps=[env_steps.get(step, float(step)) for step in steps],
        success=list(success),
        epoch_s=statistics.median(times) if times else None,
    )


def summarise_sweep(statuses: Sequence[RunStatus], *, metric: str = "eval/success_once") -> list[VariantResult]:
    """Return what the finished runs of each configuration show, in the order in which they come.

    Args:
        statuses: of :func:`~torchrl_flow.training.run_sweep`.
        metric: the curve, logged by the runs.
    """
    variants = list({status.run.variant.name: status.run.variant for status in statuses}.values())
    finished: dict[str, list[_Finished]] = {variant.name: [] for variant in variants}
    crashed = dict.fromkeys(finished, 0)
    for status in statuses:
        name = status.run.variant.name
        if status.state == "finished":
            finished[name].append(_read(status, metric))
        crashed[name] += status.state == "crashed"
    base = finished.get(BASELINE) or []
    goal = sum(r.successes for r in base) / sum(r.episodes for r in base) if base else None
    return [_summarise(variant, finished[variant.name], goal, crashed[variant.name]) for variant in variants]


def _summarise(variant: Variant, runs: list[_Finished], goal: float | None, crashed: int) -> VariantResult:
    if not runs:
        return VariantResult(variant, 0, None, None, None, None, None, ([], []), crashed)
    successes, episodes = sum(r.successes for r in runs), sum(r.episodes for r in runs)
    reached = [_first_at(r, goal) for r in runs] if goal is not None else [None]
    spreads = [_noise(r.success) for r in runs if len(r.success) > 2]
    times = [r.epoch_s for r in runs if r.epoch_s is not None]
    return VariantResult(
        variant,
        len(runs),
        successes / episodes,
        wilson_interval(successes, episodes),
        None if None in reached else statistics.fmean(r for r in reached if r is not None),
        statistics.fmean(spreads) if spreads else None,
        statistics.median(times) if times else None,
        _mean_curve(runs),
        crashed,
    )


def _first_at(run: _Finished, goal: float) -> float | None:
    return next((step for step, success in zip(run.steps, run.success) if success >= goal), None)


def _noise(values: Sequence[float]) -> float:
    return 0.5 * statistics.pvariance([after - before for before, after in itertools.pairwise(values)])


def _mean_curve(runs: Sequence[_Finished]) -> tuple[list[float], list[float]]:
    length = min(len(run.success) for run in runs)
    columns = [(run.steps[:length], run.success[:length]) for run in runs]
    steps, success = ([statistics.fmean(values) for values in zip(*(column[i] for column in columns))] for i in (0, 1))
    return steps, success


_HEADER = ("configuration", "category", "seeds", "crashed", "success", "low", "high", "steps to baseline",
           "curve variance", "s per epoch")  # fmt: skip


def _row(result: VariantResult) -> list[Any]:
    low, high = result.success_interval or (None, None)
    values = (result.success, low, high, result.steps_to_baseline, result.curve_variance, result.epoch_s)
    own = [result.variant.name, result.variant.category, result.seeds, result.crashed]
    return [*own, *("" if value is None else f"{value:.4g}" for value in values)]


def write_sweep_report(directory: str | Path, results: Sequence[VariantResult], *, title: str) -> Path:
    """Write ``report.html``, its path returned, ``report.csv`` and ``report.md``, and ``<category>.svg`` for each.

    Args:
        directory: of the sweep.
        results: of :func:`summarise_sweep`.
        title: heading of the page.

    Raises:
        RuntimeError: if matplotlib is missing, naming the extra.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(result) for result in results]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *rows])
    write_text(folder / "report.csv", text.getvalue())
    write_text(folder / "report.md", markdown_table(_HEADER, rows) + "\n")
    drawings = []
    base = [result for result in results if result.variant.name == BASELINE and result.curve[0]]
    for category in dict.fromkeys(r.variant.category for r in results if r.variant.name != BASELINE):
        members = [*base, *(r for r in results if r.variant.category == category and r.curve[0])]
        if members:
            svg = curves_svg({r.variant.name: r.curve for r in members}, title=category, unit_interval=True)
            write_text(folder / f"{_file_name(category)}.svg", standalone_svg(svg))
            drawings.append(svg)
    page = folder / "report.html"
    write_text(page, render_page("sweep", title=title, header=_HEADER, rows=rows, drawings=drawings))
    return page


def _file_name(category: str) -> str:
    """A category as the name of a file in the sweep's own directory."""
    return re.sub(r"[^\w.-]", "_", category).lstrip(".") or "_"


def format_statuses(statuses: Sequence[RunStatus], *, metric: str = "eval/success_once") -> str:
    """Return a table of the runs as text: state, environment steps, latest success, seconds."""
    width = max(len("run"), *(len(status.run.name) for status in statuses))
    lines = [f"{'run':{width}}  {'state':8}  {'env steps':>10}  {'success':>7}  {'time':>7}"]
    for status in statuses:
        metrics_file = status.run.directory / "metrics.csv"
        metrics = read_metrics(metrics_file) if metrics_file.exists() else {}
        steps = metrics.get("train/env_steps", ([], [math.nan]))[1][-1]
        success = metrics.get(metric, ([], [math.nan]))[1][-1]
        cells = ("" if math.isnan(steps) else f"{steps:.0f}", "" if math.isnan(success) else f"{success:.3f}",
                 "" if status.wall_s is None else f"{status.wall_s:.0f} s")  # fmt: skip
        lines.append(
            f"{status.run.name:{width}}  {status.state:8}  {cells[0]:>10}  {cells[1]:>7}  {cells[2]:>7}".rstrip()
        )
    return "\n".join(lines)
