"""One self-contained HTML page about a run: success, curves, videos, configuration, versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.evaluation.result import EvaluationResult
from torchrl_flow.figures.axes import ENV_STEPS, axis_label, metric_section, place_metric, sort_metrics
from torchrl_flow.figures.notebook import MEDIA_TYPES, InlineVideo
from torchrl_flow.figures.pages import render_page
from torchrl_flow.figures.plots import curve_svg, has_matplotlib
from torchrl_flow.util.files import write_text

__all__ = ["NO_CURVES", "curve_drawings", "plain_value", "write_report"]

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
#: Note of a report without curves.
NO_CURVES = "No curves: matplotlib is not installed (pip install 'torchrl-flow[plot]')."
_FILMED = "Times of evaluations that were filmed are left out: rendering takes part of them."
_SEEDS = "These evaluations are not on the same seeds: they differ by their episodes too."


def write_report(
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    results: Mapping[str, EvaluationResult] | None = None,
    num_steps: Mapping[int, EvaluationResult] | None = None,
    curves: Curves | None = None,
    video: str | Path | None = None,
    video_caption: str = "",
    notes: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    command: str = "",
) -> Path:
    """Write a self-contained report, without scripts, fonts or images from other files.

    The order is: success, evaluations during training, video, training curves, and a collapsed section of bookkeeping
    (times, counters, gradient norms). Curves are drawn against environment steps if ``train/env_steps`` is among them,
    and against the run's own steps otherwise.

    Args:
        path: file to write, ``.html``.
        title: heading of the page.
        subtitle: a line below it, such as task, recipe and date.
        results: evaluations by label. The first one is shown at the top of the page.
        num_steps: evaluations by number of sampling steps (:func:`compare_num_steps`).
        curves: ``{metric: (steps, values)}``, see :func:`read_metrics`. A metric with companions ``<metric>_low`` and
            ``<metric>_high`` is drawn with that interval. Without matplotlib, no curves are drawn, and the page notes
            this.
        video: ``.mp4``, ``.webp`` or ``.gif`` to embed.
        video_caption: caption of the video.
        notes: paragraphs of plain text, such as the conditions of the run.
        config: the script's arguments.
        versions: versions of the packages.
        command: command that made the run.

    Returns:
        The path written.

    Raises:
        ValueError: if the video has another format.
    """
    results, num_steps = dict(results or {}), dict(num_steps or {})
    if curves and not has_matplotlib():
        notes = [*notes, NO_CURVES]
    page = render_page(
        "run",
        title=title,
        subtitle=subtitle,
        tiles=_tiles(next(iter(results.values()))) if results else [],
        notes=list(notes),
        results=[_result_row(label, result) for label, result in results.items()],
        results_success=_any_success(results),
        results_remarks=_remarks(results),
        num_steps=[_result_row(label, result) for label, result in num_steps.items()],
        num_steps_success=_any_success(num_steps),
        num_steps_remarks=_remarks(num_steps),
        **curve_drawings(curves or {}),
        video=_video(Path(video), video_caption) if video else None,
        episodes=[_episodes(label, result) for label, result in results.items()],
        command=command,
        config=[(key, plain_value(value)) for key, value in (config or {}).items()],
        versions=list((versions or {}).items()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """Return label, value and detail of the numbers at the top of the page."""
    tiles = []
    if result.success_once is not None:
        for label, rate, (low, high) in (
            ("Success once", result.success_once_rate, result.success_once_interval),
            ("Success at end", result.success_at_end_rate, result.success_at_end_interval),
        ):
            tiles.append((label, f"{100 * rate:.1f} %", f"95 %: {100 * low:.1f} to {100 * high:.1f} %"))
    else:
        tiles.append(("Return", f"{result.returns.mean():.4g}", f"over {result.episodes} episodes"))
    tiles.append(("Episodes", str(result.episodes), f"{result.env_steps} env steps"))
    if not result.filmed:
        tiles.append(("Policy call", f"{result.policy_ms:.2f} ms", f"median of {result.policy_calls}"))
    return tiles


def _any_success(results: Mapping[Any, EvaluationResult]) -> bool:
    return any(result.success_once is not None for result in results.values())


def _remarks(results: Mapping[Any, EvaluationResult]) -> list[str]:
    """Return the reasons why the rows of a table are not comparable."""
    remarks = [_FILMED] if any(result.filmed for result in results.values()) else []
    return [*remarks, _SEEDS] if len({frozenset(result.seeds) for result in results.values()}) > 1 else remarks


def _result_row(label: Any, result: EvaluationResult) -> dict[str, Any]:
    has_success = result.success_once is not None
    return {
        "label": label,
        "once": (result.success_once_rate, result.success_once_interval) if has_success else None,
        "at_end": (result.success_at_end_rate, result.success_at_end_interval) if has_success else None,
        "numbers": (
            f"{result.returns.mean():.3g}",
            f"{result.lengths.double().mean():.1f}",
            "-" if result.filmed else f"{result.policy_ms:.2f}",
            str(result.episodes),
            "-" if result.filmed else f"{result.wall_s:.1f}",
        ),
    }


def curve_drawings(curves: Curves) -> dict[str, list[str]]:
    """Return the drawings of each section in order, by the names ``<section>_drawings`` of the templates.

    Args:
        curves: ``{metric: (steps, values)}``.
    """
    drawings: dict[str, list[str]] = {f"{name}_drawings": [] for name in ("evaluation", "training", "bookkeeping")}
    if not has_matplotlib():
        return drawings
    companions = {name + end for name in curves for end in ("_low", "_high")}
    for name in sort_metrics([name for name in curves if name not in companions]):
        drawings[f"{metric_section(name)}_drawings"].append(_drawing(curves, name))
    return drawings


def _drawing(curves: Curves, name: str) -> str:
    # Environment steps are not drawn against themselves.
    against = "" if name == ENV_STEPS else ENV_STEPS
    x, y, label = place_metric(curves, name, against)
    if not x and curves[name][0]:
        x, y, label = place_metric(curves, name, "")
        against = ""
    ends = [name + end for end in ("_low", "_high")]
    whole = all(end in curves and list(curves[end][0]) == list(curves[name][0]) for end in ends)
    low, high = (place_metric(curves, end, against)[1] if whole else None for end in ends)
    # A metric that is named success but leaves [0, 1] is not clipped.
    in_unit = all(-0.01 <= value <= 1.01 for value in y if not math.isnan(value))
    unit = in_unit and (whole or "success" in name)
    return curve_svg(x, y, title=name, low=low, high=high, unit_interval=unit, x_label=label, y_label=axis_label(name))


def _video(path: Path, caption: str) -> dict[str, Any]:
    if path.suffix not in MEDIA_TYPES:
        raise ValueError(f"video must end in one of {sorted(MEDIA_TYPES)}, got {path.name!r}.")
    return InlineVideo(path.read_bytes(), path.suffix, caption).content


def _episodes(label: str, result: EvaluationResult) -> dict[str, Any]:
    rows = result.table()
    cells = [[_episode_cell(value) for value in row.values()] for row in rows]
    return {"label": label, "count": result.episodes, "head": list(rows[0]), "rows": cells}


def _episode_cell(value: bool | int | float) -> tuple[str, str]:
    """Return the CSS classes and the text of a cell."""
    if isinstance(value, bool):
        text = "yes" if value else "no"
        return f"number {text}", text
    return "number", str(value) if isinstance(value, int) else f"{value:.4g}"


def plain_value(value: Any) -> str:
    """Return a value of a configuration as text."""
    return ", ".join(map(plain_value, value)) if isinstance(value, (list, tuple)) else str(value)
