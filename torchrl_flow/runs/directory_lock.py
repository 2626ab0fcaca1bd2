"""A lock on a directory that the operating system releases when the process ends."""

from __future__ import annotations

import importlib
import os
import weakref
from pathlib import Path
from typing import Any

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """Tells whether a process works in a directory; leaves no file. Where the system has no such locks, none does.

    Args:
        directory: to work in.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._finalizer: Any = None

    def is_held(self) -> bool:
        """Tell whether another lock of the directory is held."""
        descriptor = self._open()
        if descriptor is None:
            return False
        try:
            return not _lock(descriptor)
        finally:
            os.close(descriptor)

    def acquire(self) -> None:
        """Lock the directory, if no other process has locked it."""
        descriptor = self._open()
        if descriptor is None:
            return
        if _lock(descriptor):
            self._finalizer = weakref.finalize(self, os.close, descriptor)
        else:
            os.close(descriptor)

    def release(self) -> None:
        """Release the lock."""
        if self._finalizer is not None:
            self._finalizer()

    def _open(self) -> int | None:
        try:
            return os.open(self._directory, os.O_RDONLY) if _fcntl is not None else None
        except OSError:
            return None


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
