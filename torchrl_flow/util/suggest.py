"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["close_names", "did_you_mean"]


def close_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names most similar to ``name``, the most similar first; case is ignored.

    Examples:
        >>> close_names("Planar", ["planar", "PickCube-v1"])
        ['planar']
        >>> close_names("PickCube", ["PlugCharger-v1", "PickCube-v1"])
        ['PickCube-v1']
    """
    names = list(dict.fromkeys(known))
    by_key: dict[str, str] = {}
    for one in names:
        by_key.setdefault(_key(one), one)
    wanted = _key(name)
    if wanted in by_key:
        return [by_key[wanted]]
    starting = [one for one in names if len(wanted) > 2 and _key(one).startswith(wanted)]
    similar = [by_key[key] for key in difflib.get_close_matches(wanted, list(by_key), n=most, cutoff=0.6)]
    return list(dict.fromkeys([*starting, *similar]))[:most]


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" as the end of a message, or an empty string if no known name is similar.

    Examples:
        >>> did_you_mean("Planar", ["planar", "PickCube-v1"])
        ' Did you mean planar?'
        >>> did_you_mean("xyz", ["planar"])
        ''
    """
    found = close_names(name, known)
    return f" Did you mean {' or '.join(found)}?" if found else ""
