"""Differences between Linux, macOS and Windows: durable files, locks, processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["flush", "is_alive", "largest_resident_mib", "locked", "replace"]

_WINDOWS = sys.platform == "win32"
_RETRY_S = 2.0
_LOCK_S = 60.0


def flush(path: str | Path) -> None:
    """Wait until a file, or the names in a directory, are written to disk.

    Windows stores names durably itself and cannot open directories; it only flushes files open for writing.
    """
    if os.path.isdir(path):
        if _WINDOWS:
            return
        flags = os.O_RDONLY
    else:
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) if _WINDOWS else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: str | Path, target: str | Path) -> None:
    """Rename a file over another one atomically, so that the target is complete at every moment.

    Windows raises an error while another program, such as a virus scanner or a viewer, has the target open; the rename
    is then repeated for two seconds.

    Raises:
        PermissionError: if the target is still open.
    """
    deadline = time.monotonic() + _RETRY_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not _WINDOWS or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Lock a directory against other programs that use this lock.

    Windows has no locks of directories: there a file ``.lock`` in the directory is locked, and remains.

    Raises:
        OSError: if another program holds the lock for a minute (only on Windows).
    """
    if _WINDOWS:
        with _locked_file(Path(directory) / ".lock"):
            yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    import msvcrt

    system: Any = msvcrt
    deadline = time.monotonic() + _LOCK_S
    with path.open("a+b") as file:
        while True:
            file.seek(0)
            try:
                system.locking(file.fileno(), system.LK_NBLCK, 1)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise OSError(f"{path} is locked by another program for {_LOCK_S:.0f} s.") from error
                time.sleep(0.05)
        try:
            yield
        finally:
            file.seek(0)
            system.locking(file.fileno(), system.LK_UNLCK, 1)


def is_alive(pid: int) -> bool:
    """Return whether a process is running on this machine."""
    if _WINDOWS:
        # `os.kill` would send the process an event, regardless of the signal's number.
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_alive_on_windows(pid: int) -> bool:
    import ctypes

    kernel: Any = ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue]
    query_limited_information, still_active, access_denied = 0x1000, 259, 5
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return kernel.GetLastError() == access_denied
    try:
        code = ctypes.c_ulong()
        return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == still_active
    finally:
        kernel.CloseHandle(handle)


def largest_resident_mib() -> float:
    """Return the peak memory of this process in MiB; NaN on Windows, where it is not available."""
    if _WINDOWS:
        return float("nan")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB on Linux, in bytes on macOS.
    return most / (2**20 if sys.platform == "darwin" else 2**10)
