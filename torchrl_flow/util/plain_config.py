"""Base class of dataclasses that are stored as plain values, for example in checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from torchrl_flow.util.suggest import did_you_mean

_Config = TypeVar("_Config", bound="PlainConfig")

__all__ = ["PlainConfig"]


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """Base of frozen dataclasses that are written to and read from JSON.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Camera(PlainConfig):
        ...     height: int = 128
        >>> Camera.from_dict({"height": 64}).to_dict()
        {'height': 64}
        >>> Camera.from_dict({"hieght": 64})
        Traceback (most recent call last):
        ValueError: unknown fields ['hieght'] in a Camera; known are ['height']. Did you mean height?
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain, JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any], *, complete: bool = False) -> _Config:
        """Rebuild a configuration from :meth:`to_dict`; lists, which JSON uses for tuples, become tuples.

        Args:
            values: the fields. A field with a default may be missing.
            complete: raise an error if a field is missing, even if it has a default. Defaults to False.

        Raises:
            ValueError: if a field is unknown or a required field is missing. The error lists the known fields and the
                most similar one.
        """
        known = sorted(field.name for field in dataclasses.fields(cls))
        unknown = sorted(map(str, set(values) - set(known)))
        if unknown:
            hints = "".join(did_you_mean(name, known) for name in unknown)
            raise ValueError(f"unknown fields {unknown} in a {cls.__name__}; known are {known}.{hints}")
        missing = [name for name in known if name not in values]
        if complete and missing:
            raise ValueError(f"a {cls.__name__} lacks the fields {missing}.")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
