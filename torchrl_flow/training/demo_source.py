"""Where a recipe's demonstrations come from: a file, the motion planner, or the planar task's script."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.data import DemoReplayBuffer, DemoStore, load_demonstrations
from torchrl_flow.envs import collect_demonstrations
from torchrl_flow.training.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.training.demo_arguments import MakeDemosArgs
from torchrl_flow.training.make_demos import make_demonstrations
from torchrl_flow.training.tasks import PLANAR, require_demonstrations_of

__all__ = ["DemoSource"]


@dataclasses.dataclass(frozen=True)
class DemoSource:
    """The demonstrations of a recipe; kept in the checkpoints, so that later stages find the same ones.

    Where no path is given they are made once, by ManiSkill's motion planner or the planar task's script, and kept.

    Args:
        path: trajectory file (``.h5``) or directory of a demo store; ``None`` to make them.
        num_demos: how many to use.
        quality: ``"expert"`` or ``"mixed"`` (and more for the planar task); ``None`` for the task's usual, mixed for
            the planar one and expert elsewhere.
        retime: see :class:`MakeDemosArgs`.
        seed: first seed of the planar task's demonstrations.
        folder: where those that are made go.
    """

    path: str | None = None
    num_demos: int = 100
    quality: str | None = None
    retime: bool = True
    seed: int = 0
    folder: str = "demos"

    @classmethod
    def of_checkpoint(
        cls, checkpoint: TrainingCheckpoint, path: str | None = None, num_demos: int | None = None
    ) -> DemoSource:
        """Return the demonstrations that a checkpoint was trained on.

        Args:
            checkpoint: written with ``config["demonstrations"]``.
            path: others in their place.
            num_demos: how many of the others.

        Raises:
            CheckpointError: if the checkpoint does not tell and no path is given.
        """
        if path is not None:
            return cls(path=path, num_demos=cls.num_demos if num_demos is None else num_demos)
        found = checkpoint.config.get("demonstrations")
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{checkpoint.path} does not tell its demonstrations: name them (--demos).")
        return cls(**found)

    def load(self, task: Mapping[str, Any], **chunks: Any) -> DemoReplayBuffer:
        """Make or read the demonstrations, as a replay buffer of action chunks.

        Args:
            task: identity of the task (``task_info``); demonstrations of another one are refused.
            **chunks: options of :class:`~torchrl_flow.data.DemoReplayBuffer`.

        Raises:
            ValueError: if they are of another task, or their quality is unknown.
        """
        if self.path is None and task["task"] == PLANAR:
            data = DemoReplayBuffer(self._planar(task), **chunks)
        else:
            path = self._made(task) if self.path is None else self.path
            limit = {} if Path(path).is_dir() else {"max_episodes": self.num_demos}
            data = load_demonstrations(path, **limit, **chunks)
        require_demonstrations_of(task, data.task_info, self.path or self.folder)
        return data

    def _planar(self, task: Mapping[str, Any]) -> DemoStore:
        quality, mode = self.quality or "mixed", task["obs_mode"]
        root = Path(self.folder) / f"planar-{quality}-{mode}-{self.num_demos}-{self.seed}"
        episodes = collect_demonstrations(self.num_demos, quality=quality, seed=self.seed, from_pixels=mode != "state")
        if root.exists():
            # Another run may be reading it: what is the same is left alone.
            store, action = DemoStore.open(root), torch.cat([episode["action"] for episode in episodes])
            if torch.equal(store.steps["action"].as_subclass(torch.Tensor), action):
                return store
        return DemoStore.from_episodes(episodes, root, task_info=task, overwrite=True)

    def _made(self, task: Mapping[str, Any]) -> Path:
        quality: Literal["expert", "mixed"] = self.quality or "expert"  # pyright: ignore[reportAssignmentType]
        report = make_demonstrations(
            MakeDemosArgs(
                task=task["task"],
                num_demos=self.num_demos,
                out_dir=self.folder,
                obs_mode=task["obs_mode"],
                control_mode=task["control_mode"],
                retime=self.retime,
                quality=quality,
            )
        )
        print(report.summary())
        return report.path
