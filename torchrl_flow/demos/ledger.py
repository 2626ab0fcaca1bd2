"""Keeps what a demonstration maker has done, so that it can be killed and go on, and merges it in the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from torchrl_flow.data.checks.hdf5 import check_hdf5
from torchrl_flow.demos.recording import RecordedEpisode
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.files import part_of, publish, staged, write_json

__all__ = ["Attempt", "DemoLedger"]


@dataclass(frozen=True)
class Attempt:
    """The outcome of one seed: ``stage`` is ``"done"``, or where it failed; ``steps`` is its length.

    A demonstration that was allowed to fail is done whether it ``success``-fully solved the task or not.
    """

    seed: int
    stage: str
    steps: int = 0
    reason: str = ""
    success: bool = True


class DemoLedger:
    """Attempts by seed: those in the finished file, and those made since in a directory beside it.

    Each attempt is a ``.json``, a successful one also an ``.h5``, written under another name and renamed, so
    that a kill at any moment leaves whole attempts only. :meth:`merge` writes the ``.h5`` and ``.json`` in
    the same way and then removes the directory.

    Args:
        path: the ``.h5`` to be made.
        settings: JSON-able; whatever the content depends on.

    Raises:
        ValueError: when attempts or a file made with other settings are there; nothing is changed then.
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
        """Tell whether the finished file holds every attempt."""
        return self.json_path.is_file() and self.path.is_file() and not self.parts.exists()

    def add(self, attempt: Attempt, episode: RecordedEpisode | None = None) -> None:
        """Keep an attempt; one that gave a demonstration with its episode."""
        self.parts.mkdir(parents=True, exist_ok=True)
        if not (self.parts / "settings.json").exists():
            write_json(self.parts / "settings.json", self.settings, indent=1)
        if episode is not None:
            with staged(self._part(attempt.seed)) as part, h5py.File(part, "w", track_order=True) as file:
                _write_episode(file.create_group("traj", track_order=True), episode)
        write_json(self._part(attempt.seed).with_suffix(".json"), attempt.__dict__, indent=1)
        self.attempts[attempt.seed] = attempt

    def merge(self, info: Mapping[str, Any], episode_info: Mapping[str, Any]) -> None:
        """Write all demonstrations, in the order of their seeds, as ManiSkill's two files.

        Args:
            info: ``env_info`` and other top-level entries of the ``.json``.
            episode_info: entries that all episodes have in common.
        """
        part, json_part = part_of(self.path), part_of(self.json_path)
        episodes = []
        with h5py.File(part, "w", track_order=True) as file:
            for number, attempt in enumerate(self.done):
                self._copy(attempt.seed, file, f"traj_{number}")
                episodes.append(
                    {
                        "episode_id": number,
                        "episode_seed": attempt.seed,
                        **episode_info,
                        "elapsed_steps": attempt.steps,
                        "reset_kwargs": {"options": {"reconfigure": True}, "seed": attempt.seed},
                        "success": attempt.success,
                    }
                )
        attempts = [self.attempts[seed].__dict__ for seed in sorted(self.attempts)]
        made = {"settings": self.settings, "attempts": attempts}
        write_json(json_part, {**info, "make_demos": made, "episodes": episodes}, indent=1)
        # The .json comes last: while it is the old one, the parts are still there to merge again.
        publish(part, self.path)
        publish(json_part, self.json_path)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _copy(self, seed: int, file: h5py.File, name: str) -> None:
        inside = self._in_file.get(seed)
        path, group = (self._part(seed), "traj") if inside is None else (self.path, inside)
        with h5py.File(path, "r") as source:
            check_hdf5(source, path)
            source.copy(source[group], file, name)

    def _part(self, seed: int) -> Path:
        return self.parts / f"seed_{seed:08d}.h5"

    def _read_file(self) -> None:
        if not self.json_path.exists():
            return
        made = json.loads(self.json_path.read_text(encoding="utf-8")).get("make_demos")
        if made is None:
            raise ValueError(f"{self.path} was not made by this program: give another out_dir, or move it away.")
        self._compare(made["settings"], self.path)
        with h5py.File(self.path, "r") as file:
            recorded = len(file)
        for entry in made["attempts"]:
            attempt = Attempt(**entry)
            self.attempts[attempt.seed] = attempt
        for number, attempt in enumerate(self.done[:recorded]):
            self._in_file[attempt.seed] = f"traj_{number}"

    def _read_parts(self) -> None:
        if not (self.parts / "settings.json").exists():
            return
        self._compare(json.loads((self.parts / "settings.json").read_text(encoding="utf-8")), self.parts)
        for attempt in self._part_attempts():
            self.attempts[attempt.seed] = attempt

    def _part_attempts(self) -> Iterator[Attempt]:
        for path in sorted(self.parts.glob("seed_*.json")):
            attempt = Attempt(**json.loads(path.read_text(encoding="utf-8")))
            if attempt.stage != "done" or self._part(attempt.seed).is_file():
                yield attempt

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        names, form = sorted({*found, *self.settings}), "{name} ({found!r} there, {wanted!r} now)"
        differing = differing_fields(found, self.settings, names, form=form)
        if differing:
            raise ValueError(
                f"{where} was made with other settings: {', '.join(differing)}. Give another out_dir, or remove it."
            )


def _write_episode(group: h5py.Group, episode: RecordedEpisode) -> None:
    _write_tree(group, "obs", episode.obs)
    for name in ("actions", "terminated", "truncated", "success"):
        group.create_dataset(name, data=getattr(episode, name))
    _write_tree(group, "env_states", episode.env_states)
    for name in ("rewards", "perturbed", "fail"):
        if getattr(episode, name) is not None:
            group.create_dataset(name, data=getattr(episode, name))


def _write_tree(group: h5py.Group, name: str, tree: Any) -> None:
    """Nested arrays, in their order; images compressed."""
    if isinstance(tree, Mapping):
        inner = group.create_group(name, track_order=True)
        for key, value in tree.items():
            _write_tree(inner, key, value)
        return
    value = np.asarray(tree)
    image = value.ndim == 4
    # One frame a chunk, so that reading a frame does not unpack others.
    options = {"compression": "gzip", "compression_opts": 4, "chunks": (1, *value.shape[1:])} if image else {}
    group.create_dataset(name, data=value, **options)
