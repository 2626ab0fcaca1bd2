"""A replay buffer that writes dumps without pickles and checks a dump before reading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorDictReplayBuffer

from torchrl_flow.data.checks.archive import load_torch
from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.replay import PREFETCH, check_dump
from torchrl_flow.data.errors import DataError
from torchrl_flow.util.digest import file_digest
from torchrl_flow.util.files import write_json

__all__ = ["CheckedReplayBuffer"]

DIGESTS = "digests.json"
_QUEUE = "prefetch.pt"


class CheckedReplayBuffer(TensorDictReplayBuffer):
    """A :class:`~torchrl.data.TensorDictReplayBuffer` that neither writes nor reads pickles.

    TorchRL keeps the queue of prefetched batches as a pickle. This class writes a ``torch.save`` file of tensors, reads
    it with ``weights_only=True``, and writes no file while the queue is empty.
    """

    def dumps(self, path: str | Path) -> None:
        """Write the buffer to a directory, with a checksum of each file in ``digests.json``."""
        super().dumps(path)
        write_json(Path(path) / DIGESTS, _digests(Path(path)))

    def loads(self, path: str | Path) -> None:
        """Restore the state that :meth:`dumps` wrote, after checking every file.

        Raises:
            DataError: if a file could run code, is of an unknown kind, does not have the size in its header, is
                missing, or was changed since it was written. The error names directory and member.
        """
        check_dump(path)
        _check_digests(Path(path))
        try:
            super().loads(path)
        except (KeyError, IndexError, TypeError, AttributeError, OSError) as error:
            raise DataError(f"{path} is not a dump of this replay buffer: {error!r}.") from error

    def _dump_prefetch_state(self, path: Path, prefetch_state: dict[str, Any]) -> None:
        for name in (PREFETCH, _QUEUE):
            (path / name).unlink(missing_ok=True)
        if prefetch_state["queue"]:
            queue = [_as_plain(result) for result in prefetch_state["queue"]]
            torch.save({**prefetch_state, "queue": queue}, path / _QUEUE)

    def _load_prefetch_state(self, path: Path) -> dict[str, Any] | None:
        # A `prefetch.pkl` has been checked to hold an empty queue, so it can be ignored.
        if not os.path.lexists(path / _QUEUE):
            return None
        state = load_torch(path / _QUEUE)
        try:
            return {**state, "queue": [_as_result(batch) for batch in state["queue"]]}
        except (KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{path / _QUEUE} holds no queue of batches: {error!r}.") from error


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and path != root / DIGESTS)
    return {path.relative_to(root).as_posix(): file_digest(path) for path in files}


def _check_digests(root: Path) -> None:
    if not os.path.lexists(root / DIGESTS):  # dumped by a version without checksums
        return
    wanted = read_json(root / DIGESTS)
    if not isinstance(wanted, dict):
        raise DataError(f"{root / DIGESTS} must be a JSON object, got {type(wanted).__name__}.")
    found = _digests(root)
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        raise DataError(
            f"{root} is a damaged dump: {', '.join(differing[:4])} was changed since it was written. Use an "
            "earlier one."
        )


def _as_plain(result: Any) -> dict[str, Any]:
    """Return a prefetched batch as tensors in plain containers."""
    data, info = result if isinstance(result, tuple) else (result, None)
    if not isinstance(data, TensorDictBase):
        raise ValueError(f"a prefetched {type(data).__name__} cannot be saved: make the buffer with prefetch=None.")
    rows = data.to("cpu").detach()
    place = {"batch_size": list(rows.batch_size), "device": str(data.device)}
    return {"rows": rows.to_dict(), "info": _plain(info), **place}


def _as_result(batch: dict[str, Any]) -> Any:
    rows = TensorDict(batch["rows"], batch_size=batch["batch_size"])
    rows = rows if batch["device"] == "None" else rows.to(batch["device"])
    return rows if batch["info"] is None else (rows, batch["info"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str)):
        return value
    raise ValueError(f"a sampler's {type(value).__name__} cannot be saved: make the buffer with prefetch=None.")
