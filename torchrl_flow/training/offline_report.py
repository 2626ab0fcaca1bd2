"""The report of an offline baseline as one self-contained HTML page: returns, values, losses, configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from torchrl_flow.training.files import write_text
from torchrl_flow.training.report_plots import curve_svg, curves_svg
from torchrl_flow.training.report_style import STYLE

__all__ = ["write_offline_report"]

Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]
_has_matplotlib = importlib.util.find_spec("matplotlib") is not None
_VALUES = ("q/data", "q/policy", "q/random")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ title }}</h1><p class="subtitle">{{ subtitle }}</p>
{%- macro table(head, rows) %}
<div class="card"><table class="results"><thead><tr>
{%- for cell in head %}<th {%- if not loop.first %} class="number" {%- endif %}>{{ cell }}</th>{% endfor -%}
</tr></thead><tbody>
{%- for row in rows %}<tr>
{%- for cell in row %}<td {%- if not loop.first %} class="number" {%- endif %}>{{ cell }}</td>{% endfor -%}
</tr>{% endfor -%}
</tbody></table></div>
{%- endmacro %}
{%- for note in notes %}<p>{{ note }}</p>{% endfor %}
{%- if returns %}<section><h2>Mean return</h2>
{{- table(["policy", "return", "standard error"], returns) }}</section>{% endif %}
{%- if figures %}<section><h2>Values and actions</h2>{{ table(["figure", "value"], figures) }}</section>{% endif %}
{%- if curves %}<section><h2>Curves</h2><div class="curves">
{%- for svg in curves %}<div class="card">{{ svg }}</div>{% endfor %}</div></section>{% endif %}
<section><h2>How it was made</h2>
{%- if command %}<div class="card"><pre>{{ command }}</pre></div>{% endif %}<div class="columns">
{%- for heading, items in tables %}<div class="card"><table class="plain">
<thead><tr><th colspan="2">{{ heading }}</th></tr></thead><tbody>
{%- for key, value in items.items() %}<tr><td class="key">{{ key }}</td><td class="mono">{{ value }}</td></tr>
{%- endfor %}</tbody></table></div>{% endfor %}
</div></section></main></body></html>
"""


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
    """Write a page that needs nothing but the file; all text in it is escaped.

    Args:
        path: file to write, ``.html``.
        title: heading.
        subtitle: a line below it.
        returns: name, mean return and standard error, where known, of the policy and of what it is compared with.
        figures: further figures by name, such as those of :func:`~torchrl_flow.training.q_diagnostics`.
        curves: ``{metric: (steps, values)}``; values of the critics go into one drawing. None are drawn without
            matplotlib.
        notes: paragraphs of plain text.
        config: the script's arguments.
        versions: versions of the packages.
        command: command that made the run.

    Returns:
        The path written.
    """
    if curves and not _has_matplotlib:
        notes = [*notes, "No curves: matplotlib is not installed (pip install 'torchrl-flow[plot]')."]
    template = jinja2.Environment(autoescape=True).from_string(_PAGE)
    page = template.render(
        title=title,
        subtitle=subtitle,
        style=Markup(STYLE),
        notes=notes,
        returns=[(name, f"{mean:.1f}", "" if error is None else f"{error:.1f}") for name, mean, error in returns],
        figures=[(name, f"{value:.4g}") for name, value in (figures or {}).items()],
        curves=_drawings(curves or {}) if _has_matplotlib else [],
        command=command,
        tables=[(name, items) for name, items in (("Configuration", config), ("Versions", versions)) if items],
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _drawings(curves: Curves) -> list[Markup]:
    """Draw each metric: returns first, then the values of the critics together, then the others."""
    values = {name.removeprefix("q/"): curves[name] for name in _VALUES if name in curves}
    single = sorted((name for name in curves if name not in _VALUES), key=lambda name: not name.startswith("eval/"))
    own = [curve_svg(*curves[name], title=name) for name in single]
    together = [curves_svg(values, title="value of actions")] if values else []
    returns = sum(name.startswith("eval/") for name in single)
    # The drawings are ours: text in them, such as the names of metrics, is escaped where they are made.
    return [Markup(svg) for svg in [*own[:returns], *together, *own[returns:]]]
