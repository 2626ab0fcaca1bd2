"""Reads ManiSkill trajectory files into demo stores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl_flow.data.episode import Episode
from torchrl_flow.data.errors import DataError
from torchrl_flow.data.maniskill_reader import EpisodeReader, ReadOptions
from torchrl_flow.data.store import DemoStore, file_digest
from torchrl_flow.data.trajectory_file import TrajectoryFile
from torchrl_flow.data.writer import VERSION

__all__ = ["read_maniskill"]


def read_maniskill(path: str | Path, root: str | Path | None = None, **options: Any) -> DemoStore:
    """Reads a trajectory ``.h5`` (with its ``.json``) into a demo store, or reopens the one made of it
    before.

    ``observation`` ``[T + 1, D]`` is the flat vector of state mode as it is, or the nested entries joined by
    :func:`~torchrl_flow.functional.observation.flatten_state`; ``pixels`` ``[T + 1, 3, h, w]`` uint8 are the
    images of one camera. ``terminated`` and ``truncated`` of the file are ignored: demonstrations outlast the
    task's registered time limit, and carry flags in mid-trajectory. What ends a transition is rebuilt from
    ``success`` by :class:`~torchrl_flow.data.ChunkStorage`. ``reward`` is what was recorded, or 1 where
    successful.

    Args:
        path: the ``.h5`` file.
        root: directory of the store. Default: one named after the content of both files and the options, in
            ``$TORCHRL_FLOW_CACHE`` or ``~/.cache/torchrl_flow/stores``.
        **options: fields of :class:`ReadOptions`.

    Returns:
        The store. An episode that cannot be used (not finite, of another length or shape, incomplete) is left
        out, with a :class:`DataWarning` and its reason in ``store.skipped``.

    Raises:
        DataError: when the file is refused (see :class:`TrajectoryFile`), has no observations, no good
            episode, or ``root`` holds something else.
    """
    chosen = ReadOptions(**options)
    with TrajectoryFile(path) as source:
        sha256 = [file_digest(source.path), file_digest(source.json_path)]
        key = _store_key(sha256, chosen)
        target = Path(root) if root is not None else _cache_root() / f"{source.path.stem}-{key[:16]}"
        if target.exists():
            return _reopen(target, key, source.path)
        reader = EpisodeReader(source, chosen)
        episodes = reader.episodes()
        task_info = {
            "task": source.env_info["env_id"],
            "control_mode": source.control_mode,
            "obs_mode": source.env_info.get("env_kwargs", {}).get("obs_mode"),
            "max_episode_steps": source.env_info.get("max_episode_steps"),
        }
        metadata = {
            "key": key,
            "source": {"file": source.path.name, "sha256": sha256},
            "options": asdict(chosen),
            "state_keys": reader.state_keys,
            "skipped": reader.skipped,
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        return _build(episodes, target, key, source.path, task_info, metadata)


def _build(
    episodes: Iterator[Episode],
    target: Path,
    key: str,
    path: Path,
    task_info: Mapping[str, Any],
    metadata: dict[str, Any],
) -> DemoStore:
    try:
        return DemoStore.from_episodes(episodes, target, task_info=task_info, metadata=metadata, skip_bad=True)
    except OSError:
        if not target.exists():
            raise
        # Another process read the same file meanwhile and was first.
        return _reopen(target, key, path)


def _store_key(sha256: list[str], options: ReadOptions) -> str:
    content = json.dumps([VERSION, sha256, asdict(options)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _cache_root() -> Path:
    folder = os.environ.get("TORCHRL_FLOW_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "torchrl_flow") / "stores"


def _reopen(root: Path, key: str, path: Path) -> DemoStore:
    store = DemoStore.open(root)
    if store.metadata.get("key") != key:
        raise DataError(
            f"{root} is a demo store of {store.metadata.get('source', {}).get('file')!r} with options "
            f"{store.metadata.get('options')}, not of {path.name} as it is now with the options given: give "
            "another root, or remove it."
        )
    return store
