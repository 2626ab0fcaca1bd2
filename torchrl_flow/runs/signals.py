"""Recording of signals that end a program, so that the current step can be finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["noted_signals"]


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Append SIGINT and SIGTERM to a list while the block runs; a second signal ends the program at once.

    Outside of the main thread, in which Python handles no signals, the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, _: Any) -> None:
        noted.append(number)
        for other in watched:
            signal.signal(other, signal.SIG_DFL)

    for number in watched:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            # None means a handler that was not set from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
