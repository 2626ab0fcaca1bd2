"""Atomic writer of a demo store, one episode at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_flow.data.demos.episode import STEP_KEYS, Episode
from torchrl_flow.data.demos.statistics import column_statistics
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.util.digest import json_digest
from torchrl_flow.util.files import publish, write_json
from torchrl_flow.util.platform import flush

__all__ = ["FORMAT", "METADATA", "STATISTICS_KEYS", "VERSION", "StoreWriter", "describe_files", "store_statistics"]

FORMAT = "torchrl_flow.demo_store"
VERSION = 1
METADATA = "metadata.json"
STATISTICS_KEYS = ("observation", "action")


Rows = Mapping["str | tuple[str, ...]", Tensor]


class _Column:
    """An append-only file of equal rows, which becomes one memory-mapped tensor."""

    def __init__(self, path: Path, first: Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.dtype, self.row_shape, self.rows = path, first.dtype, first.shape[1:], 0
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()

    def append(self, rows: Tensor) -> None:
        data = rows.contiguous().numpy().data.cast("B") if rows.numel() else b""
        self._file.write(data)
        self._digest.update(data)
        self.rows += rows.shape[0]

    def close(self) -> dict[str, Any]:
        if not self._file.closed:
            self._file.close()
            flush(self.path)
        return {
            "shape": [self.rows, *self.row_shape],
            "dtype": str(self.dtype).removeprefix("torch."),
            "sha256": self._digest.hexdigest(),
        }


class _Table:
    """Columns of equal length under one directory; the first rows fix keys, dtypes and shapes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.columns: dict[str | tuple[str, ...], _Column] = {}

    def mismatch(self, rows: Rows) -> str | None:
        if not self.columns:
            return None
        if set(rows) != set(self.columns):
            before = sorted(map(str, self.columns))
            return f"it has the entries {sorted(map(str, rows))} and the episodes before {before}"
        for key, value in rows.items():
            column = self.columns[key]
            if (value.shape[1:], value.dtype) != (column.row_shape, column.dtype):
                return (
                    f"a row of `{key}` is {list(value.shape[1:])} {value.dtype} and in the episodes before "
                    f"{list(column.row_shape)} {column.dtype}"
                )
        return None

    def append(self, rows: Rows) -> None:
        for key, value in rows.items():
            if key not in self.columns:
                path = (key,) if isinstance(key, str) else key
                self.columns[key] = _Column(self.root.joinpath(*path[:-1], f"{path[-1]}.memmap"), value)
            self.columns[key].append(value)

    def close(self) -> dict[str, Any]:
        """Turn the files into a memory-mapped TensorDict in place; return the metadata to check them."""
        columns = {key: column.close() for key, column in self.columns.items()}
        rows = next(iter(self.columns.values())).rows
        tensordict = TensorDict({}, batch_size=[rows]).memmap_(str(self.root))
        for key, column in self.columns.items():
            storage = torch.UntypedStorage.from_file(str(column.path), shared=True, nbytes=column.path.stat().st_size)
            shape = torch.Size([rows, *column.row_shape])
            tensordict.make_memmap_from_storage(key, storage, shape, dtype=column.dtype)
        return {key if isinstance(key, str) else "/".join(key): value for key, value in columns.items()}


class StoreWriter:
    """Writer that builds a store in a hidden directory beside its path and renames it when complete.

    An exception inside the context removes the written files. A killed process leaves a directory
    ``.<name>.<random>.tmp``, which is never read.

    Args:
        root: path of the store.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._tmp = self.root.parent / f".{self.root.name}.{secrets.token_hex(4)}.tmp"
        self._tables = {name: _Table(self._tmp / name) for name in ("frames", "steps", "episodes")}
        self.num_steps = self.num_episodes = 0
        self._seen: dict[bytes, str] = {}
        self._twice: list[str] = []

    def __enter__(self) -> StoreWriter:
        self._tmp.mkdir(parents=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for table in self._tables.values():
            for column in table.columns.values():
                with contextlib.suppress(OSError):  # what is left to write, on a full disk
                    column.close()
        shutil.rmtree(self._tmp, ignore_errors=True)

    def append(self, episode: Episode) -> None:
        """Write one episode.

        Raises:
            DataError: if its entries differ from those of earlier episodes. The episode is then not written.
        """
        number, steps = self.num_episodes, len(episode)
        outcomes = {key: getattr(episode, key)[:, None] for key in STEP_KEYS if key != "action"}
        step_rows: Rows = {
            "action": episode.action,
            **outcomes,
            "episode": torch.full((steps,), number, dtype=torch.int64),
            "step": torch.arange(steps),
        }
        tables: dict[str, Rows] = {"frames": episode.frames, "steps": step_rows}
        for name, rows in tables.items():
            reason = self._tables[name].mismatch(rows)
            if reason is not None:
                raise DataError(f"{episode.name}: {reason}.")
        self._note_same(episode)
        self._tables["frames"].append(episode.frames)
        self._tables["steps"].append(step_rows)
        self._tables["episodes"].append(
            {
                "start": torch.tensor([self.num_steps]),
                "length": torch.tensor([steps]),
                "seed": torch.tensor([episode.seed]),
                "success": episode.success.any()[None],
            }
        )
        self.num_steps += steps
        self.num_episodes += 1

    def _note_same(self, episode: Episode) -> None:
        """Record an episode whose actions and first and last frames equal those of an earlier one, bit for bit."""
        digest = hashlib.sha256(episode.action.contiguous().numpy().tobytes())
        for frames in episode.frames.values():
            digest.update(frames[[0, -1]].contiguous().numpy().tobytes())
        earlier = self._seen.setdefault(digest.digest(), episode.name)
        if earlier != episode.name:
            self._twice.append(f"{episode.name} is {earlier} again")

    def finish(self, metadata: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Write the metadata and move the store to its path.

        Args:
            metadata: JSON-able entries of the caller. Format, counts, columns and statistics are added.
            overwrite: remove an existing directory, just before the complete store is moved to its place.

        Raises:
            DataError: if no episode was written.
        """
        if self.num_episodes == 0:
            raise DataError(f"{self.root}: there is no episode to make a store of.")
        if self._twice:
            warnings.warn(
                f"{self.root.name}: {len(self._twice)} episode(s) occur twice, bit for bit "
                f"({'; '.join(self._twice[:3])}). All are kept, so that they count twice: remove the copies if "
                "that is not intended.",
                DataWarning,
                stacklevel=4,
            )
        columns = {name: table.close() for name, table in self._tables.items()}
        content = {
            "format": FORMAT,
            "version": VERSION,
            **metadata,
            "num_episodes": self.num_episodes,
            "num_steps": self.num_steps,
            "statistics": self._statistics(),
            "columns": columns,
        }
        write_json(self._tmp / METADATA, describe_files(self._tmp, json.loads(json.dumps(content))), indent=1)
        if overwrite and self.root.exists():
            shutil.rmtree(self.root)
        publish(self._tmp, self.root)

    def _statistics(self) -> dict[str, dict[str, list[float]]]:
        frames = TensorDict.load_memmap(self._tmp / "frames", allow_pickle=False)
        steps = TensorDict.load_memmap(self._tmp / "steps", allow_pickle=False)
        return store_statistics(frames, steps)


def describe_files(root: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a store's metadata with the modification times of its files and a digest of the metadata.

    Args:
        root: directory of the files.
        metadata: plain values, as read from JSON.
    """
    names = [f"{table}/{key}" for table, entries in metadata["columns"].items() for key in entries]
    times = {name: (root / f"{name}.memmap").stat().st_mtime_ns for name in names}
    content = {**metadata, "changed_ns": times}
    return {**content, "digest": json_digest(content, without=("digest", "changed_ns"))}


def store_statistics(frames: TensorDictBase, steps: TensorDictBase) -> dict[str, dict[str, list[float]]]:
    """Compute the statistics of observations and actions for the metadata of a store."""
    # No action was chosen from the frame after an episode's last action.
    rows = torch.arange(steps.shape[0]) + steps["episode"].as_subclass(Tensor)
    tables = {
        key: (steps[key], None) if key in STEP_KEYS else (frames[key], rows)
        for key in STATISTICS_KEYS
        if key in STEP_KEYS or frames.get(key, None) is not None
    }
    return {
        key: {
            name: value.tolist()
            for name, value in column_statistics(table.as_subclass(Tensor).flatten(1), index).items()
        }
        for key, (table, index) in tables.items()
    }
