"""Source of a recipe's demonstrations: a file, the motion planner, or the script of the planar task."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.data import DataError, DataWarning, DemoReplayBuffer, DemoStore, TrajectoryFile
from torchrl_flow.data.demos.replay import open_demonstrations
from torchrl_flow.data.demos.task_match import padding_of, require_demonstrations_of
from torchrl_flow.demos.arguments import MakeDemosArgs
from torchrl_flow.demos.make import make_demonstrations
from torchrl_flow.envs import collect_demonstrations
from torchrl_flow.envs.names import PLANAR
from torchrl_flow.envs.own import is_own_task
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.util.task_info import TaskInfo

_log = logging.getLogger(__name__)

__all__ = ["DemoSource"]

DEFAULT_NUM_DEMOS = 100
_KINDS: dict[str, Any] = {
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "bool | None": (bool, type(None)),
    "int": int,
    "str": str,
}
RETIMED_MODES = ("pd_ee_delta_pose", "pd_ee_delta_pos")


@dataclasses.dataclass(frozen=True)
class DemoSource:
    """The source of a recipe's demonstrations; it is stored in checkpoints, so that later stages use the same data.

    Without a path, demonstrations are made once, by ManiSkill's motion planner or the planar task's script, and kept.

    Args:
        path: trajectory file (``.h5``) or directory of a demo store; ``None`` to make them.
        num_demos: number of demonstrations to use, from the start of a file or store. ``None``: all of a file or store;
            without a path 100 are made. Defaults to 100.
        quality: ``"expert"``, ``"mixed"``, or another quality of the planar task. Defaults to ``"mixed"`` for the
            planar task and ``"expert"`` for other tasks.
        retime: whether to re-time planned motions, see :class:`MakeDemosArgs`. Defaults to True for the control modes
            that support it.
        seed: first seed of the planar task's demonstrations.
        folder: directory of the demonstrations that are made.
        image_size: height and width of the images of planned demonstrations. Defaults to the size of the camera.
    """

    path: str | None = None
    num_demos: int | None = DEFAULT_NUM_DEMOS
    quality: str | None = None
    retime: bool | None = None
    seed: int = 0
    folder: str = "demos"
    image_size: int | None = None

    @classmethod
    def of_checkpoint(
        cls, checkpoint: TrainingCheckpoint, path: str | None = None, num_demos: int | None = None
    ) -> DemoSource:
        """Return the demonstrations that a checkpoint was trained on.

        Args:
            checkpoint: written with ``config["demonstrations"]``.
            path: path of demonstrations to use instead of those of the checkpoint. Defaults to None.
            num_demos: number of demonstrations to use from ``path``. Defaults to all.

        Raises:
            CheckpointError: if no path is given, and the checkpoint records no demonstrations, records an invalid
                field, or names a missing directory outside of the current one.
        """
        if path is not None:
            return cls(path=path, num_demos=num_demos)
        found = checkpoint.config.get("demonstrations")
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{checkpoint.path} records no demonstrations: give them (--demos).")
        return cls._told(found, checkpoint.path)

    @classmethod
    def _told(cls, found: Mapping[str, Any], file: Path) -> DemoSource:
        """Make the source described by an untrusted file."""
        kinds = {field.name: _KINDS[str(field.type)] for field in dataclasses.fields(cls)}
        for name, value in found.items():
            if name not in kinds or not isinstance(value, kinds[name]):
                shown = f"{name}={str(value)[:80]!r}"
                raise CheckpointError(
                    f"{file} records {shown} for its demonstrations, which is not a valid field: give --demos."
                )
        source = cls(**found)
        folder = Path(source.folder)
        outside = folder.is_absolute() or ".." in folder.parts
        if source.path is None and outside and not folder.is_dir():
            raise CheckpointError(
                f"{file} names the directory {source.folder!r} for demonstrations, which does not exist and lies "
                "outside of the current directory: create it if that is intended, or give the demonstrations "
                "(--demos)."
            )
        return source

    @property
    def control_mode(self) -> str | None:
        """The control mode of the demonstrations at the path; None if it is unknown or they are to be made.

        Raises:
            DataError: if there are no demonstrations at the path.
        """
        if self.path is None:
            return None
        if Path(self.path).is_dir():
            return DemoStore.open(self.path).task_info.control_mode
        with TrajectoryFile(self.path) as file:
            return file.control_mode

    @property
    def recorded_size(self) -> tuple[int, int] | None:
        """Height and width of the images; None if unknown before the demonstrations are read or made.

        Raises:
            DataError: if there are no demonstrations at the path.
        """
        if self.path is None:
            return None if self.image_size is None else (self.image_size, self.image_size)
        if Path(self.path).is_dir():
            size = DemoStore.open(self.path).sizes["pixels_size"]
            return None if size is None else (size[0], size[1])
        with TrajectoryFile(self.path) as file:
            cameras = file.env_kwargs.get("sensor_configs")
        if not isinstance(cameras, Mapping):
            return None
        height, width = cameras.get("height"), cameras.get("width")
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def load(self, task: Mapping[str, Any], *, uses_rewards: bool = True, **chunks: Any) -> DemoReplayBuffer:
        """Make or read the demonstrations, as a replay buffer of action chunks.

        Rewards are on the scale of the environment's rewards: if these are sparse and others were recorded, success
        minus failure replaces the recorded rewards, with a :class:`DataWarning`.

        Args:
            task: identity of the task (:func:`~torchrl_flow.envs.task_info`) or a mapping of its fields. Demonstrations
                of another task, or with rows of another size, raise an error.
            uses_rewards: whether training uses the rewards; behaviour cloning accepts demonstrations with any rewards.
            **chunks: options of :class:`~torchrl_flow.data.DemoReplayBuffer`. ``padding="hold"`` repeats the last
                action in control modes in which zeros command a motion (:func:`padding_of`).

        Raises:
            DataError: if they are of another task, or have rewards of another mode that cannot be replaced.
            ValueError: if their quality is unknown.
        """
        where, task = self.path or self.folder, TaskInfo.of(task)
        is_own = is_own_task(task.task or "")
        if self.path is None and is_own:
            raise DataError(
                f"demonstrations of {task.task} cannot be made automatically: record some and give them (--demos)."
            )
        if self.path is None and task.task == PLANAR:
            store = self._planar(task)
        elif self.path is None:
            store = open_demonstrations(self._made(task), max_episodes=self.num_demos or DEFAULT_NUM_DEMOS)
        else:
            store = open_demonstrations(self.path, max_episodes=self.num_demos)
        info = dict(store.task_info)
        if is_own and info["task"] == task.name:
            info["task"] = task.task  # the environment's own name of its task
        require_demonstrations_of(task, {**info, **store.sizes, "reward_mode": None}, where)
        if uses_rewards:
            chunks.setdefault("rewards", _rewards(task, store, where))
        if chunks.get("padding") == "hold":
            chunks["padding"] = padding_of(task.control_mode)
        return DemoReplayBuffer(store, **chunks)

    def _planar(self, task: TaskInfo) -> DemoStore:
        quality, mode = self.quality or "mixed", task.obs_mode
        number = self.num_demos or DEFAULT_NUM_DEMOS
        root = Path(self.folder) / f"planar-{quality}-{mode}-{number}-{self.seed}"
        episodes = collect_demonstrations(number, quality=quality, seed=self.seed, from_pixels=mode != "state")
        if root.exists():
            # Another run may be reading the file, so an unchanged file is not written again.
            store, action = DemoStore.open(root), torch.cat([episode["action"] for episode in episodes])
            if torch.equal(store.steps["action"].as_subclass(torch.Tensor), action):
                return store
        return DemoStore.from_episodes(episodes, root, task_info=task, overwrite=True)

    def _made(self, task: TaskInfo) -> Path:
        quality: Literal["expert", "mixed"] = self.quality or "expert"  # pyright: ignore[reportAssignmentType]
        wanted: dict[str, Any] = {name: getattr(task, name) for name in ("task", "obs_mode", "control_mode")}
        report = make_demonstrations(
            MakeDemosArgs(
                **wanted,
                num_demos=self.num_demos or DEFAULT_NUM_DEMOS,
                out_dir=self.folder,
                retime=task.control_mode in RETIMED_MODES if self.retime is None else self.retime,
                quality=quality,
                image_size=self.image_size,
            )
        )
        _log.info(report.summary())
        return report.path


def _rewards(task: TaskInfo, store: DemoStore, where: str) -> Literal["recorded", "sparse"]:
    """Return which rewards of the demonstrations have the scale of the environment's rewards."""
    # Older checkpoints of the planar task do not record its reward mode; it had only one.
    here, there = (
        task.reward_mode or ("sparse" if task.task == PLANAR else None),
        store.task_info.reward_mode,
    )
    if here is None or here == there:
        return "recorded"
    if here == "sparse":
        sparse = store.sparse_reward()
        if torch.equal(store.steps["reward"].as_subclass(torch.Tensor).squeeze(-1), sparse):
            return "recorded"
        # If the mode is unknown too, the absence of successes may mean that they were not recorded.
        if store.has_success and (there is not None or bool(sparse.any())):
            warnings.warn(
                f"{where} holds rewards of the mode {there!r} and the environment gives {here!r} ones: success less "
                "failure is used in place of the recorded rewards.",
                DataWarning,
                stacklevel=3,
            )
            return "sparse"
    if there is None:
        warnings.warn(
            f"{where} does not record the mode of its rewards, and the environment's is {here!r}: they are used "
            "as they are. Give reward_mode in the task_info of the store.",
            DataWarning,
            stacklevel=3,
        )
        return "recorded"
    raise DataError(
        f"{where} holds rewards of the mode {there!r} and the environment gives {here!r} ones, which cannot be "
        "computed from them. Record the demonstrations with the environment's reward mode (replay_trajectory "
        f"--record-rewards --reward-mode {here})."
    )
