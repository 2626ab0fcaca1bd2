"""Conversion of the trajectories of a ManiSkill file to episodes."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np
import torch

from torchrl_flow.data.checks.hdf5 import DAMAGE, reading_hdf5
from torchrl_flow.data.demos.episode import Episode, cut_after_success, drop_idle_steps
from torchrl_flow.data.demos.trajectory_file import HOW_TO_MAKE, TrajectoryFile
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.functional.observation import flatten_state, state_paths

__all__ = ["EpisodeReader", "ReadOptions", "warn_doubts"]

DEFAULT_CAMERA = "base_camera"


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading a trajectory file into a store.

    Args:
        max_episodes: number of valid episodes to read. Defaults to all.
        after_success: ``"keep"`` all steps, or ``"cut"`` those after the first successful one.
        keep_after_success: with ``"cut"``, number of steps to keep after the success.
        drop_idle: leave out steps in which the action commands no motion and the observation does not change; see
            :func:`~torchrl_flow.data.demos.episode.drop_idle_steps`.
        camera: camera whose images become ``pixels``. Defaults to ``base_camera``, or to the only camera.
        env_states: also store the simulator's states, as frames ``("env_state", ...)``.
        success_terminates: whether a success ends the task. False for tasks that continue after a success, such as
            holding a pose: then only failures, and the ends of ``recorded_ends``, terminate.
        recorded_ends: also read ``terminated`` of the file, for ends such as the fall of a robot, and check
            ``truncated``, which may be True at the last step only. ManiSkill's own files also set ``terminated`` at a
            success, and both flags in the middle of trajectories that exceed the time limit.
    """

    max_episodes: int | None = None
    after_success: Literal["keep", "cut"] = "keep"
    keep_after_success: int = 0
    drop_idle: bool = False
    camera: str | None = None
    env_states: bool = False
    success_terminates: bool = True
    recorded_ends: bool = False

    def __post_init__(self) -> None:
        if self.after_success not in ("keep", "cut"):
            raise ValueError(f"after_success must be 'keep' or 'cut', got {self.after_success!r}.")
        if self.keep_after_success < 0:
            raise ValueError(f"keep_after_success must be at least 0, got {self.keep_after_success}.")
        if self.max_episodes is not None and self.max_episodes < 1:
            raise ValueError(f"max_episodes must be at least 1 (or None for all), got {self.max_episodes}.")


class EpisodeReader:
    """Reader of the valid episodes of a file; ``skipped`` has the reasons for leaving out the others."""

    def __init__(self, source: TrajectoryFile, options: ReadOptions) -> None:
        self.source, self.options = source, options
        self.skipped: list[str] = []
        self.good = [number for number in range(len(source.episodes)) if number not in source.bad]
        self._layouts = {number: self._read_layout(number) for number in self.good}
        self.layout = self._common_layout()
        self.camera = self._choose_camera()
        first = next(number for number in self.good if self._layouts[number] == self.layout)
        with reading_hdf5(source.path):
            obs = source.group(first)["obs"]
            self.state_keys = ["/".join(p) for p in state_paths(obs)] if isinstance(obs, h5py.Group) else None
            self.doubts = [*self._order_lost(obs), *self._left_out(), *self._no_success()]
        warn_doubts(self.doubts)

    @property
    def has_success(self) -> bool:
        """Whether ``success`` was recorded."""
        return "success" in self.layout

    @property
    def reward_mode(self) -> str | None:
        """Mode of the rewards: as recorded, or sparse if they are computed from success; None if it is unknown."""
        return self.source.env_field("reward_mode") if "rewards" in self.layout else "sparse"

    def episodes(self) -> Iterator[Episode]:
        """Yield the valid episodes in the order of the file; raise an error if there is none."""
        count = 0
        for number in range(len(self.source.episodes)):
            if count == self.options.max_episodes:
                return
            try:
                episode = self._read(number)
            except DAMAGE as error:
                reason = str(error)
                name = self.source.name(number)
                self.skipped.append(reason if reason.startswith(name) else f"{name}: {reason}")
                continue
            count += 1
            yield episode
        if count == 0:
            reasons = "; ".join(self.skipped[:3])
            raise DataError(f"{self.source.path.name} has no usable episode ({reasons}): {HOW_TO_MAKE}.")

    def _read(self, number: int) -> Episode:
        if number in self.source.bad:
            raise DataError(self.source.bad[number])
        group, name = self.source.group(number), self.source.name(number)
        layout = self._layouts[number]
        if layout != self.layout:
            raise DataError(f"{name}: its entries are {layout} and those of most episodes {self.layout}")
        if not {"success", "fail", "rewards"} & set(layout):
            raise DataError(
                f"{name}: it has no `success`, `fail` or `rewards`, from which rewards and ends are rebuilt"
            )
        ends = ("terminated", "truncated") if self.options.recorded_ends else ()
        if ends and not any(entry in group for entry in ends):
            raise DataError(f"{name}: recorded_ends=True, but it has no `terminated` and no `truncated`")
        names = {"actions": "action", "rewards": "reward"}
        data: dict[str, Any] = {
            names.get(entry, entry): np.asarray(group[entry])
            for entry in ("actions", "rewards", "success", "fail", "perturbed", *ends)
            if entry in group
        }
        data["success_terminates"] = self.options.success_terminates
        data.update(self._frames(group))
        data["seed"] = torch.tensor(self.source.seed(number))
        episode = Episode.from_mapping(data, name)
        if self.options.drop_idle:
            episode = drop_idle_steps(episode)
        if self.options.after_success == "cut":
            episode = cut_after_success(episode, self.options.keep_after_success)
        return episode

    def _frames(self, group: h5py.Group) -> dict[str, Any]:
        obs: Any = group["obs"]
        frames: dict[str, Any] = {}
        if isinstance(obs, h5py.Dataset):
            frames["observation"] = np.asarray(obs)
        elif "state" in obs:
            frames["observation"] = np.asarray(obs["state"])
        else:
            frames["observation"] = flatten_state(obs)
        if self.camera is not None:
            images = np.asarray(obs[f"sensor_data/{self.camera}/rgb"])
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                found = f"{list(images.shape)} {images.dtype}"
                raise DataError(f"`rgb` of {self.camera} must be [T + 1, h, w, 3] uint8, got {found}")
            frames["pixels"] = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        if self.options.env_states:
            frames["env_state"] = _tree(group["env_states"])
        return frames

    def _read_layout(self, number: int) -> dict[str, tuple[int, ...]]:
        """Return the layout of an entry, empty if its part of the file is damaged."""
        try:
            return _layout(self.source.group(number))
        except DAMAGE as error:
            self.source.bad[number] = f"{self.source.name(number)}: it cannot be read ({error})"
            return {}

    def _common_layout(self) -> dict[str, tuple[int, ...]]:
        """Return the entries and row shapes of most trajectories; trajectories with other layouts are invalid."""
        layouts = list(self._layouts.values())
        counts = Counter(json.dumps(layout, sort_keys=True) for layout in layouts if layout)
        most = counts.most_common(1)[0][0] if counts else None
        layout = next((entry for entry in layouts if json.dumps(entry, sort_keys=True) == most), {})
        if not any(entry.startswith("obs") for entry in layout):
            mode = self.source.env_field("obs_mode")
            raise DataError(
                f"{self.source.path.name} has no observations (obs_mode {mode!r}; state or rgb is needed): "
                f"{HOW_TO_MAKE}."
            )
        return layout

    def _choose_camera(self) -> str | None:
        prefix, suffix = "obs/sensor_data/", "/rgb"
        cameras = [
            key[len(prefix) : -len(suffix)] for key in self.layout if key.startswith(prefix) and key.endswith(suffix)
        ]
        wanted = self.options.camera
        if wanted is None:
            if len(cameras) < 2 or DEFAULT_CAMERA in cameras:
                return DEFAULT_CAMERA if DEFAULT_CAMERA in cameras else next(iter(cameras), None)
            wanted = "None"
        if wanted not in cameras:
            what = f"the cameras {cameras}: choose one" if cameras else "no camera images: leave camera out"
            raise DataError(f"camera={wanted!r} is not in {self.source.path.name}, which has {what}.")
        return wanted

    def _order_lost(self, obs: Any) -> Iterator[str]:
        if not isinstance(obs, h5py.Group) or "state" in obs:
            return
        for name in ("agent", "extra"):
            group = obs.get(name)
            tracked = isinstance(group, h5py.Group) and group.id.get_create_plist().get_link_creation_order()
            if isinstance(group, h5py.Group) and len(group) > 1 and not tracked:
                yield (
                    f"{self.source.path.name}: the order in which obs/{name} was recorded is lost (it was "
                    f"written without track_order), and {list(group)} is assumed. If the environment's "
                    "order differs, a policy trained on this file will fail there."
                )

    def _left_out(self) -> Iterator[str]:
        """Return the entries of the observations that are not read, except cameras that were not chosen."""
        lost = sorted(entry for entry in self.layout if entry.startswith("obs/") and not _is_read(entry))
        if lost:
            shown = ", ".join(lost[:4]) + (", ..." if len(lost) > 4 else "")
            rest = (
                "the state vector" if "obs/state" in self.layout else "agent and extra, what the robot itself measures,"
            )
            images = "no image" if self.camera is None else f"the images of {self.camera}"
            yield (
                f"{self.source.path.name} (obs_mode {self.source.env_field('obs_mode')!r}): {shown} are left out: "
                f"this library does not read them. What is left is {rest} and {images}: a policy trained on that does "
                "not see what was left out. Record the demonstrations with obs_mode 'state', 'rgb' or 'rgb+state'."
            )

    def _no_success(self) -> Iterator[str]:
        if not self.has_success and {"rewards", "fail"} & set(self.layout):
            what = "the recorded rewards are kept" if "rewards" in self.layout else "rewards are -1 where it failed"
            ends = "where the task failed" if "fail" in self.layout else "nowhere but at the time limit"
            ends += " and where `terminated` is set" if self.options.recorded_ends else ""
            yield (
                f"{self.source.path.name} has no `success`: no step counts as a success, {what}, and episodes end "
                f"{ends}. Where the task has a success, record it anew, so that its ends are known."
            )


def warn_doubts(doubts: Iterable[str]) -> None:
    """Warn of possible errors in a file, each time it is read or its store is reopened."""
    for doubt in doubts:
        warnings.warn(doubt, DataWarning, stacklevel=5)


def _is_read(entry: str) -> bool:
    """Return whether an entry of the observations is stored (of images, those of the chosen camera)."""
    parts = entry.split("/")
    return parts[1] in ("agent", "extra", "state") or (parts[1] == "sensor_data" and parts[-1] == "rgb")


def _layout(group: h5py.Group) -> dict[str, tuple[int, ...]]:
    """Return row shapes of the entries that are read, by path."""
    out: dict[str, tuple[int, ...]] = {}

    def visit(path: str, entry: Any) -> None:
        wanted = path in ("actions", "rewards", "success", "fail") or path.startswith("obs")
        if isinstance(entry, h5py.Dataset) and wanted and not path.startswith("obs/sensor_param"):
            out[path] = tuple(entry.shape[1:])

    group.visititems(visit)
    return out


def _tree(group: Any) -> Any:
    return {key: _tree(value) for key, value in group.items()} if isinstance(group, h5py.Group) else np.asarray(group)
