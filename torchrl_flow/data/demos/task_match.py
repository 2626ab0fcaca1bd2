"""Check that demonstrations belong to a task, and padding of their chunks after the end of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torchrl_flow.data.errors import DataError
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SIZES", "padding_of", "require_demonstrations_of"]

SIZES = ("state_dim", "pixels_size", "action_dim")
"""Fields of a task's identity that are taken from the environment's specs."""


def require_demonstrations_of(task: Mapping[str, Any], found: Mapping[str, Any], source: str | Path) -> None:
    """Refuse demonstrations of another task, naming both values of each field that differs.

    Args:
        task: identity of the task (:func:`~torchrl_flow.envs.task_info`). The reward mode and the sizes are compared
            if they are recorded.
        found: identity of the demonstrations, ``{**store.task_info, **store.sizes}``. Fields that are None are unknown
            and, except for sizes, are not compared.
        source: path of the demonstrations, for the message.

    Raises:
        DataError: if task, control mode, observation mode, reward mode, or a size of states, images or actions
            differ.
    """
    task, found = TaskInfo.of(task), TaskInfo.of(found)
    names = [name for name in ("task", "control_mode", "obs_mode") if found.get(name) is not None]
    names += ["reward_mode"] if None not in (task.reward_mode, found.reward_mode) else []
    names += [name for name in SIZES if name in task and name in found]
    differing = differing_fields(found, task, names, form="{name}: demonstrations {found!r}, here {wanted!r}")
    if differing:
        raise DataError(
            f"{source} holds demonstrations of another task. {'; '.join(differing)}. Give demonstrations of this task, "
            "recorded with this version of the simulator, robot and camera, or make them anew."
        )


def padding_of(control_mode: str | None) -> Literal["hold", "last"]:
    """Return the padding of chunks after the end of a demonstration that makes the arm hold still.

    For delta and velocity controllers, zeros command no motion (``"hold"``). For controllers of absolute positions
    zeros are a target, so the last action is repeated (``"last"``).

    Examples:
        >>> padding_of("pd_ee_delta_pose"), padding_of("pd_joint_vel"), padding_of("pd_joint_pos")
        ('hold', 'hold', 'last')
    """
    mode = control_mode or ""
    relative = not mode or "delta" in mode or (mode.endswith("vel") and "pos" not in mode)
    return "hold" if relative else "last"
