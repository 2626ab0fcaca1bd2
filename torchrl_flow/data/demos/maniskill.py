"""Reader of ManiSkill trajectory files into demo stores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl_flow.data.checks.hdf5 import reading_hdf5
from torchrl_flow.data.demos.episode import Episode
from torchrl_flow.data.demos.maniskill_reader import EpisodeReader, ReadOptions, warn_doubts
from torchrl_flow.data.demos.store import DemoStore, warn_if_fewer
from torchrl_flow.data.demos.trajectory_file import TrajectoryFile
from torchrl_flow.data.demos.writer import VERSION
from torchrl_flow.data.errors import DataError
from torchrl_flow.util.digest import file_digest
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["read_maniskill"]


def read_maniskill(path: str | Path, root: str | Path | None = None, **options: Any) -> DemoStore:
    """Read a trajectory ``.h5`` (with its ``.json``) into a demo store, or reopen the store made from it before.

    ``observation`` ``[T + 1, D]`` is the flat vector of state mode, unchanged, or the nested entries joined by
    :func:`~torchrl_flow.functional.observation.flatten_state`; ``pixels`` ``[T + 1, 3, h, w]`` uint8 are the images of
    one camera. ``terminated`` and ``truncated`` of the file are ignored unless ``recorded_ends`` is given:
    demonstrations exceed the task's registered time limit, and have flags set in mid-trajectory.
    :class:`~torchrl_flow.data.ChunkStorage` computes the end of a transition from ``success`` (unless
    ``success_terminates`` is False) and ``fail``, as ManiSkill does. ``reward`` is the recorded reward, or ManiSkill's
    sparse reward, success minus failure. A file without ``success`` is read if it has recorded rewards or failures,
    with a :class:`DataWarning`; none of its steps counts as a success.

    Args:
        path: the ``.h5`` file.
        root: directory of the store. Defaults to a directory in ``$TORCHRL_FLOW_CACHE`` or
            ``~/.cache/torchrl_flow/stores``, named by a hash of both files and the options.
        **options: fields of :class:`ReadOptions`.

    Returns:
        The store. An episode that cannot be used (not finite, of another length or shape, incomplete) is left out, with
        a :class:`DataWarning` and its reason in ``store.skipped``; depth and point clouds are left out too. Fewer valid
        episodes than ``max_episodes`` also give a :class:`DataWarning`.

    Raises:
        DataError: if the file is refused (see :class:`TrajectoryFile`), was changed since make-demos made it, has no
            observations or no valid episode, or ``root`` holds other content.
    """
    chosen = ReadOptions(**options)
    with TrajectoryFile(path) as source:
        sha256 = [file_digest(source.path), file_digest(source.json_path)]
        source.require_unchanged(sha256[0])
        key = _store_key(sha256, chosen, fails=_has_fail(source))
        target = Path(root) if root is not None else _cache_root() / f"{source.path.stem}-{key[:16]}"
        if target.exists():
            store = _reopen(target, key, source.path)
            if "reward_mode" not in store.metadata or "doubts" not in store.metadata:
                # The store is older than these entries: read them from the file.
                store.metadata.update(_about(EpisodeReader(source, chosen)))
            else:
                warn_doubts(store.metadata["doubts"])
            return _count_checked(store, source.path, chosen)
        reader = EpisodeReader(source, chosen)
        episodes = reader.episodes()
        task_info = TaskInfo(
            task=source.env_info["env_id"],
            control_mode=source.control_mode,
            obs_mode=source.env_field("obs_mode"),
            max_episode_steps=source.max_episode_steps,
        )
        metadata = {
            "key": key,
            "source": {"file": source.path.name, "sha256": sha256},
            "options": asdict(chosen),
            "state_keys": reader.state_keys,
            "skipped": reader.skipped,
            **_about(reader),
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        store = _build(episodes, target, key, source.path, task_info, metadata)
        return _count_checked(store, source.path, chosen)


def _about(reader: EpisodeReader) -> dict[str, Any]:
    return {"reward_mode": reader.reward_mode, "has_success": reader.has_success, "doubts": reader.doubts}


def _has_fail(source: TrajectoryFile) -> bool:
    with reading_hdf5(source.path):
        return any("fail" in source.group(number) for number in range(len(source.episodes)) if number not in source.bad)


def _count_checked(store: DemoStore, path: Path, options: ReadOptions) -> DemoStore:
    wanted = options.max_episodes
    if wanted is not None:
        warn_if_fewer(path.name, store.num_episodes, wanted)
    return store


def _build(
    episodes: Iterator[Episode],
    target: Path,
    key: str,
    path: Path,
    task_info: TaskInfo,
    metadata: dict[str, Any],
) -> DemoStore:
    try:
        return DemoStore.from_episodes(episodes, target, task_info=task_info, metadata=metadata, skip_bad=True)
    except OSError:
        if not target.exists():
            raise
        # Another process has created the store from the same file in the meantime.
        return _reopen(target, key, path)


def _store_key(sha256: list[str], options: ReadOptions, *, fails: bool) -> str:
    # Options that older stores lack do not change the key while they have their defaults.
    later = {"success_terminates": True, "recorded_ends": False}
    given = {name: value for name, value in asdict(options).items() if name not in later or value != later[name]}
    # Older stores lack failures: a file with failures gets another key.
    content = json.dumps([VERSION, sha256, given, *(["fail"] if fails else [])], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _cache_root() -> Path:
    folder = os.environ.get("TORCHRL_FLOW_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "torchrl_flow") / "stores"


def _reopen(root: Path, key: str, path: Path) -> DemoStore:
    store = DemoStore.open(root)
    if store.metadata.get("key") != key:
        raise DataError(
            f"{root} is a demo store of {store.metadata.get('source', {}).get('file')!r} with options "
            f"{store.metadata.get('options')}, not of {path.name} with its present content and options: give "
            "another root, or remove it."
        )
    return store
