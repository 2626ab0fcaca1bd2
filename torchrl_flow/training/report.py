"""One self-contained HTML page about a run: curves, success, videos, configuration, versions."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.training.evaluation_result import EvaluationResult
from torchrl_flow.training.report_plots import curve_svg
from torchrl_flow.training.report_style import STYLE

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
    sections = [
        _tiles(next(iter(results.values()))) if results else "",
        "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        _section("Results", _result_table(results, "evaluation") if results else ""),
        _section("Sampling steps", _result_table(num_steps, "K") if num_steps else ""),
        _section("Curves", _curves(curves or {})),
        _section("Episodes", _video(Path(video), video_caption) if video else ""),
        _section("Every episode", "".join(_episodes(label, result) for label, result in results.items())),
        _section("How it was made", _provenance(config or {}, versions or {}, command)),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="subtitle">{html.escape(subtitle)}</p>'
        + "".join(sections)
        + "</main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.write_text(page, encoding="utf-8")
    os.replace(staged, path)
    return path


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>{body}</section>" if body else ""


def _tile(label: str, value: str, detail: str = "") -> str:
    return (
        f'<div class="tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="detail">{detail}</div></div>'
    )


def _tiles(result: EvaluationResult) -> str:
    tiles = []
    if result.success_once is not None:
        for label, rate, (low, high) in (
            ("Success once", result.success_once_rate, result.success_once_interval),
            ("Success at end", result.success_at_end_rate, result.success_at_end_interval),
        ):
            tiles.append(_tile(label, f"{100 * rate:.1f} %", f"95 %: {100 * low:.1f} to {100 * high:.1f} %"))
    else:
        tiles.append(_tile("Return", f"{result.returns.mean():.4g}", f"over {result.episodes} episodes"))
    tiles.append(_tile("Episodes", str(result.episodes), f"{result.env_steps} env steps"))
    tiles.append(_tile("Policy call", f"{result.policy_ms:.2f} ms", f"median of {result.policy_calls}"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _result_table(results: Mapping[Any, EvaluationResult], key_name: str) -> str:
    success = any(result.success_once is not None for result in results.values())
    head = f"<th>{key_name}</th>"
    if success:
        head += "<th>success once</th><th></th><th>success at end</th>"
    numbers = ("return", "length", "policy ms", "episodes", "wall s")
    head += "".join(f'<th class="number">{name}</th>' for name in numbers)
    rows = "".join(f"<tr>{_result_row(label, result, success)}</tr>" for label, result in results.items())
    return _table(head, rows, "results")


def _table(head: str, rows: str, kind: str = "plain") -> str:
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="card">{table}</div>'


def _result_row(label: Any, result: EvaluationResult, success: bool) -> str:
    cells = [f"<td>{html.escape(str(label))}</td>"]
    if success and result.success_once is None:
        cells.append("<td>-</td><td></td><td>-</td>")
    elif success:
        low, high = result.success_once_interval
        cells.append(f"<td>{_rate(result.success_once_rate, low, high)}</td>")
        cells.append(f"<td>{_bar(result.success_once_rate, low, high)}</td>")
        cells.append(f"<td>{_rate(result.success_at_end_rate, *result.success_at_end_interval)}</td>")
    numbers = (
        f"{result.returns.mean():.3g}",
        f"{result.lengths.double().mean():.1f}",
        f"{result.policy_ms:.2f}",
        str(result.episodes),
        f"{result.wall_s:.1f}",
    )
    return "".join([*cells, *(f'<td class="number">{number}</td>' for number in numbers)])


def _rate(rate: float, low: float, high: float) -> str:
    return f'{rate:.3f} <span class="interval">[{low:.3f}, {high:.3f}]</span>'


def _bar(rate: float, low: float, high: float) -> str:
    interval = f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"
    return f'<span class="bar"><i style="{interval}"></i><b style="left:{100 * rate:.2f}%"></b></span>'


def _curves(curves: Curves) -> str:
    companions = {name + end for name in curves for end in ("_low", "_high")}
    cards = []
    for name, (steps, values) in sorted(curves.items(), key=lambda item: not item[0].startswith("eval/")):
        if name in companions:
            continue
        low, high = (curves.get(name + end, (None, None))[1] for end in ("_low", "_high"))
        is_rate = low is not None or "success" in name
        svg = curve_svg(steps, values, title=name, low=low, high=high, unit_interval=is_rate)
        cards.append(f'<div class="card">{svg}</div>')
    return f'<div class="curves">{"".join(cards)}</div>' if cards else ""


def _video(path: Path, caption: str) -> str:
    if path.suffix not in _MEDIA_TYPES:
        raise ValueError(f"video must end in one of {sorted(_MEDIA_TYPES)}, got {path.name!r}.")
    data = f"data:{_MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    if path.suffix == ".mp4":
        element = f'<video controls loop muted autoplay playsinline src="{data}"></video>'
    else:
        element = f'<img class="video" alt="{html.escape(caption or "episodes")}" src="{data}">'
    below = f'<p class="caption">{html.escape(caption)}</p>' if caption else ""
    return f'<div class="card">{element}</div>{below}'


def _episodes(label: str, result: EvaluationResult) -> str:
    rows = result.table()
    head = "".join(f'<th class="number">{name}</th>' for name in rows[0])
    body = "".join("<tr>" + "".join(_episode_cell(v) for v in row.values()) + "</tr>" for row in rows)
    return f"<details><summary>{html.escape(label)}: {result.episodes} episodes</summary>{_table(head, body)}</details>"


def _episode_cell(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return f'<td class="number {"yes" if value else "no"}">{"yes" if value else "no"}</td>'
    return f'<td class="number">{value if isinstance(value, int) else f"{value:.4g}"}</td>'


def _provenance(config: Mapping[str, Any], versions: Mapping[str, str], command: str) -> str:
    cards = ""
    for heading, items in (("Configuration", config), ("Versions", versions)):
        if items:
            cells = ((html.escape(str(key)), html.escape(_plain(value))) for key, value in items.items())
            rows = "".join(f'<tr><td class="key">{k}</td><td class="mono">{v}</td></tr>' for k, v in cells)
            cards += _table(f'<th colspan="2">{heading}</th>', rows)
    line = f'<div class="card" style="margin-bottom:12px"><pre>{html.escape(command)}</pre></div>' if command else ""
    return line + (f'<div class="columns">{cards}</div>' if cards else "")


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
