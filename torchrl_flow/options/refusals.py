"""Error messages without a traceback for refused input."""

from __future__ import annotations

import errno
import logging
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrl.checkpoint import CheckpointError

from torchrl_flow.data.errors import DataError
from torchrl_flow.options.parse import TRACEBACK
from torchrl_flow.training.finite import NonFiniteError

__all__ = ["refusals_in_one_line"]

_log = logging.getLogger(__name__)

EXTRAS = {
    "imageio": "plot",
    "matplotlib": "plot",
    "mani_skill": "maniskill",
    "ray": "sweep",
    "sapien": "maniskill",
    "sardine": "sardine",
    "tensorboard": "plot",
    "wandb": "wandb",
}
"""The extra of this package that installs each optional package."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
"""Numbers of the operating system's errors: no space, quota, read-only file system, file too large, disk failure."""


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """End the program with a one-line message, without a traceback, if data, checkpoints or arguments are refused.

    A ``ValueError``, ``RuntimeError`` or ``ImportError`` is a refusal if this package raised it, and so is a missing
    optional package; other errors keep their traceback. With ``--traceback``, or the environment variable
    ``TORCHRL_FLOW_TRACEBACK=1``, all errors keep it.
    """
    try:
        yield
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _log.warning(
            "Interrupted. Finished results are kept. Run the same command again to continue, with --resume for a "
            "run that was started."
        )
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        message = _refusal(error)
        if message is None or os.environ.get(TRACEBACK, "0") not in ("", "0"):
            raise
        raise SystemExit(message) from None


def _refusal(error: Exception) -> str | None:
    """Return the message of an error that refuses an input; None for another error."""
    missing = error.name.split(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None
    if missing in EXTRAS:
        return f"The package {missing} is needed for this: pip install 'torchrl-flow[{EXTRAS[missing]}]'."
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}. Nothing is half-written, and the last checkpoint is there: free some space, and "
            "go on with --resume."
        )
    if isinstance(error, PermissionError) and error.filename:
        return (
            f"{error.filename}: {error.strerror}. This user may not read or write it: change its owner or its mode "
            "(chown, chmod), or give another path."
        )
    always = (DataError, CheckpointError, NonFiniteError)
    always += (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    ours = isinstance(error, (ValueError, RuntimeError, ImportError)) and _raised_here(error)
    if ours or isinstance(error, always):
        return " ".join(str(error).split())
    return None


def _raised_here(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).resolve().is_relative_to(Path(__file__).parents[1])
