"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchrl_flow.util.platform import flush, replace

__all__ = ["part_of", "publish", "staged", "write_bytes", "write_json", "write_text"]


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file so that a kill leaves the old one, or none, but never a part.

    Args:
        path: file to write.
        content: what JSON can hold.
        indent: spaces per level; None for one line.
    """
    write_text(path, json.dumps(content, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a kill leaves the old one, or none, but never a part."""
    # The name of a run may hold bytes that are no text.
    # Line ends are those of the text on every system.
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one, or none, but never a part."""
    with staged(path) as part:
        part.write_bytes(content)


@contextmanager
def staged(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Give the place of a new file or directory, which replaces ``path`` when the block has ended without an error.

    Args:
        path: what to write; a file there keeps its permissions.
        apart: the place lies in a new hidden directory beside ``path`` and has the same name, for writers that make
            temporary files of their own; else it is :func:`part_of` the path.

    Examples:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with staged(Path(folder, "a.bin")) as part:
        ...         _ = part.write_bytes(b"12")
        ...     Path(folder, "a.bin").stat().st_size
        2
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) if apart else None
    part = part_of(path) if folder is None else folder / path.name
    try:
        yield part
        if path.is_file():
            part.chmod(path.stat().st_mode & 0o777)
        publish(part, path)
    finally:
        _remove(part if folder is None else folder)


def part_of(path: Path) -> Path:
    """Return where a file is written before it replaces ``path``; a kill leaves it, and the next write is over it."""
    return path.with_name(f".{path.name}.part")


def publish(part: Path, path: Path) -> None:
    """Put a finished file or directory in the place of ``path``, durably: contents first, then the name.

    Raises:
        OSError: if ``path`` is a directory that is not empty.
    """
    flush(part)
    replace(part, path)
    flush(path.parent)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
