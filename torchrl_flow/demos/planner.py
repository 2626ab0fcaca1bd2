"""Plans, converts and records demonstrations with ManiSkill's motion planners, one seed at a time."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np

from torchrl_flow.demos.recording import RebuiltEnv, RecordedEpisode, RecordingEnv, equal_trees
from torchrl_flow.util.randomness import isolated_rng
from torchrl_flow.util.suggest import did_you_mean

__all__ = [
    "ActionTransform",
    "Controller",
    "DemonstrationError",
    "EnvFactory",
    "Motion",
    "Recorder",
    "delta_command",
    "solver_for",
]

logger = logging.getLogger(__name__)

PLANNER_CONTROL_MODE = "pd_joint_pos"
MAX_ACTIONS_PER_TARGET = 4

EnvFactory = Callable[..., gymnasium.Env]


class DemonstrationError(Exception):
    """A seed gave no demonstration; ``stage`` says where: ``planning``, ``conversion`` or ``replay``."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


@dataclass(frozen=True)
class Motion:
    """A converted motion, as an :data:`ActionTransform` gets it.

    Args:
        seed: seed of the episode.
        actions: ``[T, A]`` float32 of the target control mode.
        target_pose: ``[P, 7]`` poses (position, quaternion wxyz, in the frame of the world) of the end
            effector link that the planner's P waypoints ask for, one for each of its actions; None where the
            control mode has none.
        gripper: ``[P]`` gripper commands of the waypoints.
    """

    seed: int
    actions: np.ndarray
    target_pose: np.ndarray | None
    gripper: np.ndarray


Controller = Callable[[gymnasium.Env], "np.ndarray | None"]
"""Called with the environment before each step, returns an action, or None when the motion is over. Where it has an
attribute ``perturbed``, a list of bools, this tells which of its actions were disturbed and are not to be imitated.
Where it has a true attribute ``may_fail``, what comes of it is kept even if it does not solve the task."""

ActionTransform = Callable[[Motion], "np.ndarray | Controller"]
"""Makes other actions of a motion (re-timed, perturbed): an array ``[T', A]``, or a controller. What comes out
is simulated from the seed, and kept only when that succeeds, or may fail."""


class Recorder:
    """Makes demonstrations of a task: :meth:`demonstrate` plans, converts and records one.

    What is recorded is a simulation of the recorded actions from the seed, and only if it ends in success, or a
    transform's controller says that it may fail.
    Each simulation starts from a rebuilt scene: ManiSkill's CPU simulation keeps contact caches over a reset,
    so otherwise an episode would depend, in its last digits, on those before it, and a resumed run would
    differ.

    Args:
        task: ManiSkill's name of it.
        env_factory: called as ``env_factory(task, obs_mode=..., control_mode=..., reward_mode=...)``; returns
            the plain ``gymnasium.make`` environment, without a time limit that ends planner motions early.
        control_mode: of the recorded actions.
        obs_mode: of the recorded observations.
        reward_mode: rewards are recorded unless it is ``"sparse"`` or ``"none"``.
        transform: changes the actions before they are recorded.
        verify: simulate each recorded episode once more, and require equal observations.

    Raises:
        ValueError: when ManiSkill has no planner for the task.
    """

    def __init__(
        self,
        task: str,
        env_factory: EnvFactory,
        *,
        control_mode: str,
        obs_mode: str,
        reward_mode: str = "sparse",
        transform: ActionTransform | None = None,
        verify: bool = False,
    ) -> None:
        self._solve = solver_for(task)
        self._transform, self._verify = transform, verify
        self._records_reward = reward_mode not in ("sparse", "none")
        with contextlib.ExitStack() as stack:

            def make(obs: str, control: str, reward: str) -> RebuiltEnv:
                env = RebuiltEnv(env_factory(task, obs_mode=obs, control_mode=control, reward_mode=reward))
                stack.callback(env.close)
                return env

            self._planning = make("none", PLANNER_CONTROL_MODE, "sparse")
            self.env = RecordingEnv(make(obs_mode, control_mode, reward_mode))
            # Conversion is recorded as it happens, unless other actions come of it: then it needs no
            # observations.
            self._conversion = self.env if transform is None else make("none", control_mode, "sparse")
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes the environments."""
        self._stack.close()

    def demonstrate(self, seed: int) -> RecordedEpisode:
        """Makes the demonstration of a seed.

        Raises:
            DemonstrationError: when a stage fails; the same seed then always does.
        """
        with isolated_rng(seed):
            motion = self._convert(seed, self._plan(seed))
            perturbed, may_fail = None, False
            if self._transform is not None:
                changed = self._transform(motion)
                may_fail = bool(getattr(changed, "may_fail", False))
                perturbed = self._perform(seed, changed)
            episode = self.env.episode(seed, self._records_reward, perturbed)
            if not (episode.success[-1] or may_fail):
                stage = "conversion" if self._transform is None else "replay"
                raise DemonstrationError(stage, "the task is not solved when the converted actions end")
            if self._verify:
                self._replay(seed, episode.actions)
                if not equal_trees(self.env.episode(seed, self._records_reward).obs, episode.obs):
                    raise DemonstrationError("replay", "simulated again, the observations differ")
        return episode

    def _plan(self, seed: int) -> np.ndarray:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                result = self._solve(self._planning, seed=seed, debug=False, vis=False)
        except Exception as error:  # what a planner may raise is not specified
            logger.debug("seed %d: %s", seed, output.getvalue())
            raise DemonstrationError("planning", f"the planner raised {type(error).__name__}: {error}") from error
        if isinstance(result, int):
            raise DemonstrationError("planning", "the planner found no path")
        if not _flag(result[-1], "success"):
            raise DemonstrationError("planning", "the planned motion does not solve the task")
        return np.stack(self._planning.actions)

    def _convert(self, seed: int, waypoints: np.ndarray) -> Motion:
        env, targets = self._conversion, None
        env.reset(seed=seed)
        if _base(env).control_mode == PLANNER_CONTROL_MODE:
            for waypoint in waypoints:
                env.step(waypoint)
        elif _is_delta_ee(_base(env).agent.controller.controllers["arm"]):
            targets = _follow(env, waypoints)
        else:
            from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

            self._planning.reset(seed=seed)
            from_pd_joint_pos(_base(env).control_mode, waypoints, cast(Any, self._planning), cast(Any, env))
        return Motion(seed, np.stack(env.actions), targets, waypoints[:, -1].copy())

    def _perform(self, seed: int, motion: np.ndarray | Controller) -> np.ndarray | None:
        """Records what a transform made; returns which steps are not to be imitated."""
        if isinstance(motion, np.ndarray):
            return self._replay(seed, motion)
        self.env.reset(seed=seed)
        while (action := motion(self.env)) is not None:
            self.env.step(np.asarray(action, dtype=np.float32))
        if not self.env.actions:
            raise DemonstrationError("conversion", "the transform's controller gave no action")
        perturbed = getattr(motion, "perturbed", None)
        return None if perturbed is None else np.array(perturbed, dtype=bool)

    def _replay(self, seed: int, actions: np.ndarray) -> None:
        self.env.reset(seed=seed)
        for action in actions.astype(np.float32):
            self.env.step(action)


def solver_for(task: str) -> Callable[..., Any]:
    """Finds ManiSkill's motion-planning solution of a task.

    Raises:
        ValueError: when there is none; the message lists those there are.
    """
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS

    if task not in MP_SOLUTIONS:
        raise ValueError(
            f"task={task!r} has no motion planner in ManiSkill.{did_you_mean(task, MP_SOLUTIONS)} Those that have: "
            f"{', '.join(sorted(MP_SOLUTIONS))}."
        )
    return MP_SOLUTIONS[task]


def _base(env: gymnasium.Env) -> Any:
    """The ManiSkill environment itself, whose attributes gymnasium does not know of."""
    return env.unwrapped


def _is_delta_ee(arm: Any) -> bool:
    from mani_skill.agents.controllers import PDEEPosController

    frames = ("root_translation", "root_translation:root_aligned_body_rotation")
    config = arm.config
    return (
        isinstance(arm, PDEEPosController)
        and config.use_delta
        and config.normalize_action
        and not config.use_target
        and config.frame in frames
    )


def _follow(env: gymnasium.Env, waypoints: np.ndarray) -> np.ndarray:
    """Steers the end effector through the poses that joint waypoints stand for, by delta actions.

    The poses come from forward kinematics of the commanded joint angles, so that the planner's environment
    need not be simulated again beside this one. A pose that one action cannot reach gets up to four.
    """
    agent = _base(env).agent
    arm = agent.controller.controllers["arm"]
    kinematics, link = agent.robot.create_pinocchio_model(), arm.ee_link
    base = agent.robot.pose.sp
    qpos, joints = agent.robot.get_qpos()[0].cpu().numpy().copy(), arm.active_joint_indices.cpu().numpy()
    targets = []
    for waypoint in waypoints:
        qpos[joints] = waypoint[:-1]
        kinematics.compute_forward_kinematics(qpos)
        target = base * kinematics.get_link_pose(link.index)
        targets.append(np.concatenate([target.p, target.q]))
        for _ in range(MAX_ACTIONS_PER_TARGET):
            command, reached = delta_command(env, targets[-1])
            env.step(np.append(command, waypoint[-1]))
            if reached:
                break
    return np.stack(targets).astype(np.float32)


def delta_command(env: gymnasium.Env, pose: np.ndarray) -> tuple[np.ndarray, bool]:
    """Computes the delta action that moves the end effector to a pose, as far as one action can.

    Args:
        env: a ManiSkill environment with a delta end-effector controller.
        pose: ``[7]`` position and quaternion wxyz, in the frame of the world.

    Returns:
        The arm's action, clipped as the controller clips it, and whether that took no clipping.
    """
    import sapien
    from mani_skill.trajectory.utils.actions.conversion import delta_pose_to_pd_ee_delta

    arm = _base(env).agent.controller.controllers["arm"]
    target, current = sapien.Pose(pose[:3], pose[3:]), arm.ee_link.pose.sp
    delta = sapien.Pose(target.p - current.p, (current * target.inv()).q)
    position_only = arm.config.frame == "root_translation"
    command = np.asarray(delta_pose_to_pd_ee_delta(arm, delta, pos_only=position_only), dtype=np.float64)
    return command, _clip(command)


def _clip(command: np.ndarray) -> bool:
    """Clips translation by axis and rotation by norm, in place, as the controller does; False if needed."""
    fits = np.abs(command[:3]).max() <= 1
    np.clip(command[:3], -1, 1, out=command[:3])
    norm = np.linalg.norm(command[3:])
    if norm > 1:
        command[3:] /= norm
    return bool(fits and norm <= 1)


def _flag(info: Mapping[str, Any], key: str) -> bool:
    return bool(np.asarray(info.get(key, False)).reshape(-1)[0])
