"""Tables as Markdown."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["markdown_table", "markdown_text", "mean_and_deviation"]


def mean_and_deviation(values: Sequence[float], digits: int = 1) -> str:
    """Return ``mean ± standard deviation`` of values; only the mean of a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as Markdown, without a line break after the last row.

    Args:
        header: names of the columns.
        rows: cells of the rows, converted by ``str``; characters that would end a cell or begin an HTML tag are
            escaped.

    Raises:
        ValueError: if a row and the header differ in the number of cells.
    """
    lines = [header, ["---"] * len(header), *rows]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"a row must have {len(header)} cells, as the header has, got {len(line)}: {list(line)}.")
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return markdown_text(value).replace("|", r"\|")


def markdown_text(value: Any) -> str:
    """Return a value as one line of Markdown that begins no HTML tag and has no control characters.

    Examples:
        >>> markdown_text("<b>a")
        '&lt;b>a'
    """
    line = " ".join(str(value).splitlines()).replace("<", "&lt;")
    return "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in line)
