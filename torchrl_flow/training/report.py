"""One self-contained HTML page about a run: curves, success, videos, configuration, versions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.training.evaluation_result import EvaluationResult
from torchrl_flow.training.files import write_text
from torchrl_flow.training.html_pages import render_page
from torchrl_flow.training.report_plots import curve_svg

__all__ = ["write_report"]

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
_MEDIA_TYPES = {".mp4": "video/mp4", ".webp": "image/webp", ".gif": "image/gif"}


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
    """Write a report that needs nothing but the file: no script, no font, no image from elsewhere.

    Args:
        path: file to write, ``.html``.
        title: heading.
        subtitle: a line below it, such as task, recipe and date.
        results: evaluations by label, the most important first: its figures head the page.
        num_steps: evaluations by number of sampling steps (:func:`compare_num_steps`).
        curves: ``{metric: (steps, values)}``, as :func:`read_metrics` gives them. A metric with companions
            ``<metric>_low`` and ``<metric>_high`` is drawn with that interval.
        video: ``.mp4``, ``.webp`` or ``.gif`` to embed.
        video_caption: what it shows.
        notes: paragraphs of plain text, such as the conditions of the run.
        config: the script's arguments.
        versions: versions of the packages.
        command: command that made the run.

    Returns:
        The path written.

    Raises:
        ValueError: if the video is of another kind.
        RuntimeError: if there are curves to draw and matplotlib is missing.
    """
    results, num_steps = dict(results or {}), dict(num_steps or {})
    page = render_page(
        "run",
        title=title,
        subtitle=subtitle,
        tiles=_tiles(next(iter(results.values()))) if results else [],
        notes=list(notes),
        results=[_result_row(label, result) for label, result in results.items()],
        results_success=_any_success(results),
        num_steps=[_result_row(label, result) for label, result in num_steps.items()],
        num_steps_success=_any_success(num_steps),
        drawings=_curves(curves or {}),
        video=_video(Path(video), video_caption) if video else None,
        episodes=[_episodes(label, result) for label, result in results.items()],
        command=command,
        config=[(key, _plain(value)) for key, value in (config or {}).items()],
        versions=list((versions or {}).items()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """Label, value and detail of the figures at the head of the page."""
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
    tiles.append(("Policy call", f"{result.policy_ms:.2f} ms", f"median of {result.policy_calls}"))
    return tiles


def _any_success(results: Mapping[Any, EvaluationResult]) -> bool:
    return any(result.success_once is not None for result in results.values())


def _result_row(label: Any, result: EvaluationResult) -> dict[str, Any]:
    has_success = result.success_once is not None
    return {
        "label": label,
        "once": (result.success_once_rate, result.success_once_interval) if has_success else None,
        "at_end": (result.success_at_end_rate, result.success_at_end_interval) if has_success else None,
        "numbers": (
            f"{result.returns.mean():.3g}",
            f"{result.lengths.double().mean():.1f}",
            f"{result.policy_ms:.2f}",
            str(result.episodes),
            f"{result.wall_s:.1f}",
        ),
    }


def _curves(curves: Curves) -> list[str]:
    companions = {name + end for name in curves for end in ("_low", "_high")}
    drawings = []
    for name, (steps, values) in sorted(curves.items(), key=lambda item: not item[0].startswith("eval/")):
        if name in companions:
            continue
        low, high = (curves.get(name + end, (None, None))[1] for end in ("_low", "_high"))
        is_rate = low is not None or "success" in name
        drawings.append(curve_svg(steps, values, title=name, low=low, high=high, unit_interval=is_rate))
    return drawings


def _video(path: Path, caption: str) -> dict[str, Any]:
    if path.suffix not in _MEDIA_TYPES:
        raise ValueError(f"video must end in one of {sorted(_MEDIA_TYPES)}, got {path.name!r}.")
    data = f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    return {"data": data, "caption": caption, "is_film": path.suffix == ".mp4"}


def _episodes(label: str, result: EvaluationResult) -> dict[str, Any]:
    rows = result.table()
    cells = [[_episode_cell(value) for value in row.values()] for row in rows]
    return {"label": label, "count": result.episodes, "head": list(rows[0]), "rows": cells}


def _episode_cell(value: bool | int | float) -> tuple[str, str]:
    """Classes and text of a cell."""
    if isinstance(value, bool):
        text = "yes" if value else "no"
        return f"number {text}", text
    return "number", str(value) if isinstance(value, int) else f"{value:.4g}"


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
