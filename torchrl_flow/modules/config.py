"""Flat configurations of networks: conversion from and to plain values, and limits on sizes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from torchrl_flow.util.plain_config import PlainConfig

MAX_SIZE = 100_000
"""Largest width, dimension or other whole number of a configuration, unless the class states another limit."""
MAX_DEPTH = 1000
"""Largest number of blocks, layers or members."""
MAX_WEIGHTS = 2**31
"""Largest number of weights of a network, 8 GiB in float32."""

_INTEGER = re.compile(r"\bint\b")

__all__ = ["MAX_DEPTH", "MAX_SIZE", "MAX_WEIGHTS", "Config", "dense_weights"]


@dataclasses.dataclass(frozen=True)
class Config(PlainConfig):
    """Base of the dataclasses that describe a network by plain values.

    A subclass that defines ``__post_init__`` must call this one first. A subclass whose number of weights is a product
    of sizes overrides ``_weights``.

    Raises:
        ValueError: if a size is above its limit, or the network would have more than :data:`MAX_WEIGHTS` weights.

    Examples:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Linear(Config):
        ...     width: int = 8
        >>> Linear.from_dict({"width": 16}).to_dict()
        {'width': 16}
        >>> Linear.from_dict({"wdith": 16})
        Traceback (most recent call last):
        ValueError: unknown fields ['wdith'] in a Linear; known are ['width']. Did you mean width?
    """

    limits: ClassVar[Mapping[str, int]] = {}
    """Largest values of the fields whose limit is not :data:`MAX_SIZE`."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        kind = type(self).__name__
        for name, value in self._sizes():
            limit = self.limits.get(name, MAX_SIZE)
            if value > limit:
                raise ValueError(f"{name}={value} in a {kind} is above its limit of {limit}.")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (tuple, list)) and len(value) > MAX_DEPTH:
                raise ValueError(f"{field.name} of a {kind} has {len(value)} entries, above its limit of {MAX_DEPTH}.")
        weights = self._weights()
        if weights > MAX_WEIGHTS:
            sizes = ", ".join(f"{name}={getattr(self, name)}" for name in dict.fromkeys(n for n, _ in self._sizes()))
            raise ValueError(
                f"a {kind} with {sizes} would have {weights} weights or more, above the limit of {MAX_WEIGHTS}."
            )

    @property
    def least_weights(self) -> int:
        """A lower bound on the number of weights, from the sizes alone; 0 if no product of sizes can be large."""
        return self._weights()

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the name and value of each whole number, including those inside tuples."""
        for field in dataclasses.fields(self):
            if not _INTEGER.search(str(field.type)):
                continue
            value = getattr(self, field.name)
            for number in value if isinstance(value, (tuple, list)) else (value,):
                if number is not None:
                    yield field.name, number

    def _weights(self) -> int:
        """Return a lower bound on the number of weights; 0 if no product of sizes can be large."""
        return 0


def dense_weights(sizes: Sequence[int]) -> int:
    """Count the weights of an MLP with the given sizes of input, hidden layers and output.

    Examples:
        >>> dense_weights([2, 8, 3])
        40
    """
    return sum(before * after for before, after in itertools.pairwise(sizes))
