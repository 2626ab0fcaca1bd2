"""Processes that have ended: exit codes, and which one ended first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["exit_codes", "first_ended"]


def exit_codes(processes: Iterable[Any]) -> dict[int, int]:
    """Return the exit codes of the processes that have ended, by their number from 0.

    Args:
        processes: objects of :class:`multiprocessing.Process`. One that is closed has no exit code any more.
    """
    codes = {}
    for number, process in enumerate(processes):
        with contextlib.suppress(ValueError):
            codes[number] = process.exitcode
    return {number: code for number, code in codes.items() if code is not None}


def first_ended(codes: Mapping[int, int]) -> tuple[int, str]:
    """Return the number of the process that ended first, and how it ended.

    TorchRL ends the others of a group, by a message or by SIGTERM: the first to end has another exit code.

    Args:
        codes: exit codes by number, as :func:`exit_codes` returns them; at least one.

    Examples:
        >>> first_ended({0: -15, 1: -9, 2: 0})
        (1, 'killed by SIGKILL')
        >>> first_ended({0: 3})
        (0, 'exit code 3; its error is above')
    """
    number, code = min(codes.items(), key=lambda item: (item[1] == 0, item[1] == -signal.SIGTERM))
    return number, f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; its error is above"
