"""Report of an offline baseline as a self-contained HTML page: returns, values, losses and configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.figures.axes import own_steps_label
from torchrl_flow.figures.pages import render_page
from torchrl_flow.figures.plots import curves_svg, has_matplotlib
from torchrl_flow.reports.report import NO_CURVES, curve_drawings, plain_value
from torchrl_flow.util.files import write_text

__all__ = ["write_offline_report"]

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
_VALUES = ("q/data", "q/policy", "q/random")


def write_offline_report(
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    returns: Sequence[tuple[str, float, float | None]] = (),
    figures: Mapping[str, float] | None = None,
    curves: Curves | None = None,
    notes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    command: str = "",
) -> Path:
    """Write a self-contained page; all text in it is escaped.

    Args:
        path: file to write, ``.html``.
        title: heading.
        subtitle: a line below it.
        returns: name, mean return and standard error (if known) of the policy and of the references.
        figures: further values by name, such as those of :func:`~torchrl_flow.recsys.q_diagnostics`.
        curves: ``{metric: (steps, values)}``; values of the critics are in one drawing. Without matplotlib, there are
            no drawings.
        notes: paragraphs of plain text.
        config: the script's arguments.
        versions: versions of the packages.
        command: command that made the run.

    Returns:
        The path written.
    """
    if curves and not has_matplotlib():
        notes = [*notes, NO_CURVES]
    page = render_page(
        "offline",
        title=title,
        subtitle=subtitle,
        notes=list(notes),
        returns=[(name, f"{mean:.1f}", "" if error is None else f"{error:.1f}") for name, mean, error in returns],
        figures=[(name, f"{value:.4g}") for name, value in (figures or {}).items()],
        **_drawings(curves or {}),
        command=command,
        config=[(key, plain_value(value)) for key, value in (config or {}).items()],
        versions=list((versions or {}).items()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _drawings(curves: Curves) -> dict[str, list[str]]:
    """Draw the metrics in the order of reports; the values of the critics are one drawing, the first of training."""
    drawings = curve_drawings({name: curve for name, curve in curves.items() if name not in _VALUES})
    values = {name.removeprefix("q/"): curves[name] for name in _VALUES if name in curves}
    if values and has_matplotlib():
        drawing = curves_svg(values, title="value of actions", x_label=own_steps_label(curves), y_label="value")
        drawings["training_drawings"].insert(0, drawing)
    return drawings
