"""Reader of ManiSkill's trajectory files, an ``.h5`` and a ``.json`` that are opened and validated together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import h5py

from torchrl_flow.data.checks.hdf5 import check_hdf5, reading_hdf5
from torchrl_flow.data.demos.trajectory_json import (
    HOW_TO_MAKE,
    as_whole_number,
    env_kwargs,
    episode_id,
    read_trajectory_json,
    text_field,
)
from torchrl_flow.data.errors import LFS_ADVICE, DataError, is_lfs_pointer

__all__ = ["TrajectoryFile"]


class TrajectoryFile:
    """A trajectory file with matching ``.h5`` and ``.json``; a context manager.

    ``episodes`` are the entries of the ``.json`` in its order; ``bad`` maps the number of an entry to the reason why
    its trajectory cannot be read, from a check of names and lengths.

    Args:
        path: path of the ``.h5`` file; the ``.json`` file has the same name.

    Raises:
        DataError: if either file is missing, damaged, empty or not of ManiSkill, they belong to different recordings,
            or the episodes have more than one control mode.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.json_path = self.path.with_suffix(".json")
        _check_present(self.path, self.json_path)
        self.info = read_trajectory_json(self.json_path)
        self.episodes: list[dict[str, Any]] = self.info["episodes"]
        self.env_kwargs = env_kwargs(self.json_path, self.env_info)
        self.control_mode = self._one_control_mode()
        self.file = _open_h5(self.path)
        try:
            check_hdf5(self.file, self.path)
            with reading_hdf5(self.path):
                self.bad = self._match()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    @property
    def env_info(self) -> dict[str, Any]:
        """``env_id``, ``env_kwargs`` and ``max_episode_steps`` of the recorded environment."""
        return self.info["env_info"]

    def env_field(self, name: str) -> str | None:
        """Return a string argument with which the environment was made (``obs_mode``, ...); None if unknown.

        Raises:
            DataError: if the argument is not a string.
        """
        return text_field(self.json_path, f"env_info.env_kwargs.{name}", self.env_kwargs.get(name))

    @property
    def max_episode_steps(self) -> int | None:
        """The recorded environment's time limit; None if unknown."""
        return as_whole_number(self.env_info.get("max_episode_steps"))

    def name(self, number: int) -> str:
        """Return the group of the ``.h5`` that holds entry ``number``."""
        return f"traj_{episode_id(self.episodes[number])}"

    def seed(self, number: int) -> int:
        """Return the seed of entry ``number``; -1 if the ``.json`` has no valid seed."""
        episode = self.episodes[number]
        arguments = episode.get("reset_kwargs")
        values = [episode.get("episode_seed"), arguments.get("seed") if isinstance(arguments, dict) else None]
        seeds = [seed for seed in map(as_whole_number, values) if seed is not None and abs(seed) < 2**63]
        return seeds[0] if seeds else -1

    def require_unchanged(self, sha256: str) -> None:
        """Refuse an ``.h5`` file whose checksum is not the one in the ``.json`` file.

        Args:
            sha256: checksum of the ``.h5`` file. Files of make-demos record it; files of ManiSkill do not.

        Raises:
            DataError: if the checksums differ.
        """
        made = self.info.get("make_demos")
        wanted = made.get("h5_sha256") if isinstance(made, dict) else None
        if wanted is not None and wanted != sha256:
            raise DataError(
                f"{self.path.name} was changed since it was made, or is damaged: its checksum is not the one in "
                f"{self.json_path.name}. Copy both files again, or make them again; if you changed it on "
                "purpose, remove `make_demos` and `digest` from the .json."
            )

    def group(self, number: int) -> h5py.Group:
        """Return the trajectory of entry ``number``."""
        group = self.file[self.name(number)]
        if not isinstance(group, h5py.Group):
            raise DataError(f"{self.path.name}, {self.name(number)}: it is not a group.")
        return group

    def _one_control_mode(self) -> str | None:
        """Return the control mode of the actions; None if neither the episodes nor ``env_info`` name it."""
        declared = self.env_field("control_mode")
        modes = Counter(mode for mode in map(self._control_mode, range(len(self.episodes))) if mode is not None)
        if len(modes) > 1:
            raise DataError(
                f"{self.path.name} mixes control modes: {dict(modes)}. One policy cannot learn actions of "
                "different modes: convert it to one mode with replay_trajectory, or split the file."
            )
        mode = next(iter(modes), declared)
        if declared is not None and mode != declared:
            raise DataError(
                f"{self.path.name} mixes control modes: its episodes have {mode!r} and its env_info has "
                f"{declared!r}. Correct {self.json_path.name} or record it anew."
            )
        return mode

    def _control_mode(self, number: int) -> str | None:
        field = f"episodes[{number}].control_mode"
        return text_field(self.json_path, field, self.episodes[number].get("control_mode"))

    def _match(self) -> dict[int, str]:
        """Return the reasons of entries without a matching trajectory; raise an error if they are the majority."""
        present = {name for name in map(str, self.file) if name.startswith("traj_")}
        if not present:
            found = sorted(self.file)[:4]
            what = f"it holds {found} and no" if found else "it is empty: no"
            raise DataError(
                f"{self.path.name} is not a ManiSkill trajectory file: {what} `traj_*` group; {HOW_TO_MAKE}."
            )
        bad: dict[int, str] = {}
        seen: set[str] = set()
        for number, episode in enumerate(self.episodes):
            name = self.name(number)
            if name in seen:
                bad[number] = f"{name}: the .json lists it twice"
                continue
            seen.add(name)
            if name not in present:
                bad[number] = f"{name}: the .json lists it and the .h5 has no such group"
                continue
            group = self.file[name]
            actions = group.get("actions") if isinstance(group, h5py.Group) else None
            listed = episode.get("elapsed_steps")
            steps = as_whole_number(listed)
            if not isinstance(actions, h5py.Dataset) or actions.ndim == 0:
                bad[number] = f"{name}: it has no `actions`"
            elif listed is not None and steps is None:
                bad[number] = f"{name}: its `elapsed_steps` in the .json is {listed!r}, which is no number of steps"
            elif steps is not None and steps != actions.shape[0]:
                bad[number] = f"{name}: it has {actions.shape[0]} actions and the .json says {steps}"
        if 2 * len(bad) > len(self.episodes):
            raise DataError(
                f"{self.json_path.name} does not fit {self.path.name}: {len(bad)} of {len(self.episodes)} "
                f"episodes do not agree ({next(iter(bad.values()))}). Put the .json of "
                "this recording beside it."
            )
        return bad


def _check_present(path: Path, json_path: Path) -> None:
    if path.suffix != ".h5":
        raise DataError(
            f"{path} is not an .h5 file: give ManiSkill's trajectory .h5, or the directory of a demo store."
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file: correct the path, or {HOW_TO_MAKE}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty (0 bytes): record it anew, or {HOW_TO_MAKE}.")
    if not json_path.is_file():
        raise DataError(
            f"{path.name} has no {json_path.name} beside it, which holds its task and control mode: copy both files of "
            "the recording. A file of another program must be converted by DemoStore.from_episodes."
        )


def _open_h5(path: Path) -> h5py.File:
    try:
        path.open("rb").close()  # its errors name the file
        return h5py.File(path, "r")
    except PermissionError:  # not damage; the error names the file
        raise
    except OSError as error:
        if is_lfs_pointer(path):
            raise DataError(f"{path.name} cannot be read: {LFS_ADVICE}.") from error
        what = "is damaged" if _has_signature(path) else "is not an HDF5 file"
        raise DataError(f"{path.name} {what} ({error}): copy or record it again.") from error


def _has_signature(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"
