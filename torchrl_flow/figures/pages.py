"""Templates of the HTML pages. Jinja escapes all values except drawings, which are markup of this package."""

from __future__ import annotations

from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from torchrl_flow.figures.style import STYLE

__all__ = ["render_page"]

_PAGE = """
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{# Pages hold no script; with this a browser would run none. #}
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<title>{{ title }}</title><style>{{ style }}</style></head><body><main>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</main></body></html>
"""

_MACROS = """
{% macro section(heading) %}<section><h2>{{ heading }}</h2>{{ caller() }}</section>{% endmacro %}

{% macro rate(value, interval) -%}
{% set low = "%.3f"|format(interval[0]) %}
{% set high = "%.3f"|format(interval[1]) %}
{{ "%.3f"|format(value) }} <span class="interval">[{{ low }}, {{ high }}]</span>
{%- endmacro %}

{% macro bar(value, interval) -%}
{% set left = "%.2f"|format(100 * interval[0]) %}
{% set width = "%.2f"|format(100 * (interval[1] - interval[0])) %}
<span class="bar"><i style="left:{{ left }}%;width:{{ width }}%"></i>
<b style="left:{{ "%.2f"|format(100 * value) }}%"></b></span>
{%- endmacro %}

{% macro result_table(rows, name, success) %}
<div class="card"><table class="results"><thead><tr><th>{{ name }}</th>
{% if success %}<th>success once</th><th></th><th>success at end</th>{% endif %}
{% for head in ("return", "length", "policy ms", "episodes", "wall s") %}<th class="number">{{ head }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}
<tr><td>{{ row.label }}</td>
{% if success and row.once is none %}<td>-</td><td></td><td>-</td>
{% elif success %}<td>{{ rate(*row.once) }}</td><td>{{ bar(*row.once) }}</td><td>{{ rate(*row.at_end) }}</td>{% endif %}
{% for number in row.numbers %}<td class="number">{{ number }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}

{% macro pairs(heading, items) %}
<div class="card"><table class="plain"><thead><tr><th colspan="2">{{ heading }}</th></tr></thead><tbody>
{% for key, value in items %}<tr><td class="key">{{ key }}</td><td class="mono">{{ value }}</td></tr>{% endfor %}
</tbody></table></div>
{% endmacro %}

{% macro curves(drawings) %}
<div class="curves">{% for svg in drawings %}<div class="card">{{ svg }}</div>{% endfor %}</div>
{% endmacro %}

{% macro folded_curves(heading, drawings) %}
<section><details><summary>{{ heading }}: {{ drawings|length }} curve{{ "s" if drawings|length != 1 }}</summary>
{{ curves(drawings) }}</details></section>
{% endmacro %}

{% macro figure_table(head, rows) %}
<div class="card"><table class="results"><thead><tr>
{%- for cell in head %}<th{% if not loop.first %} class="number"{% endif %}>{{ cell }}</th>{% endfor -%}
</tr></thead><tbody>
{%- for row in rows %}<tr>
{%- for cell in row %}<td{% if not loop.first %} class="number"{% endif %}>{{ cell }}</td>{% endfor -%}
</tr>{% endfor -%}
</tbody></table></div>
{% endmacro %}

{% macro film(video) %}
{% if video.is_film %}<video controls loop muted autoplay playsinline src="{{ video.data }}"></video>
{% else %}<img class="video" alt="{{ video.caption or "episodes" }}" src="{{ video.data }}">{% endif %}
{% endmacro %}

{% macro how_made(command, config, versions) %}
{% if command or config or versions %}
{% call section("How it was made") %}
{% if command %}<div class="card" style="margin-bottom:12px"><pre>{{ command }}</pre></div>{% endif %}
{% if config or versions %}
<div class="columns">
{% if config %}{{ pairs("Configuration", config) }}{% endif %}
{% if versions %}{{ pairs("Versions", versions) }}{% endif %}
</div>
{% endif %}
{% endcall %}
{% endif %}
{% endmacro %}
"""

_RUN = """
{% extends "page" %}
{% from "macros" import section, result_table, curves, folded_curves, film, how_made %}
{% block body %}
<p class="subtitle">{{ subtitle }}</p>
{% if tiles %}
<div class="tiles">
{% for label, value, detail in tiles %}
<div class="tile"><div class="label">{{ label }}</div><div class="value">{{ value }}</div>
<div class="detail">{{ detail }}</div></div>
{% endfor %}
</div>
{% endif %}
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% if results %}
{% call section("Results") %}{{ result_table(results, "evaluation", results_success) }}
{% for remark in results_remarks %}<p class="caption">{{ remark }}</p>{% endfor %}
{% endcall %}
{% endif %}
{% if num_steps %}
{% call section("Sampling steps") %}{{ result_table(num_steps, "K", num_steps_success) }}
{% for remark in num_steps_remarks %}<p class="caption">{{ remark }}</p>{% endfor %}
{% endcall %}
{% endif %}
{% if evaluation_drawings %}
{% call section("Evaluations during training") %}{{ curves(evaluation_drawings) }}{% endcall %}
{% endif %}
{% if video %}
{% call section("Episodes") %}
<div class="card">{{ film(video) }}</div>
{% if video.caption %}<p class="caption">{{ video.caption }}</p>{% endif %}
{% endcall %}
{% endif %}
{% if training_drawings %}
{% call section("Training curves") %}{{ curves(training_drawings) }}{% endcall %}
{% endif %}
{% if episodes %}
{% call section("Every episode") %}
{% for table in episodes %}
<details><summary>{{ table.label }}: {{ table.count }} episodes</summary>
<div class="card"><table class="plain">
<thead><tr>{% for name in table.head %}<th class="number">{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}
<tr>{% for style, text in row %}<td class="{{ style }}">{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div></details>
{% endfor %}
{% endcall %}
{% endif %}
{{ how_made(command, config, versions) }}
{% if bookkeeping_drawings %}{{ folded_curves("Bookkeeping", bookkeeping_drawings) }}{% endif %}
{% endblock %}
"""

_OFFLINE = """
{% extends "page" %}
{% from "macros" import section, figure_table, curves, folded_curves, how_made %}
{% block body %}
<p class="subtitle">{{ subtitle }}</p>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% if returns %}
{% call section("Mean return") %}{{ figure_table(["policy", "return", "standard error"], returns) }}{% endcall %}
{% endif %}
{% if evaluation_drawings %}
{% call section("Evaluations during training") %}{{ curves(evaluation_drawings) }}{% endcall %}
{% endif %}
{% if figures %}
{% call section("Values and actions") %}{{ figure_table(["figure", "value"], figures) }}{% endcall %}
{% endif %}
{% if training_drawings %}
{% call section("Training curves") %}{{ curves(training_drawings) }}{% endcall %}
{% endif %}
{{ how_made(command, config, versions) }}
{% if bookkeeping_drawings %}{{ folded_curves("Bookkeeping", bookkeeping_drawings) }}{% endif %}
{% endblock %}
"""

_SWEEP = """
{% extends "page" %}
{% from "macros" import curves %}
{% block body %}
{% if conclusion %}
<section><h2>Conclusion</h2>{% for line in conclusion %}<p>{{ line }}</p>{% endfor %}</section>
{% endif %}
<h2>Configurations</h2>
<p class="subtitle">Success is that of the final evaluations over all seeds, with its 95 % interval; steps to baseline
are environment steps until an evaluation reached the baseline's final success; the curve's variance is half that of the
differences of successive evaluations.</p>
<div class="card"><table class="results"><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}
{% if links %}<th>runs</th>{% endif %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}
{% if links %}<td class="wrap">{% for text, target in links[loop.index0] %}
{% if target %}<a href="{{ target }}">{{ text }}</a>{% else %}{{ text }}{% endif %}{% if not loop.last %}, {% endif %}
{% endfor %}</td>{% endif %}</tr>{% endfor %}
</table></div>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
{% if drawings %}
<h2>Success during training</h2>
{% if caption %}<p class="subtitle">{{ caption }}</p>{% endif %}
{{ curves(drawings) }}
{% endif %}
{% endblock %}
"""

_VIDEO = """
{% from "macros" import film %}
<figure style="margin:0">{{ film(video) }}{% if video.caption %}<figcaption>{{ video.caption }}</figcaption>{% endif %}
</figure>
"""

_RESULT = """
{% from "macros" import film %}
<table><tbody>
{% for name, value in rows %}<tr><th style="text-align:left">{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</tbody></table>
<details><summary>Every episode</summary><table><thead><tr>
{%- for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in cells %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></details>
{% if video %}{{ film(video) }}{% endif %}
"""

_TEMPLATES = {
    "page": _PAGE.lstrip(),
    "macros": _MACROS,
    "run": _RUN,
    "offline": _OFFLINE,
    "sweep": _SWEEP,
    "video": _VIDEO,
    "result": _RESULT,
}
_environment = Environment(
    loader=DictLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(name: str, **content: Any) -> str:
    """Return a page or a part of one, in which all text is escaped.

    Args:
        name: name of the page: ``"run"``, ``"offline"`` or ``"sweep"``; ``"video"`` or ``"result"`` in a notebook.
        **content: values of the template. Values whose names end in ``drawings`` are ``<svg>`` elements as text from
            :mod:`~torchrl_flow.figures.plots`; all other values are escaped.
    """
    given = {"conclusion": (), "links": (), "notes": (), "caption": "", "drawings": (), **content}
    for key, value in given.items():
        if key.endswith("drawings"):
            given[key] = [Markup(svg) for svg in value]
    return _environment.get_template(name).render(**given, style=Markup(STYLE))
