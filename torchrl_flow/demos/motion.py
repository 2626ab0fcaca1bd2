"""Motions of a robot arm, and controllers that convert poses to delta actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from torchrl_flow.demos.side_by_side import EnvRow

__all__ = [
    "ActionTransform",
    "Controller",
    "Follower",
    "Motion",
    "delta_command",
    "flag_of",
    "is_solved",
    "maniskill_of",
    "play",
]

MAX_ACTIONS_PER_TARGET = 4


@dataclass(frozen=True)
class Motion:
    """A converted motion, the argument of an :data:`ActionTransform`.

    Args:
        seed: seed of the episode.
        actions: ``[T, A]`` float32 of the target control mode.
        target_pose: ``[P, 7]`` target poses (position, quaternion wxyz, in the world frame) of the end effector link at
            the P waypoints of the planner, one for each of its actions; None if the control mode has no such poses.
        gripper: ``[P]`` gripper commands of the waypoints.
    """

    seed: int
    actions: np.ndarray
    target_pose: np.ndarray | None
    gripper: np.ndarray


Controller = Callable[[gymnasium.Env], "np.ndarray | None"]
"""Function of the environment that is called before each step. It returns an action, or None when the motion is over.
An attribute ``perturbed``, a list of bools, marks actions that were disturbed and must not be imitated. If an attribute
``may_fail`` is True, the episode is kept even if it does not solve the task."""

ActionTransform = Callable[[Motion], "np.ndarray | Controller"]
"""Function of a motion that returns other actions (re-timed, perturbed): an array ``[T', A]``, or a controller. The
result is simulated from the seed, and kept if it succeeds or may fail."""


class Follower:
    """Controller that moves the end effector through the poses of joint waypoints by delta actions.

    The poses come from forward kinematics of the commanded joint angles, so that the planner's environment need not be
    simulated again. A pose that one action cannot reach gets up to four actions.

    Args:
        env: environment of one simulation, at the start of the motion.
        waypoints: ``[P, J + 1]`` joint positions and gripper commands.
        qpos: joint positions at the start, including those of the fingers.
    """

    def __init__(self, env: gymnasium.Env, waypoints: np.ndarray, qpos: np.ndarray) -> None:
        agent = maniskill_of(env).agent
        arm = agent.controller.controllers["arm"]
        kinematics, link = agent.robot._objs[0].create_pinocchio_model(), int(arm.ee_link.index[0])
        base = _pose(agent.robot.pose.raw_pose[_number(env)].cpu().numpy())
        joints = arm.active_joint_indices.cpu().numpy()
        targets = []
        for waypoint in waypoints:
            qpos[joints] = waypoint[:-1]
            kinematics.compute_forward_kinematics(qpos)
            target = base * kinematics.get_link_pose(link)
            targets.append(np.concatenate([target.p, target.q]))
        self._targets, self._gripper = targets, waypoints[:, -1].copy()
        self._index = self._tries = 0

    def __call__(self, env: gymnasium.Env) -> np.ndarray | None:
        """Return the next action, or None when the motion is over."""
        if self._index == len(self._targets):
            return None
        command, reached = delta_command(env, self._targets[self._index])
        action = np.append(command, self._gripper[self._index])
        self._tries += 1
        if reached or self._tries == MAX_ACTIONS_PER_TARGET:
            self._index, self._tries = self._index + 1, 0
        return action

    def motion(self, seed: int, actions: Sequence[np.ndarray]) -> Motion:
        """Return the motion made of the actions given so far."""
        return Motion(seed, np.stack(actions), np.stack(self._targets).astype(np.float32), self._gripper)


def play(actions: np.ndarray) -> Controller:
    """Return a controller that replays the actions of an array."""
    rows: Iterator[np.ndarray] = iter(actions)
    return lambda env: next(rows, None)


def is_solved(env: gymnasium.Env) -> bool:
    """Return whether the task is currently solved in a controller's environment."""
    return env.solved if isinstance(env, EnvRow) else flag_of(maniskill_of(env).evaluate(), "success")


def delta_command(env: gymnasium.Env, pose: np.ndarray) -> tuple[np.ndarray, bool]:
    """Compute the delta action that moves the end effector towards a pose, clipped to one action.

    Args:
        env: ManiSkill environment with a delta end-effector controller, or one of several that are simulated together.
        pose: ``[7]`` position and quaternion wxyz, in the world frame.

    Returns:
        The arm's action, clipped as the controller clips it, and whether no clipping was needed.
    """
    import sapien
    from mani_skill.trajectory.utils.actions.conversion import delta_pose_to_pd_ee_delta

    arm = maniskill_of(env).agent.controller.controllers["arm"]
    target = sapien.Pose(pose[:3], pose[3:])
    current = _pose(env.ee_pose) if isinstance(env, EnvRow) else arm.ee_link.pose.sp
    delta = sapien.Pose(target.p - current.p, (current * target.inv()).q)
    position_only = arm.config.frame == "root_translation"
    command = np.asarray(delta_pose_to_pd_ee_delta(arm, delta, pos_only=position_only), dtype=np.float64)
    return command, _clip(command)


def _clip(command: np.ndarray) -> bool:
    """Clip translation by axis and rotation by norm, in place, as the controller does; return whether both fit."""
    fits = np.abs(command[:3]).max() <= 1
    np.clip(command[:3], -1, 1, out=command[:3])
    norm = np.linalg.norm(command[3:])
    if norm > 1:
        command[3:] /= norm
    return bool(fits and norm <= 1)


def maniskill_of(env: gymnasium.Env) -> Any:
    """Return the unwrapped ManiSkill environment, whose attributes gymnasium's type does not declare."""
    return env.unwrapped


def _number(env: gymnasium.Env) -> int:
    return env.number if isinstance(env, EnvRow) else 0


def _pose(values: np.ndarray) -> Any:
    import sapien

    return sapien.Pose(values[:3], values[3:])


def flag_of(info: Mapping[str, Any], key: str) -> bool:
    """Return a flag from the info of a step of one simulation; False if it is missing."""
    return bool(np.asarray(info.get(key, False)).reshape(-1)[0])
