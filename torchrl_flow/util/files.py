"""Atomic writing of files and directories, and reading of text files with errors that name the line."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_flow.util.platform import flush, replace

__all__ = [
    "csv_rows",
    "is_leftover",
    "named_write_errors",
    "publish",
    "read_text",
    "require_space",
    "staged",
    "write_bytes",
    "write_json",
    "write_text",
]

_SUFFIX = ".part"
_KEPT_S = 3600.0
_UNWRITTEN = ("iostream error", "inline_container", "PytorchStreamWriter", "unable to resize file")
"""Parts of the messages of torch about a file that it could not write, such as on a full disk."""


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file atomically: a kill leaves the old file or no file, never a partial one.

    Args:
        path: file to write.
        content: JSON-able value.
        indent: spaces per level; None for one line.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a kill leaves the old file or no file, never a partial one."""
    # The name of a run may contain bytes that are not text. Line endings are those of the text on every system.
    write_bytes(path, text.encode("utf-8", errors="replace"))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        ValueError: if the file is not UTF-8. The error names the file and the line.
        OSError: if the file cannot be read.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8 text.") from error


def csv_rows(lines: Iterable[str], path: Path) -> Iterator[list[str]]:
    """Yield the rows of a CSV file.

    Raises:
        ValueError: if a line is not CSV, such as one with a lone carriage return. The error names file and line.
    """
    reader = csv.reader(lines)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not a row of a CSV file ({error}).") from error
        if row is None:
            return
        yield row


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a kill leaves the old file or no file, never a partial one."""
    with staged(path) as part:
        part.write_bytes(content)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield the path of a new file or directory, which replaces ``path`` when the block ends without an error.

    The new path lies in a new hidden directory beside ``path``, which only this user can enter and whose name cannot be
    guessed: in a directory that others may write to, nobody can place a link there in advance. A later write of the
    same path removes leftovers of killed writes that are older than an hour.

    Args:
        path: file or directory to write; an existing file keeps its permissions.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged(Path(folder, "a.bin")) as part:
        ...         _ = part.write_bytes(b"12")
        ...     Path(folder, "a.bin").stat().st_size
        2
    """
    _remove_leftovers(path)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
    part = folder / path.name
    try:
        yield part
        if path.is_file():
            part.chmod(path.stat().st_mode & 0o777)
        publish(part, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def named_write_errors(path: Path) -> Iterator[None]:
    """Replace torch's errors about files that it could not write by an ``OSError`` that names ``path``.

    ``torch.save`` and memory-mapped tensors raise ``RuntimeError`` if the disk is full.

    Raises:
        OSError: instead of such a ``RuntimeError``, with the number of the system's error, ``ENOSPC`` if it is unknown.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(part in str(error) for part in _UNWRITTEN):
            raise
        told = re.search(r"\((\d+)\)\s*$", str(error))
        number = int(told[1]) if told and int(told[1]) in errno.errorcode else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error


def require_space(folder: Path, size: int) -> None:
    """Check that a file system has space for a memory-mapped file, whose writing would otherwise kill the process.

    Args:
        folder: existing directory of the file.
        size: bytes of the file.

    Raises:
        OSError: with ``ENOSPC`` and the name of the directory, if fewer bytes are free.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def is_leftover(name: str) -> bool:
    """Return whether a name has the form of the hidden directories of :func:`staged`, which a kill may leave.

    Examples:
        >>> is_leftover(".config.json.abcd1234.part"), is_leftover("config.json")
        (True, False)
    """
    return name.startswith(".") and name.endswith(_SUFFIX)


def _remove_leftovers(path: Path) -> None:
    """Remove old leftovers of killed writes of a path; a recent one may belong to an active writer."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if not (is_leftover(entry.name) and entry.name.startswith(f".{path.name}.")):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _KEPT_S:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def publish(part: Path, path: Path) -> None:
    """Move a finished file or directory to ``path`` durably: contents are flushed first, then the name.

    Raises:
        OSError: if ``path`` is a directory that is not empty.
    """
    flush(part)
    replace(part, path)
    flush(path.parent)
