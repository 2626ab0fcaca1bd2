"""What this package raises about data it will not read."""

from __future__ import annotations

__all__ = ["DataError", "DataWarning"]


class DataError(ValueError):
    """A file, a store or an episode that cannot be used; the message names it, the reason and what to do."""


class DataWarning(UserWarning):
    """Data was read, but not all of it, or with a doubt that the user should know of."""
