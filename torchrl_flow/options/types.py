"""Allowed values of options, declared in their types and checked before any work.

The type of a field declares its range, such as ``batch_size: Count = 256`` or ``gamma: Fraction = 0.99``;
:func:`check_options` reads the types of a dataclass and refuses the first value that is out of range. Your own recipe
can declare other ranges with :class:`Range`, :class:`OneOf`, :class:`NotAbove` and :class:`NotEmpty` in
``typing.Annotated``.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import sys
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints, runtime_checkable

__all__ = [
    "Constraint",
    "Count",
    "Decay",
    "Distinct",
    "Fraction",
    "NonNegative",
    "NonNegativeInt",
    "NotAbove",
    "NotEmpty",
    "OneOf",
    "Positive",
    "Range",
    "Rate",
    "SamplingSteps",
    "Seed",
    "Seeds",
    "Sizes",
    "check_options",
    "nearest",
    "option_name",
    "option_problem",
]


@runtime_checkable
class Constraint(Protocol):
    """Condition on a value; ``problem`` returns how the value violates it, given all options, or None.

    A constraint with the class attribute ``here = True`` depends on this machine, and is checked last.
    """

    def problem(self, value: Any, options: Any) -> str | None:
        """Return the violation, such as ``"must be at least 1"``, or None."""
        ...


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``, including the ends unless they are open.

    Examples:
        >>> Range(0, 1, open_low=True).problem(0.0, None)
        'must be above 0 and at most 1'
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def problem(self, value: Any, options: Any) -> str | None:
        """Return the range that the value violates, or None."""
        del options
        inside = math.isfinite(value)
        if self.low is not None:
            inside &= value > self.low if self.open_low else value >= self.low
        if self.high is not None:
            inside &= value < self.high if self.open_high else value <= self.high
        return None if inside else f"must be {self._words()}"

    def _words(self) -> str:
        low = None if self.low is None else f"{'above' if self.open_low else 'at least'} {self.low}"
        high = None if self.high is None else f"{'below' if self.open_high else 'at most'} {self.high}"
        return " and ".join(word for word in (low, high) if word) or "a finite number"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of the named values; the error for a misspelt value suggests the most similar one."""

    values: tuple[Any, ...]

    def problem(self, value: Any, options: Any) -> str | None:
        """Return the values that are allowed, or None."""
        del options
        if value in self.values:
            return None
        meant = nearest(value, self.values) if isinstance(value, str) else None
        hint = "" if meant is None else f" (did you mean {meant}?)"
        return f"must be one of {', '.join(map(str, self.values))}{hint}"


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """At least one element."""

    def problem(self, value: Any, options: Any) -> str | None:
        """Return a message if the value is empty, otherwise None."""
        del options
        return None if len(value) else "must name at least one value"


@dataclasses.dataclass(frozen=True)
class Distinct:
    """No element twice."""

    def problem(self, value: Any, options: Any) -> str | None:
        """Return a message that names the duplicate element, or None."""
        del options
        twice = next((item for item in value if value.count(item) > 1), None)
        return None if twice is None else f"must name {twice} once"


@dataclasses.dataclass(frozen=True)
class NotAbove:
    """At most the value of another option; always satisfied if the other option is None."""

    other: str

    def problem(self, value: Any, options: Any) -> str | None:
        """Return the bound that the value exceeds, or None."""
        bound = getattr(options, self.other)
        return None if bound is None or value <= bound else f"must be at most {option_name(self.other)} {bound}"


Count = Annotated[int, Range(1)]
"""A whole number of at least 1."""
NonNegativeInt = Annotated[int, Range(0)]
"""A whole number of at least 0."""
Positive = Annotated[float, Range(0, open_low=True)]
"""A learning rate, a bound, a temperature."""
NonNegative = Annotated[float, Range(0)]
"""A weight or a scale; 0 switches it off."""
Fraction = Annotated[float, Range(0, 1)]
"""A discount, a share, a probability."""
Rate = Annotated[float, Range(0, 1, open_low=True)]
"""The rate of a running average: 1 copies the weights; 0, which would never change the average, is not allowed."""
Decay = Annotated[float, Range(0, 1, open_high=True)]
"""The decay of a running average: 0 copies the weights; 1, which would never change the average, is not allowed."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""A seed that is valid for Python, NumPy and torch."""
SamplingSteps = Annotated[int, OneOf((1, 2, 4, 8, 16))]
"""Sampling steps of a flow: the step sizes that its network is trained on."""
Seeds = Annotated[tuple[Seed, ...], NotEmpty(), Distinct()]
"""Seeds of several runs, each once."""
Sizes = Annotated[tuple[Count, ...], NotEmpty()]
"""Widths of the hidden layers of a network."""


def option_name(field: str) -> str:
    """Return the spelling of a field on the command line.

    Examples:
        >>> option_name("batch_size")
        '--batch-size'
    """
    return "--" + field.replace("_", "-")


def nearest(word: str, known: Iterable[Any]) -> str | None:
    """Return the most similar known word, ignoring case and suffix; None if no word is similar.

    Examples:
        >>> nearest("PickCube", ["PickCube-v1", "PushCube-v1"]), nearest("Planar", ["planar"])
        ('PickCube-v1', 'planar')
    """
    words = {str(name).lower(): str(name) for name in known}
    # A name without its version is closer than the name of another task.
    starting = sorted(name for name in words if name.startswith(word.lower()))
    found = starting[:1] if word and starting else difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6)
    return words[found[0]] if found else None


def option_problem(
    options: Any,
    *,
    skip: Collection[str] = (),
    here: bool | None = None,
    spell: Callable[[str], str] = option_name,
) -> str | None:
    """Return the violation of the first field of a dataclass that is out of range, or None.

    Args:
        options: instance of a dataclass whose field types declare the allowed values.
        skip: fields that are not checked.
        here: True checks only what depends on this machine, such as files and packages; False checks only the rest.
            Defaults to None: both, the machine last.
        spell: function that returns the spelling of a field in the message. Defaults to that of the command line.

    Examples:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     batch_size: Count = 256
        ...     lr: Positive | None = 1e-3
        >>> option_problem(Options(lr=float("nan")))
        '--lr must be above 0, got nan.'
    """
    hints = _field_types(type(options))
    fields = [field.name for field in dataclasses.fields(options) if field.name not in skip]
    for machine in (False, True) if here is None else (here,):
        for name in fields:
            value = getattr(options, name)
            problem = _problem(hints[name], value, options, machine)
            if problem is not None:
                return f"{_spelled(name, hints[name], spell)} {problem}, got {_shown(value)}."
    return None


def _spelled(name: str, hint: Any, spell: Callable[[str], str]) -> str:
    """Return the spelling of a field; a positional argument is in capitals, as in the help."""
    conf = sys.modules.get("tyro.conf")  # Only classes of tyro's have positional arguments.
    positional = conf is not None and conf.Positional in getattr(hint, "__metadata__", ())
    return name.upper() if positional and spell is option_name else spell(name)


def check_options(options: Any, *, skip: Collection[str] = (), here: bool | None = None) -> None:
    """Refuse options that are out of range.

    Args:
        options: instance of a dataclass whose field types declare the allowed values.
        skip: fields that are not checked.
        here: see :func:`option_problem`.

    Raises:
        SystemExit: if the check fails. The error names the option, the allowed values and the given value.
    """
    problem = option_problem(options, skip=skip, here=here)
    if problem is not None:
        raise SystemExit(problem)


def _field_types(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, with their annotations."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        # A script that was run by its path is not in sys.modules: its names are taken from its functions.
        names = getattr(vars(base).get("__init__"), "__globals__", None)
        holder = types.SimpleNamespace(__annotations__=inspect.get_annotations(base))
        found |= get_type_hints(holder, globalns=names, include_extras=True)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return repr(value) if isinstance(value, str) and (not value or " " in value) else str(value)


def _problem(hint: Any, value: Any, options: Any, here: bool) -> str | None:
    """Return the violation of a type by a value, or None."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        constraints = [part for part in parts[1:] if isinstance(part, Constraint)]
        # A range also refuses values that are not finite, with a better message.
        ranged = any(isinstance(part, Range) for part in constraints)
        found = None if ranged else _problem(parts[0], value, options, here)
        asked = [part for part in constraints if getattr(part, "here", False) == here]
        return found or next(filter(None, (part.problem(value, options) for part in asked)), None)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        problems = [_problem(part, value, options, here) for part in parts if part is not type(None)]
        return None if None in problems else problems[0]
    if origin is tuple and isinstance(value, Sequence):
        return next(filter(None, (_problem(parts[0], item, options, here) for item in value)), None)
    if here:
        return None
    if origin is Literal:
        return OneOf(parts).problem(value, options)
    return Range().problem(value, options) if hint is float else None
