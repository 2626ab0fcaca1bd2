"""Atomic writing of files and directories."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_flow.util.platform import flush, replace

__all__ = ["is_leftover", "publish", "read_text", "staged", "write_bytes", "write_json", "write_text"]

_SUFFIX = ".part"
_KEPT_S = 3600.0


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file so that a kill leaves the old one, or none, but never a part.

    Args:
        path: file to write.
        content: JSON-able value.
        indent: spaces per level; None for one line.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one, or none, but never a part."""
    # The name of a run may hold bytes that are no text.
    # Line ends are those of the text on every system.
    write_bytes(path, text.encode("utf-8", errors="replace"))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        ValueError: if it is not UTF-8. The error names the file and the line.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8 text.") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one, or none, but never a part."""
    with staged(path) as part:
        part.write_bytes(content)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give the place of a new file or directory, which replaces ``path`` when the block has ended without an error.

    The place lies in a new hidden directory beside ``path``, which this user alone can enter and whose name cannot be
    guessed: in a directory that others may write to, nobody can put a link there beforehand. What a kill leaves is
    removed by a later write of the same path, after an hour.

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


def is_leftover(name: str) -> bool:
    """Tell whether a name is one of those that :func:`staged` makes, which a kill may leave.

    Examples:
        >>> is_leftover(".config.json.abcd1234.part"), is_leftover("config.json")
        (True, False)
    """
    return name.startswith(".") and name.endswith(_SUFFIX)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writes of a path have left; a younger one may be of a writer that is at work."""
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
    """Put a finished file or directory in the place of ``path``, durably: contents first, then the name.

    Raises:
        OSError: if ``path`` is a directory that is not empty.
    """
    flush(part)
    replace(part, path)
    flush(path.parent)
