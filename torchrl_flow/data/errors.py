"""Errors and warnings about data that cannot be read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataError", "DataWarning"]


class DataError(ValueError):
    """A file, store or episode that cannot be used; the message names it, the reason and a remedy."""


class DataWarning(UserWarning):
    """Warning that some data were not read or may be wrong."""


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer to a large file that was not downloaded."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


LFS_ADVICE = "it is a Git LFS pointer, not the data: fetch the data with `git lfs pull`"
