"""A lock on a directory that the operating system releases when the process ends."""

from __future__ import annotations

import importlib
import os
import weakref
from pathlib import Path
from typing import Any

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """Lock of a directory for a process, without a lock file. It has no effect on systems without such locks.

    Args:
        directory: directory to lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._finalizer: Any = None

    def acquire(self) -> bool:
        """Lock the directory if no other process has locked it; return whether this process has the lock."""
        if self._finalizer is not None and self._finalizer.alive:
            return True
        descriptor = self._open()
        if descriptor is None:
            return True
        if _lock(descriptor):
            _held.add(descriptor)
            self._finalizer = weakref.finalize(self, _close, descriptor)
            return True
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Release the lock."""
        if self._finalizer is not None:
            self._finalizer()

    def _open(self) -> int | None:
        try:
            return os.open(self._directory, os.O_RDONLY) if _fcntl is not None else None
        except OSError:
            return None


_held: set[int] = set()


def _close(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _let_go_in_child() -> None:
    """Release the directories in a forked process, which may run longer than this one."""
    for descriptor in list(_held):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)

try:
    _fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    _fcntl = None


def _lock(descriptor: int) -> bool:
    """Lock an open directory; return False if another process has locked it."""
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
