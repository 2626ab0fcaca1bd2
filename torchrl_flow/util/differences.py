"""Lists of the fields in which two descriptions differ, for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["differing_fields"]


def differing_fields(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    names: Iterable[str] | None = None,
    *,
    form: str = "{name}: checkpoint {found!r}, here {wanted!r}",
    absent: Any = None,
) -> list[str]:
    """List each field that differs, with both values; a tuple and a list of the same entries count as equal.

    Args:
        found: fields of the checked object, such as a checkpoint, a file or a directory.
        wanted: fields with the required values.
        names: fields to compare. Defaults to all fields of ``found``, then the other fields of ``wanted``.
        form: template of the text for one difference.
        absent: value of a field that ``found`` lacks.

    Returns:
        one text for each field that differs.

    Examples:
        >>> differing_fields({"task": "planar", "size": 3}, {"task": "planar", "size": 4})
        ['size: checkpoint 3, here 4']
    """
    pairs = {
        name: (_plain(found.get(name, absent)), _plain(wanted.get(name)))
        for name in ({**found, **wanted} if names is None else names)
    }
    return [form.format(name=name, found=one, wanted=other) for name, (one, other) in pairs.items() if one != other]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
