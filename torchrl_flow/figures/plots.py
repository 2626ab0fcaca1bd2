"""Plots as inline SVG that uses the light or dark colours of the page."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

__all__ = ["bars_svg", "curve_svg", "curves_svg", "has_matplotlib", "plain_text", "standalone_svg"]

_has_matplotlib = importlib.util.find_spec("matplotlib") is not None

# Placeholders for colours of the page's style sheet: an SVG inside HTML may name its variables.
_INK, _MUTED, _GRID, _LINE = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--rule)", _LINE: "var(--accent)"}
# Readable on light and dark pages alike (the palette of Okabe and Ito).
_HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MAX_POINTS = 400
Curve = tuple[Sequence[float], Sequence[float]]
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


def has_matplotlib() -> bool:
    """Return whether matplotlib, which drawings need, is installed."""
    return _has_matplotlib


def curve_svg(
    steps: Sequence[float],
    values: Sequence[float],
    *,
    title: str,
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    unit_interval: bool = False,
    x_label: str = "step",
    y_label: str = "",
) -> str:
    """Return one curve, with its interval if given, as the text of an ``<svg>`` element.

    Args:
        steps: x values, increasing.
        values: y values.
        title: heading of the curve.
        low: lower end of the interval of each value.
        high: upper end of the interval of each value.
        unit_interval: draw y from 0 to 1.
        x_label: label of the x axis, such as ``"environment steps"``.
        y_label: label of the y axis, such as ``"success rate"``.

    Raises:
        RuntimeError: if matplotlib is missing. The error names the extra.
    """

    def draw(axes) -> None:
        _draw(axes, steps, values, low, high)

    return _figure_svg(draw, title=title, unit_interval=unit_interval, x_label=x_label, y_label=y_label)


def curves_svg(
    curves: Mapping[str, Curve],
    *,
    title: str,
    unit_interval: bool = False,
    x_label: str = "step",
    y_label: str = "",
    bands: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] | None = None,
    members: Mapping[str, Sequence[Curve]] | None = None,
    log_x: bool = False,
    markers: bool = False,
) -> str:
    """Return several curves in one drawing, the first in the text's colour, as the text of an ``<svg>`` element.

    Args:
        curves: x and y values of each, by name.
        title: heading of the drawing.
        unit_interval: draw y from 0 to 1.
        x_label: label of the x axis, such as ``"environment steps"``.
        y_label: label of the y axis, such as ``"success rate"``.
        bands: x, lower and upper end of a band around a curve, by the curve's name.
        members: individual curves behind a mean curve, by its name, drawn thin in its colour.
        log_x: draw x on a logarithmic scale.
        markers: mark the points.

    Raises:
        RuntimeError: if matplotlib is missing. The error names the extra.
    """

    def draw(axes) -> None:
        lines = []
        for i, (name, (x, y)) in enumerate(curves.items()):
            colour = _INK if i == 0 else _HUES[(i - 1) % len(_HUES)]
            for own_x, own_y in (members or {}).get(name, ()):
                axes.plot(own_x, own_y, color=colour, linewidth=0.7, alpha=0.45)
            if name in (bands or {}):
                axes.fill_between(*(bands or {})[name], color=colour, alpha=0.15, linewidth=0)
            style = {"linestyle": "--" if i == 0 else "-", "marker": "o" if markers else "", "markersize": 3.5}
            lines += axes.plot(x, y, color=colour, linewidth=1.6, **style)
        if log_x:
            axes.set_xscale("log")
        # Texts are set after the legend is made, since the legend skips names that begin with an underscore.
        legend = axes.legend(lines, [str(i) for i in range(len(lines))], frameon=False, fontsize=8)
        for text, name in zip(legend.get_texts(), curves):
            # Escaped, so that a name is never parsed as a formula.
            text.set_parse_math(False)
            text.set_text(plain_text(name))

    labels = {"x_label": x_label, "y_label": y_label, "log_x": log_x}
    return _figure_svg(draw, title=title, unit_interval=unit_interval, size=(5.2, 3.2), **labels)


def bars_svg(
    heights: Mapping[str, float],
    *,
    title: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    unit_interval: bool = False,
    y_label: str = "",
) -> str:
    """Return a bar for each value, with its interval if given, as the text of an ``<svg>`` element.

    Args:
        heights: values by name.
        title: heading of the drawing.
        intervals: lower and upper end of each, by name.
        unit_interval: draw y from 0 to 1.
        y_label: label of the y axis.

    Raises:
        RuntimeError: if matplotlib is missing. The error names the extra.
    """

    def draw(axes) -> None:
        places, values = list(range(len(heights))), list(heights.values())
        axes.bar(places, values, color=_LINE, width=0.6)
        if intervals:
            ends = [intervals[name] for name in heights]
            spans = [(value - low, high - value) for value, (low, high) in zip(values, ends)]
            axes.errorbar(places, values, yerr=list(zip(*spans)), fmt="none", ecolor=_INK, capsize=4)
        # Escaped, so that names are never parsed as formulas.
        axes.set_xticks(places, [plain_text(name) for name in heights], parse_math=False)

    size = (1.6 + 1.1 * len(heights), 3.0)
    return _figure_svg(draw, title=title, unit_interval=unit_interval, size=size, y_label=y_label, numbers_at_x=False)


def standalone_svg(svg: str) -> str:
    """Make an SVG file from an element of a page by adding the name space and the page's colours."""
    colours = "--ink: #1d2430; --muted: #667085; --rule: #e4e6ea; --accent: #2563c9; --sans: sans-serif"
    return svg.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" style="{colours}"', 1)


def _figure_svg(
    draw: Callable[[Any], None],
    *,
    title: str,
    unit_interval: bool,
    size: tuple[float, float] = (4.2, 2.5),
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    numbers_at_x: bool = True,
) -> str:
    if not _has_matplotlib:
        raise RuntimeError("Drawings need matplotlib, in the extra `plot`: pip install 'torchrl-flow[plot]'.")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    title = plain_text(title)
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _GRID,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
    }
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK, parse_math=False)
        axes.set_xlabel(plain_text(x_label), parse_math=False)
        axes.set_ylabel(plain_text(y_label), parse_math=False)
        if numbers_at_x:
            axes.xaxis.set_major_formatter(_short_number)
            if not log_x:
                axes.locator_params(axis="x", nbins=5)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        if unit_interval:
            axes.set_ylim(-0.03, 1.03)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _embed(buffer.getvalue(), title)


def _draw(axes, steps, values, low, high) -> None:
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if low is not None and high is not None:
        axes.fill_between(x, low, high, color=_LINE, alpha=0.18, linewidth=0)
    if len(x) > _MAX_POINTS:
        axes.plot(*_binned(x, y), color=_LINE, linewidth=1.4)
    else:
        axes.plot(x, y, color=_LINE, linewidth=1.6, marker="o" if len(x) <= 30 else "", markersize=3.5)


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over groups of neighbouring points, to limit the number of points; NaN values are left out."""
    bins = np.array_split(np.arange(len(x)), _MAX_POINTS)
    kept = [b for b in bins if np.isfinite(y[b]).any()]
    return np.array([x[b].mean() for b in kept]), np.array([np.nanmean(y[b]) for b in kept])


def _short_number(value: float, _: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _embed(svg: str, title: str) -> str:
    """Return the bare element, without XML prologue, external references or sizes.

    The element is parsed and written again, so that text cannot become markup.
    """
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    # Identifiers are unique only within a drawing, and a page holds many drawings.
    prefix = f"d{hashlib.sha256(title.encode()).hexdigest()[:12]}-"
    for parent in root.iter():
        for child in [child for child in parent if child.tag == f"{_SVG}metadata"]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        attributes = {name.removeprefix(_XLINK): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            element.set(name, _attribute(name, value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    """Return an attribute with unique identifiers and the page's colours and font."""
    if name == "id":
        return prefix + value
    if name == "href":
        return value.replace("#", f"#{prefix}", 1)
    for placeholder, variable in _VARIABLES.items():
        value = value.replace(placeholder, variable)
    value = re.sub(r"font: (\S+ )?(\d+(?:\.\d+)?px)[^;\"]*", r"font: \g<1>\2 var(--sans)", value)
    return value.replace("url(#", f"url(#{prefix}")


def plain_text(text: str) -> str:
    """Return a text without the characters that XML does not allow."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
