"""Re-timed demonstrations: planner paths tracked at constant speed, with pushes from which they recover.

A motion planner slows down and pauses at its waypoints and never leaves its path. A policy that clones such motions
moves slowly and has no data on states that its own errors cause. Here the planner's path is resampled at constant speed
and tracked in closed loop, while short random pushes move the end effector off the path. Pushed steps are marked, so
that training does not imitate them; the steps after them show the recovery.

References:
    Laskey et al., "DART: Noise Injection for Robust Imitation Learning", https://arxiv.org/abs/1703.09327
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import numpy as np

from torchrl_flow.demos.motion import Motion, delta_command, is_solved

__all__ = ["ClosedLoopTracker", "Retiming", "Waypoint", "resample_path"]


class Waypoint(NamedTuple):
    """A pose to pass or, at the end of a gripper command, at which to settle."""

    pose: np.ndarray
    gripper: float
    settle: bool


@dataclass(frozen=True)
class Retiming:
    """Transform of a planned motion to a :class:`ClosedLoopTracker`, used by ``retime`` of ``make_demonstrations``.

    Lengths are in units of the controller's largest action: 1 is the distance moved by an action of magnitude 1.

    Args:
        speed: distance between the waypoints of successive steps.
        dwell: steps to wait when the gripper command changes.
        push_probability: chance per step that a push begins; 0 for none.
        push_size: scale of a push, per step.

    Raises:
        ValueError: if an argument is out of range.
    """

    speed: float = 0.3
    dwell: int = 4
    push_probability: float = 0.05
    push_size: float = 0.5

    def __post_init__(self) -> None:
        """Check the fields."""
        if not 0 < self.speed <= 1:
            raise ValueError(
                f"speed must lie in (0, 1], where 1 is the largest action of the controller, got {self.speed}."
            )
        if self.dwell < 0 or self.push_size < 0:
            raise ValueError(f"dwell and push_size must be at least 0, got {self.dwell} and {self.push_size}.")
        if not 0 <= self.push_probability < 1:
            raise ValueError(f"push_probability must lie in [0, 1), got {self.push_probability}.")

    def __call__(self, motion: Motion) -> ClosedLoopTracker:
        """Return the controller that tracks the motion.

        Raises:
            ValueError: if the motion has no target poses.
        """
        if motion.target_pose is None:
            raise ValueError("re-timing tracks end-effector poses: use the control mode pd_ee_delta_pose.")
        path = resample_path(motion.target_pose, motion.gripper, speed=self.speed, dwell=self.dwell)
        return ClosedLoopTracker(path, self, np.random.default_rng([motion.seed, 0]))


class ClosedLoopTracker:
    """Controller that moves towards the next waypoint of a path in each step, with random pushes.

    The tracker does not move on to the next waypoint while the arm lags. At waypoints with ``settle`` it waits until
    the arm has settled. The motion ends some steps after the task is solved, or at the last waypoint if the task is not
    solved.

    Attributes:
        perturbed: for each action given, whether it was pushed.
    """

    reached = 0.05
    """Distance at which the arm has settled."""
    near = 0.9
    """Distance to a waypoint below which the controller moves on to the next one."""
    patience = 8
    """Largest number of steps to wait for the arm to settle."""
    hold = 3
    """Steps to continue at the end of the path after the task is solved."""
    longest = 400
    """Number of steps after which the motion is aborted."""

    def __init__(self, path: list[Waypoint], retiming: Retiming, rng: np.random.Generator) -> None:
        self._path, self._retiming, self._rng = path, retiming, rng
        self._index = self._waited = self._solved = self._push_left = 0
        self._push = np.zeros(6)
        self.perturbed: list[bool] = []

    def __len__(self) -> int:
        """Return the number of waypoints; a step passes at most one."""
        return len(self._path)

    def __call__(self, env: gymnasium.Env) -> np.ndarray | None:
        """Return the next action ``[7]``, or None when the motion is over."""
        if self.perturbed:
            self._solved = self._solved + 1 if is_solved(env) else 0
        at_end = self._index == len(self._path) - 1
        tired = self._waited > self.patience + 10
        if (at_end and (self._solved > self.hold or tired)) or len(self.perturbed) >= self.longest:
            return None
        waypoint = self._path[self._index]
        command, _ = delta_command(env, waypoint.pose)
        distance = float(np.abs(command).max())
        self._advance(waypoint, distance, at_end)
        pushed = self._draw_push()
        self.perturbed.append(pushed)
        if pushed:
            command = np.clip(command + self._push, -1, 1)
        return np.append(command, waypoint.gripper).astype(np.float32)

    def _advance(self, waypoint: Waypoint, distance: float, at_end: bool) -> None:
        if waypoint.settle:
            self._waited += 1
            if not at_end and (distance < self.reached or self._waited > self.patience):
                self._index, self._waited = self._index + 1, 0
        elif distance < self.near:
            self._index += 1

    def _draw_push(self) -> bool:
        if self._push_left == 0 and self._rng.random() < self._retiming.push_probability:
            self._push_left = int(self._rng.integers(2, 6))
            scale = np.repeat([1.0, 0.4], 3) * self._retiming.push_size * abs(self._rng.normal())
            self._push = self._rng.normal(size=6) * scale
        pushed = self._push_left > 0
        self._push_left -= pushed
        return pushed


def resample_path(poses: np.ndarray, gripper: np.ndarray, *, speed: float, dwell: int) -> list[Waypoint]:
    """Space the poses of a path evenly, with a stop wherever the gripper command changes.

    Distance is the larger of translation over 0.1 m and rotation over 0.1 rad, the controller's largest action.

    Args:
        poses: ``[P, 7]``, position in metres and quaternion wxyz.
        gripper: ``[P]`` gripper commands.
        speed: largest distance between neighbouring poses.
        dwell: number of repetitions of the first pose after each change of the gripper command.

    Returns:
        the waypoints; the last one of each gripper command has ``settle``.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import numpy as np
        >>> poses = np.zeros((3, 7)); poses[:, 3] = 1; poses[:, 0] = 0, 0.01, 0.1
        >>> path = resample_path(poses, np.ones(3), speed=0.5, dwell=0)
        >>> [round(float(w.pose[0]), 3) for w in path], path[-1].settle
        ([0.05, 0.1], True)
    """
    if poses.ndim != 2 or poses.shape[1] != 7 or gripper.shape != poses.shape[:1] or len(poses) == 0:
        raise ValueError(
            f"poses must have shape [P, 7] and gripper [P] with P at least 1, got {poses.shape} and {gripper.shape}."
        )
    edges = [0, *(np.flatnonzero(np.diff(gripper)) + 1).tolist(), len(gripper)]
    path: list[Waypoint] = []
    for first, last in itertools.pairwise(edges):
        command, part = float(gripper[first]), poses[first:last].astype(np.float64)
        if first > 0:
            path += [Waypoint(part[0], command, False)] * dwell
        places = np.concatenate([[0.0], np.cumsum(_distances(part))])
        count = max(1, int(np.ceil(places[-1] / speed - 1e-9)))
        for place in np.linspace(0, places[-1], count + 1)[1:]:
            path.append(Waypoint(_pose_at(part, places, place), command, False))
        path[-1] = path[-1]._replace(settle=True)
    return path


def _distances(poses: np.ndarray) -> np.ndarray:
    """Distance between each pose and the next, in actions."""
    moved = np.linalg.norm(np.diff(poses[:, :3], axis=0), axis=1)
    cosine = np.abs((poses[1:, 3:] * poses[:-1, 3:]).sum(1)).clip(max=1)
    return np.maximum(moved, 2 * np.arccos(cosine)) / 0.1


def _pose_at(poses: np.ndarray, places: np.ndarray, place: float) -> np.ndarray:
    """Return the pose at a place along a path, positions interpolated linearly, quaternions normalised."""
    after = min(int(np.searchsorted(places, place)), len(places) - 1)
    before = max(after - 1, 0)
    share = (place - places[before]) / max(places[after] - places[before], 1e-9)
    one, other = poses[before], poses[after]
    if one[3:] @ other[3:] < 0:
        other = np.concatenate([other[:3], -other[3:]])
    pose = (1 - share) * one + share * other
    pose[3:] /= np.linalg.norm(pose[3:])
    return pose
