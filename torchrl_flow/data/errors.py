"""Errors and warnings about data that cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DataError", "DataWarning"]


class DataError(ValueError):
    """A file, store or episode that cannot be used; the message names it, the reason and a remedy."""


class DataWarning(UserWarning):
    """Warning that some data were not read or may be wrong."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn an error of the file system into a :class:`DataError`, ``"<what>: <reason>."``.

    A ``PermissionError`` is raised unchanged: it is no damage, and it names the file.

    Args:
        what: what failed, such as ``"demos.npz cannot be read"``.

    Raises:
        DataError: if the block raises an ``OSError`` other than a ``PermissionError``.
    """
    try:
        yield
    except PermissionError:
        raise
    except OSError as error:
        raise DataError(f"{what}: {error.strerror or error}.") from error


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer to a large file that was not downloaded."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


LFS_ADVICE = "it is a Git LFS pointer, not the data: fetch the data with `git lfs pull`"
