"""Conversion of a sweep's configurations to another baseline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["scale_options"]


def scale_options(
    options: Mapping[str, Any], reference: Mapping[str, Any], base: Mapping[str, Any], *, absolute: Collection[str] = ()
) -> dict[str, Any]:
    """Convert a configuration to another baseline: numbers keep their ratio to the reference.

    Strings, and numbers whose reference is zero, have no ratio and are kept. Integers stay integers of at least 1,
    unless the configuration has 0.

    Args:
        options: the configuration, in the units of ``reference``.
        reference: baseline for which the configuration was written.
        base: baseline that it is converted to.
        absolute: names of options that are not scaled.

    Examples:
        >>> scale_options({"lr": 1e-5, "epochs": 8}, {"lr": 1e-4, "epochs": 4}, {"lr": 2e-3, "epochs": 2})
        {'lr': 0.0002, 'epochs': 4}
    """
    carried = {}
    for name, value in options.items():
        if isinstance(value, str) or name in absolute or not reference[name]:
            carried[name] = value
        else:
            number = base[name] * value / reference[name]
            carried[name] = max(round(number), min(1, value)) if isinstance(value, int) else float(f"{number:.6g}")
    return carried
