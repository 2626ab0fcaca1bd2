"""The end of a program that refuses what it was given: the message, and no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrl.checkpoint import CheckpointError

from torchrl_flow.data.errors import DataError
from torchrl_flow.training.finite import NonFiniteError

__all__ = ["refusals_in_one_line"]


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """End the program with the message alone where data, checkpoints or arguments are refused.

    A ``ValueError`` or ``ImportError`` is a refusal if this package raised it; any other one keeps its traceback.
    """
    try:
        yield
    except (DataError, CheckpointError, NonFiniteError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    except (ValueError, ImportError) as error:
        if not _raised_here(error):
            raise
        raise SystemExit(str(error)) from None


def _raised_here(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).resolve().is_relative_to(Path(__file__).parents[1])
