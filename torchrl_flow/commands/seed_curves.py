"""Mean and range of a metric over the seeds of one configuration, and their drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from torchrl_flow.commands.run_files import RunFiles
from torchrl_flow.figures.plots import _figure_svg, plain_text
from torchrl_flow.reports.curves import run_curve
from torchrl_flow.runs.metrics import read_metrics
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["SeedCurve", "draw_bands", "pick_metric", "seed_curve"]

# Readable on light and dark pages alike (the palette of Okabe and Ito).
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LINES = ("-", "--", ":", "-.")
PREFERRED = ("eval/success_once", "train/success", "eval/return", "train/return")


class SeedCurve(NamedTuple):
    """Mean, lowest and highest value over the seeds at each x value."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def pick_metric(runs: Sequence[RunFiles], wanted: str | None) -> str | None:
    """Return the metric to draw: the requested one, or the first of the default ones that a run has.

    Raises:
        SystemExit: if no run has the requested metric. The error names the most similar one.
    """
    files = [run.directory / "metrics.csv" for run in runs]
    known = list(dict.fromkeys(name for file in files if file.exists() for name in read_metrics(file)))
    if wanted is not None and wanted not in known:
        raise SystemExit(
            f"No run has the metric {wanted!r}.{did_you_mean(wanted, known)} They have: {', '.join(known) or 'none'}."
        )
    return wanted or next((name for name in PREFERRED if name in known), None)


def seed_curve(runs: Sequence[RunFiles], metric: str, against: str) -> SeedCurve | None:
    """Return the curve of a group over the common range of its runs with the metric; ``None`` if no run has it.

    Runs may have different x values: values between two points are interpolated.
    """
    curves = []
    for run in runs:
        file = run.directory / "metrics.csv"
        if file.exists() and metric in read_metrics(file):
            x, y = (np.asarray(part, dtype=float) for part in run_curve(run.directory, metric, against=against))
            kept = np.isfinite(x) & np.isfinite(y)
            if kept.any():
                order = np.argsort(x[kept], kind="stable")
                curves.append((x[kept][order], y[kept][order]))
    if not curves:
        return None
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):  # The ranges of the runs do not overlap.
        return None
    values = np.stack([np.interp(places, x, y) for x, y in curves])
    return SeedCurve(places, values.mean(0), values.min(0), values.max(0), len(curves))


def draw_bands(curves: Mapping[str, SeedCurve], *, title: str, x_label: str = "step", y_label: str = "") -> str:
    """Return the curves of all groups with bands over their seeds, as the text of an ``<svg>`` element.

    Args:
        curves: curves by name of the group.
        title: title of the drawing.
        x_label: label of the x axis.
        y_label: label of the y axis.

    Raises:
        RuntimeError: if matplotlib is missing. The error names the extra.
    """

    def draw(axes) -> None:
        for i, curve in enumerate(curves.values()):
            colour, line = _HUES[i % len(_HUES)], _LINES[i // len(_HUES) % len(_LINES)]
            if curve.seeds > 1:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
            marker = "o" if len(curve.x) <= 30 else ""
            axes.plot(curve.x, curve.mean, color=colour, linestyle=line, linewidth=1.6, marker=marker, markersize=3,
                      label=str(i))  # fmt: skip
        if curves:
            # Escaped, so that a name is never parsed as a formula.
            for text, (name, curve) in zip(axes.legend(frameon=False, fontsize=8).get_texts(), curves.items()):
                text.set_parse_math(False)
                text.set_text(plain_text(f"{name}, {curve.seeds} seed{'s' if curve.seeds > 1 else ''}"))

    unit = "success" in title and all(c.low.min() >= 0 and c.high.max() <= 1 for c in curves.values())
    return _figure_svg(draw, title=title, unit_interval=unit, size=(6.4, 3.8), x_label=x_label, y_label=y_label)
