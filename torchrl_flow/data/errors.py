"""What this package raises about data it will not read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DataError", "DataWarning"]


class DataError(ValueError):
    """A file, a store or an episode that cannot be used; the message names it, the reason and what to do."""


class DataWarning(UserWarning):
    """Data was read, but not all of it, or with a doubt that the user should know of."""


def is_lfs_pointer(path: Path) -> bool:
    """Tells whether a file is what Git LFS leaves in place of a large one that was not downloaded."""
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


LFS_ADVICE = "it is a Git LFS pointer, not the data: fetch the data with `git lfs pull`"
