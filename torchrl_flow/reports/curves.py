"""Drawing of one metric of several runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from torchrl_flow.figures.axes import axis_label, is_rate, own_steps_label, place_metric
from torchrl_flow.figures.plots import curves_svg, standalone_svg
from torchrl_flow.figures.tables import markdown_table
from torchrl_flow.options.names import WritableFile
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.types import Count, check_options
from torchrl_flow.reports.seed_bands import group_by_seed, run_labels_of, seed_band
from torchrl_flow.runs.metrics import read_metrics
from torchrl_flow.util.files import write_text

__all__ = ["CurvesArgs", "draw_curves", "reach_table", "run_curve", "window_means"]

Metrics = Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclasses.dataclass
class CurvesArgs:
    """Draw a metric of several runs against environment steps or seconds, as an SVG file.

    Runs that differ only in their seed become one curve: their mean, a band of plus and minus one standard deviation
    over the seeds, and a thin line for each run.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """directories of runs"""
    metric: str = "train/success"
    """metric on the y axis"""
    against: str = "train/env_steps"
    """metric on the x axis; the run's own steps if a run has no such metric"""
    window: Count = 1
    """number of consecutive values that are averaged"""
    reaches: float | None = None
    """also print the x value and the seconds of training at which each run first reaches this value"""
    title: str | None = None
    """heading; the metric by default"""
    output: WritableFile = "curves.svg"
    """file to write"""

    def __call__(self) -> str:
        """Draw, and return the path, preceded by the table if it was requested."""
        check_options(self)
        with refusals_in_one_line():
            text = [str(draw_curves(self).resolve())]
            if self.reaches is not None:
                against = (self.against, "train/wall_s")
                text.insert(0, reach_table(self.runs, self.metric, self.reaches, against=against))
        return "\n".join(text)


def run_curve(folder: str | Path, metric: str, *, against: str, window: int = 1) -> tuple[list[float], list[float]]:
    """Return the x and y values of a metric of a run, and the label of the x axis.

    Args:
        folder: directory of the run.
        metric: name of the metric on the y axis.
        against: metric on the x axis; the run's own steps if it has no metric of that name.
        window: number of successive values that are averaged; their x values are averaged in the same way.

    Raises:
        ValueError: if the run has no such metric, or ``window`` is below 1. The error names the metrics of the run.
        FileNotFoundError: if the run does not exist.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}.")
    x, y, _ = place_metric(_read(folder, metric), metric, against)
    return window_means(x, window), window_means(y, window)


def _read(folder: str | Path, metric: str) -> Metrics:
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name the directory of a run.")
    found = read_metrics(path)
    if metric not in found:
        raise ValueError(f"{folder} has no metric {metric!r}; it has {', '.join(found)}.")
    return found


def window_means(values: Sequence[float], window: int) -> list[float]:
    """Average values over consecutive windows; the last one may be shorter."""
    parts = [values[i : i + window] for i in range(0, len(values), window)]
    return [sum(part) / len(part) for part in parts]


def reach_table(runs: Sequence[str | Path], metric: str, value: float, *, against: Sequence[str]) -> str:
    """Return a Markdown table of the points at which each run first reaches a value of a metric.

    Args:
        runs: directories of the runs.
        metric: name of the metric.
        value: value to reach.
        against: metrics whose values at that point are listed. A cell is empty if the run did not reach the value or
            has no such metric.

    Raises:
        ValueError: if a run has no such metric.
    """
    rows = []
    for run, label in zip(runs, run_labels_of(runs)):
        found = _read(run, metric)
        row = [label]
        for name in against:
            curve = zip(*place_metric(found, metric, name)[:2]) if name in found else ()
            row.append(next((f"{place:.0f}" for place, height in curve if height >= value), ""))
        rows.append(row)
    return markdown_table(["run", *against], rows)


def draw_curves(args: CurvesArgs) -> Path:
    """Draw the curves and return the file.

    Raises:
        ValueError: if no run is named, a run is named twice, or a run has no such metric.
    """
    if not args.runs:
        raise ValueError("name at least one run.")
    curves, bands, members = {}, {}, {}
    for label, folders in group_by_seed(args.runs).items():
        own = [run_curve(run, args.metric, against=args.against, window=args.window) for run in folders]
        if len(own) == 1:
            curves[label] = own[0]
            continue
        band = seed_band(own)
        curves[label], bands[label], members[label] = (band.x, band.mean), (band.x, band.low, band.high), own
    drawn = [*curves.values(), *(curve for own in members.values() for curve in own)]
    svg = curves_svg(
        curves,
        title=args.title or args.metric,
        unit_interval=is_rate(args.metric) and max((value for _, y in drawn for value in y), default=0.0) <= 1,
        x_label=_shared_label(args),
        y_label=axis_label(args.metric),
        bands=bands,
        members=members,
    )
    path = Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, standalone_svg(svg))
    return path


def _shared_label(args: CurvesArgs) -> str:
    """Return the label of the x axis: one label, or all labels if the runs have different ones."""
    found = [_read(run, args.metric) for run in args.runs]
    labels = [axis_label(args.against) if args.against in run else own_steps_label(run) for run in found]
    return " or ".join(dict.fromkeys(labels))
