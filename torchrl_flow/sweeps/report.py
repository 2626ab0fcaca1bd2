"""Report of a sweep: each configuration compared with the baseline, as a table, curves and a page."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchrl_flow.data.checks.json import read_object
from torchrl_flow.figures.axes import ENV_STEPS, place_metric
from torchrl_flow.figures.pages import render_page
from torchrl_flow.figures.plots import curves_svg, has_matplotlib, standalone_svg
from torchrl_flow.figures.tables import markdown_table
from torchrl_flow.functional.statistics import wilson_interval
from torchrl_flow.reports.conclusion import read_evaluation
from torchrl_flow.reports.report import NO_CURVES
from torchrl_flow.reports.seed_bands import seed_band
from torchrl_flow.runs.metrics import read_metrics
from torchrl_flow.sweeps.conclusion import BASELINE, SeedRun, VariantResult, conclude_sweep
from torchrl_flow.sweeps.plan import RunStatus, Variant
from torchrl_flow.util.files import write_text

__all__ = ["VariantResult", "format_statuses", "summarise_sweep", "write_sweep_report"]

_BANDS = (
    "Lines are means over the seeds, bands one standard deviation over the seeds to either side, thin lines the seeds."
)


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
    steps, success, _ = place_metric(metrics, metric, ENV_STEPS) if metric in metrics else ([], [], "")
    times = metrics.get("train/epoch_s", ([], []))[1]
    config = read_object(folder / "config.json")
    # The configuration gives the policy's own number of sampling steps.
    result = by_steps.get(config.get("num_steps", 0)) or by_steps[max(by_steps)]
    episodes = int(config["eval_episodes"])
    return _Finished(
        successes=round(result["success_once"] * episodes),
        episodes=episodes,
        steps=steps,
        success=success,
        epoch_s=statistics.median(times) if times else None,
    )


def summarise_sweep(statuses: Sequence[RunStatus], *, metric: str = "eval/success_once") -> list[VariantResult]:
    """Return the results of each configuration's finished runs, in the order of the configurations.

    Args:
        statuses: statuses of :func:`~torchrl_flow.sweeps.run_sweep`.
        metric: metric of the curve, which the runs log.
    """
    variants = list({status.run.variant.name: status.run.variant for status in statuses}.values())
    finished: dict[str, list[_Finished]] = {variant.name: [] for variant in variants}
    crashed = dict.fromkeys(finished, 0)
    runs: dict[str, list[SeedRun]] = {variant.name: [] for variant in variants}
    for status in statuses:
        name = status.run.variant.name
        if status.state == "finished":
            finished[name].append(_read(status, metric))
        crashed[name] += status.state == "crashed"
        runs[name].append(SeedRun(status.run.seed, status.state, status.run.directory, status.run.log))
    base = finished.get(BASELINE) or []
    goal = sum(r.successes for r in base) / sum(r.episodes for r in base) if base else None
    found = [_summarise(variant, finished[variant.name], goal, crashed[variant.name]) for variant in variants]
    return [dataclasses.replace(result, runs=tuple(runs[result.variant.name])) for result in found]


def _summarise(variant: Variant, runs: list[_Finished], goal: float | None, crashed: int) -> VariantResult:
    if not runs:
        return VariantResult(variant, 0, None, None, None, None, None, ([], []), crashed)
    band = seed_band([(run.steps, run.success) for run in runs])
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
        (band.x, band.mean),
        crashed,
        successes=successes,
        episodes=episodes,
        seed_success=tuple(run.successes / run.episodes for run in runs),
        band=band if len(runs) > 1 else None,
        seed_curves=tuple((run.steps, run.success) for run in runs),
    )


def _first_at(run: _Finished, goal: float) -> float | None:
    return next((step for step, success in zip(run.steps, run.success) if success >= goal), None)


def _noise(values: Sequence[float]) -> float:
    return 0.5 * statistics.pvariance([after - before for before, after in itertools.pairwise(values)])


_HEADER = ("configuration", "category", "seeds", "crashed", "success", "low", "high", "steps to baseline",
           "curve variance", "s per epoch")  # fmt: skip


def _row(result: VariantResult) -> list[Any]:
    low, high = result.success_interval or (None, None)
    values = (result.success, low, high, result.steps_to_baseline, result.curve_variance, result.epoch_s)
    own = [result.variant.name, result.variant.category, result.seeds, result.crashed]
    return [*own, *("" if value is None else f"{value:.4g}" for value in values)]


def write_sweep_report(directory: str | Path, results: Sequence[VariantResult], *, title: str) -> Path:
    """Write ``report.html``, ``report.csv``, ``report.md`` and ``<category>.svg``; return the path of the first.

    The page begins with the conclusions (:func:`conclude_sweep`) and links to the report of each run, or to its log if
    it has no report. Without matplotlib it has no curves, and notes this.

    Args:
        directory: directory of the sweep.
        results: results of :func:`summarise_sweep`.
        title: heading of the page.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_row(result) for result in results]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *rows])
    write_text(folder / "report.csv", text.getvalue())
    write_text(folder / "report.md", markdown_table(_HEADER, rows) + "\n")
    has_links = any(result.runs for result in results)
    page = render_page(
        "sweep",
        title=title,
        header=_HEADER,
        rows=rows,
        conclusion=conclude_sweep(results),
        links=[[_link(run, folder) for run in result.runs] for result in results] if has_links else (),
        notes=() if has_matplotlib() else [NO_CURVES],
        drawings=_write_drawings(folder, results) if has_matplotlib() else (),
        caption=_BANDS if any(result.band for result in results) else "",
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _write_drawings(folder: Path, results: Sequence[VariantResult]) -> list[str]:
    """Draw each category with the baseline, write the files, and return the drawings."""
    drawings = []
    base = [result for result in results if result.variant.name == BASELINE and result.curve[0]]
    for category in dict.fromkeys(r.variant.category for r in results if r.variant.name != BASELINE):
        members = [*base, *(r for r in results if r.variant.category == category and r.curve[0])]
        if not members:
            continue
        several = [r for r in members if r.band is not None]
        svg = curves_svg(
            {r.variant.name: r.curve for r in members},
            title=category,
            unit_interval=True,
            x_label="environment steps",
            y_label="success rate",
            bands={r.variant.name: (r.band.x, r.band.low, r.band.high) for r in several if r.band},
            members={r.variant.name: r.seed_curves for r in several},
        )
        write_text(folder / f"{_file_name(category)}.svg", standalone_svg(svg))
        drawings.append(svg)
    return drawings


def _link(run: SeedRun, folder: Path) -> tuple[str, str]:
    """Return the text of a link to the report or log of a run, and its address relative to the page, if any."""
    report = run.directory / "report.html"
    target = report if report.exists() else run.log if run.log.exists() else None
    text = f"seed {run.seed}" if run.state == "finished" else f"seed {run.seed} ({run.state})"
    return text, "" if target is None else _address(target, folder)


def _address(target: Path, folder: Path) -> str:
    try:
        # Reserved characters, including the colon of a scheme, are percent-encoded.
        return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix().encode(errors="replace"))
    except ValueError:
        return target.resolve().as_uri()  # The file is on another drive.


def _file_name(category: str) -> str:
    """Return a file name for a category in the directory of the sweep."""
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
