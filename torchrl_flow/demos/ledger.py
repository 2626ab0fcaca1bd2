"""Record of the attempts at demonstrations, which allows continuing after a kill, and their merge at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from torchrl_flow.data.checks.hdf5 import check_hdf5, reading_hdf5
from torchrl_flow.data.checks.json import read_object
from torchrl_flow.data.errors import DataError
from torchrl_flow.demos.recording import RecordedEpisode
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.digest import file_digest, json_digest
from torchrl_flow.util.files import staged, write_json

__all__ = ["Attempt", "DemoLedger"]


@dataclass(frozen=True)
class Attempt:
    """The outcome of one seed: ``stage`` is ``"done"`` or the stage that failed; ``steps`` is its length.

    A demonstration that may fail is ``"done"`` in either case; ``success`` is whether it solved the task.
    """

    seed: int
    stage: str
    steps: int = 0
    reason: str = ""
    success: bool = True


class DemoLedger:
    """Attempts by seed: those in the finished file, and later ones in a directory beside it.

    Each attempt is a ``.json`` file; a successful one also has an ``.h5`` file. Files are written under another name
    and renamed, so a kill leaves only complete attempts. :meth:`merge` writes the ``.h5`` and ``.json`` in the same way
    and then removes the directory.

    Args:
        path: path of the ``.h5`` file to write.
        settings: JSON-able settings that the content depends on.

    Raises:
        ValueError: if the directory holds attempts or a file made with other settings. In this case nothing is changed.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.json_path = path, path.with_suffix(".json")
        self.parts = path.with_name(f".{path.stem}.parts")
        self.settings = json.loads(json.dumps(settings))
        self.attempts: dict[int, Attempt] = {}
        self._in_file: dict[int, str] = {}
        self._read_file()
        self._read_parts()

    @property
    def done(self) -> list[Attempt]:
        """Attempts that gave a demonstration, by seed."""
        return [self.attempts[seed] for seed in sorted(self.attempts) if self.attempts[seed].stage == "done"]

    def is_merged(self) -> bool:
        """Return whether the finished file holds every attempt."""
        return self.json_path.is_file() and self.path.is_file() and not self.parts.exists()

    def add(self, attempt: Attempt, episode: RecordedEpisode | None = None) -> None:
        """Store an attempt, with its episode if it gave a demonstration."""
        self.parts.mkdir(parents=True, exist_ok=True)
        if not (self.parts / "settings.json").exists():
            write_json(self.parts / "settings.json", self.settings, indent=1)
        if episode is not None:
            with staged(self._part(attempt.seed)) as part, _new_file(part) as file:
                _write_episode(_new_group(file, "traj"), episode)
        write_json(self._part(attempt.seed).with_suffix(".json"), attempt.__dict__, indent=1)
        self.attempts[attempt.seed] = attempt

    def merge(self, info: Mapping[str, Any], episode_info: Mapping[str, Any]) -> None:
        """Write all demonstrations, in the order of their seeds, as ManiSkill's two files.

        Args:
            info: ``env_info`` and other top-level entries of the ``.json``.
            episode_info: entries that all episodes have in common.
        """
        attempts = [self.attempts[seed].__dict__ for seed in sorted(self.attempts)]
        with staged(self.path) as part:
            with _new_file(part) as file:
                episodes = list(self._copied(file, episode_info))
            made = {"settings": self.settings, "attempts": attempts, "h5_sha256": file_digest(part)}
        # The .json is replaced last: before that, the parts still exist and can be merged again.
        content = json.loads(json.dumps({**info, "make_demos": made, "episodes": episodes}))
        write_json(self.json_path, {**content, "digest": json_digest(content)}, indent=1)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _copied(self, file: h5py.File, episode_info: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Copy the demonstrations into a file; yield the ``.json`` entry of each."""
        for number, attempt in enumerate(self.done):
            self._copy(attempt.seed, file, f"traj_{number}")
            yield {
                "episode_id": number,
                "episode_seed": attempt.seed,
                **episode_info,
                "elapsed_steps": attempt.steps,
                "reset_kwargs": {"options": {"reconfigure": True}, "seed": attempt.seed},
                "success": attempt.success,
            }

    def _copy(self, seed: int, file: h5py.File, name: str) -> None:
        inside = self._in_file.get(seed)
        path, group = (self._part(seed), "traj") if inside is None else (self.path, inside)
        with reading_hdf5(path), h5py.File(path, "r") as source:
            check_hdf5(source, path)
            source.copy(source[group], file, name)

    def _part(self, seed: int) -> Path:
        return self.parts / f"seed_{seed:08d}.h5"

    def _read_file(self) -> None:
        if not self.json_path.exists():
            return
        content = read_object(self.json_path)
        made = content.get("make_demos")
        if made is None:
            raise ValueError(f"{self.path} was not made by this program: give another out_dir, or move it away.")
        if content.get("digest", json_digest(content)) != json_digest(content):
            raise DataError(f"{self.json_path} was changed since it was made, or is damaged: move both files away.")
        with _reading(self.json_path):
            self._compare(made["settings"], self.path)
            attempts = [Attempt(**entry) for entry in made["attempts"]]
        with reading_hdf5(self.path), h5py.File(self.path, "r") as file:
            recorded = len(file)
        self.attempts |= {attempt.seed: attempt for attempt in attempts}
        for number, attempt in enumerate(self.done[:recorded]):
            self._in_file[attempt.seed] = f"traj_{number}"

    def _read_parts(self) -> None:
        if not (self.parts / "settings.json").exists():
            return
        self._compare(read_object(self.parts / "settings.json"), self.parts)
        for attempt in self._part_attempts():
            self.attempts[attempt.seed] = attempt

    def _part_attempts(self) -> Iterator[Attempt]:
        for path in sorted(self.parts.glob("seed_*.json")):
            with _reading(path):
                attempt = Attempt(**read_object(path))
            if attempt.stage != "done" or self._part(attempt.seed).is_file():
                yield attempt

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        names, form = sorted({*found, *self.settings}), "{name} ({found!r} there, {wanted!r} now)"
        differing = differing_fields(found, self.settings, names, form=form)
        if differing:
            raise ValueError(
                f"{where} was made with other settings: {', '.join(differing)}. Give another out_dir, or remove it."
            )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise an error that names the file if its fields are not those of an attempt."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): remove it, and its demonstrations are made again.") from error


# HDF5's own functions: before HDF5 2.0, h5py stores the time in each group, and equal content makes unequal files.
def _new_file(path: Path) -> h5py.File:
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    # The first version of the format with checksums of HDF5's own tables.
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    creation = _ordered_without_times(h5py.h5p.FILE_CREATE)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access))


def _new_group(parent: h5py.Group, name: str) -> h5py.Group:
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=_ordered_without_times(h5py.h5p.GROUP_CREATE)))


def _ordered_without_times(kind: Any) -> Any:
    """Return creation properties: entries in their order, and no times."""
    creation: Any = h5py.h5p.create(kind)
    order = h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED
    creation.set_link_creation_order(order)
    creation.set_attr_creation_order(order)
    creation.set_obj_track_times(False)
    return creation


def _write_episode(group: h5py.Group, episode: RecordedEpisode) -> None:
    _write_tree(group, "obs", episode.obs)
    for name in ("actions", "terminated", "truncated", "success"):
        _write_tree(group, name, getattr(episode, name))
    _write_tree(group, "env_states", episode.env_states)
    for name in ("rewards", "perturbed", "fail"):
        if getattr(episode, name) is not None:
            _write_tree(group, name, getattr(episode, name))


def _write_tree(group: h5py.Group, name: str, tree: Any) -> None:
    """Write nested arrays in order, with checksums; images are compressed."""
    if isinstance(tree, Mapping):
        inner = _new_group(group, name)
        for key, value in tree.items():
            _write_tree(inner, key, value)
        return
    value = np.asarray(tree)
    image = value.ndim == 4
    # One frame per chunk, so that reading a frame does not unpack others.
    options = {"compression": "gzip", "compression_opts": 4, "chunks": (1, *value.shape[1:])} if image else {}
    group.create_dataset(name, data=value, fletcher32=True, **options)
