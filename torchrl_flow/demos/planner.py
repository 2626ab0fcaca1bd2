"""Plans, converts and records demonstrations with ManiSkill's motion planners, one seed at a time."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np

from torchrl_flow.demos.recording import RebuiltEnv, RecordedEpisode, RecordingEnv, equal_trees
from torchrl_flow.demos.side_by_side import EnvRow, SideBySide
from torchrl_flow.envs.maniskill.batched import BatchUnsupportedError
from torchrl_flow.envs.maniskill.build import reconfiguration_of_one
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
    "is_solved",
    "play",
    "solver_for",
]

logger = logging.getLogger(__name__)

PLANNER_CONTROL_MODE = "pd_joint_pos"
MAX_ACTIONS_PER_TARGET = 4
NO_ACTION = "the transform's controller gave no action"
NO_TIME_LIMIT = 100_000

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
        side_by_side: simulate so many motions together, of a controller that moves the end effector by deltas, where
            the task can be batched and does not rebuild its scene for each episode; the transform's controllers then
            look at no more than :func:`delta_command` and :func:`is_solved` do. None: one after the other.

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
        side_by_side: int | None = None,
    ) -> None:
        self._solve = solver_for(task)
        self._transform, self._verify = transform, verify
        self.planning_s = 0.0
        self._records_reward = reward_mode not in ("sparse", "none")
        with contextlib.ExitStack() as stack:

            def make(obs: str, control: str, reward: str) -> RebuiltEnv:
                env = RebuiltEnv(env_factory(task, obs_mode=obs, control_mode=control, reward_mode=reward))
                stack.callback(env.close)
                return env

            self._planning = make("none", PLANNER_CONTROL_MODE, "sparse")
            self.env = RecordingEnv(make(obs_mode, control_mode, reward_mode))
            modes = {"control_mode": control_mode, "obs_mode": obs_mode, "reward_mode": reward_mode}
            self._rows = self._make_rows(task, side_by_side, modes)
            if self._rows is not None:
                stack.callback(self._rows.close)
            # Conversion is recorded as it happens, unless other actions come of it: then it needs no
            # observations.
            alone = transform is not None and self._rows is None
            self._conversion = make("none", control_mode, "sparse") if alone else self.env
            self._stack = stack.pop_all()

    def _make_rows(self, task: str, number: int | None, modes: dict[str, str]) -> SideBySide | None:
        arm = _base(self.env).agent.controller.controllers["arm"]
        if number is None or number < 2 or not _is_delta_ee(arm) or reconfiguration_of_one(task):
            return None
        try:
            return SideBySide(task, number, max_episode_steps=NO_TIME_LIMIT, **modes)
        except BatchUnsupportedError as error:
            logger.info("%s", error)
            return None

    @property
    def side_by_side(self) -> int:
        """How many motions are simulated together."""
        return 1 if self._rows is None else self._rows.number

    def plan(self, seed: int) -> np.ndarray:
        """Plans the motion of a seed; returns its waypoints, ``[P, J + 1]`` joint positions and gripper commands.

        Raises:
            DemonstrationError: when the planner fails; the same seed then always does.
        """
        start = time.perf_counter()
        with isolated_rng(seed):
            try:
                return self._plan(seed)
            finally:
                self.planning_s += time.perf_counter() - start

    def record(self, planned: Mapping[int, np.ndarray]) -> dict[int, RecordedEpisode | DemonstrationError]:
        """Converts and records planned motions, up to :attr:`side_by_side` of them.

        Args:
            planned: what :meth:`plan` returned, by seed.

        Returns:
            The demonstration of each seed, or at what it failed. Both equal those of :meth:`demonstrate`.
        """
        if self._rows is not None:
            return self._record_rows(self._rows, planned)
        found: dict[int, RecordedEpisode | DemonstrationError] = {}
        for seed, waypoints in planned.items():
            try:
                with isolated_rng(seed):
                    found[seed] = self._record(seed, waypoints)
            except DemonstrationError as failure:
                found[seed] = failure
        return found

    def close(self) -> None:
        """Closes the environments."""
        self._stack.close()

    def demonstrate(self, seed: int) -> RecordedEpisode:
        """Makes the demonstration of a seed.

        Raises:
            DemonstrationError: when a stage fails; the same seed then always does.
        """
        (episode,) = self.record({seed: self.plan(seed)}).values()
        if isinstance(episode, DemonstrationError):
            raise episode
        return episode

    def _record(self, seed: int, waypoints: np.ndarray) -> RecordedEpisode:
        motion = self._convert(seed, waypoints)
        perturbed, may_fail = None, False
        if self._transform is not None:
            changed = self._transform(motion)
            may_fail = bool(getattr(changed, "may_fail", False))
            perturbed = self._perform(seed, changed)
        episode = self.env.episode(seed, self._records_reward, perturbed)
        self._require_solved(episode, may_fail)
        if self._verify:
            self._replay(seed, episode.actions)
            _require_equal(self.env.episode(seed, self._records_reward), episode)
        return episode

    def _require_solved(self, episode: RecordedEpisode, may_fail: bool) -> None:
        if not (episode.success[-1] or may_fail):
            stage = "conversion" if self._transform is None else "replay"
            raise DemonstrationError(stage, "the task is not solved when the converted actions end")

    def _record_rows(
        self, rows: SideBySide, planned: Mapping[int, np.ndarray]
    ) -> dict[int, RecordedEpisode | DemonstrationError]:
        seeds = list(planned)
        with isolated_rng(seeds[0]):
            views = rows.reset(seeds, record=self._transform is None)
            followers = [
                Follower(views[number], waypoints, rows.qpos(number))
                for number, waypoints in enumerate(planned.values())
            ]
            rows.run(followers, views)
            controllers: list[Controller] = list(followers)
            if self._transform is not None:
                motions = [follower.motion(seed, rows.actions[i]) for i, (seed, follower) in
                           enumerate(zip(seeds, followers, strict=True))]  # fmt: skip
                changed = [self._transform(motion) for motion in motions]
                controllers = [play(each) if isinstance(each, np.ndarray) else each for each in changed]
                rows.run(controllers, rows.reset(seeds, record=True))
            found: dict[int, RecordedEpisode | DemonstrationError] = {}
            for number, (seed, controller) in enumerate(zip(seeds, controllers, strict=True)):
                try:
                    if not rows.actions[number]:
                        raise DemonstrationError("conversion", NO_ACTION)
                    episode = rows.episode(number, self._records_reward, _perturbed(controller))
                    self._require_solved(episode, bool(getattr(controller, "may_fail", False)))
                    found[seed] = episode
                except DemonstrationError as failure:
                    found[seed] = failure
            if self._verify:
                self._verify_rows(rows, found)
        return found

    def _verify_rows(self, rows: SideBySide, found: dict[int, RecordedEpisode | DemonstrationError]) -> None:
        made = {seed: episode for seed, episode in found.items() if isinstance(episode, RecordedEpisode)}
        if not made:
            return
        rows.run([play(episode.actions) for episode in made.values()], rows.reset(list(made), record=True))
        for number, (seed, episode) in enumerate(made.items()):
            try:
                _require_equal(rows.episode(number, self._records_reward), episode)
            except DemonstrationError as failure:
                found[seed] = failure

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
        env = self._conversion
        env.reset(seed=seed)
        if _base(env).control_mode == PLANNER_CONTROL_MODE:
            for waypoint in waypoints:
                env.step(waypoint)
        elif _is_delta_ee(_base(env).agent.controller.controllers["arm"]):
            follower = Follower(env, waypoints, _base(env).agent.robot.get_qpos()[0].cpu().numpy().copy())
            while (action := follower(env)) is not None:
                env.step(action)
            return follower.motion(seed, env.actions)
        else:
            from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

            self._planning.reset(seed=seed)
            from_pd_joint_pos(_base(env).control_mode, waypoints, cast(Any, self._planning), cast(Any, env))
        return Motion(seed, np.stack(env.actions), None, waypoints[:, -1].copy())

    def _perform(self, seed: int, motion: np.ndarray | Controller) -> np.ndarray | None:
        """Records what a transform made; returns which steps are not to be imitated."""
        if isinstance(motion, np.ndarray):
            return self._replay(seed, motion)
        self.env.reset(seed=seed)
        while (action := motion(self.env)) is not None:
            self.env.step(np.asarray(action, dtype=np.float32))
        if not self.env.actions:
            raise DemonstrationError("conversion", NO_ACTION)
        return _perturbed(motion)

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


class Follower:
    """Steers the end effector through the poses that joint waypoints stand for, by delta actions.

    The poses come from forward kinematics of the commanded joint angles, so that the planner's environment
    need not be simulated again beside this one. A pose that one action cannot reach gets up to four.

    Args:
        env: where it starts, of one simulation.
        waypoints: ``[P, J + 1]`` joint positions and gripper commands.
        qpos: joint positions at the start, those of fingers included.
    """

    def __init__(self, env: gymnasium.Env, waypoints: np.ndarray, qpos: np.ndarray) -> None:
        agent = _base(env).agent
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
        """Return the motion that its actions are."""
        return Motion(seed, np.stack(actions), np.stack(self._targets).astype(np.float32), self._gripper)


def play(actions: np.ndarray) -> Controller:
    """Return a controller that gives the actions of an array, whatever happens."""
    rows: Iterator[np.ndarray] = iter(actions)
    return lambda env: next(rows, None)


def is_solved(env: gymnasium.Env) -> bool:
    """Tell whether the task is solved now, in the environment that a controller gets."""
    return env.solved if isinstance(env, EnvRow) else _flag(_base(env).evaluate(), "success")


def _number(env: gymnasium.Env) -> int:
    return env.number if isinstance(env, EnvRow) else 0


def _pose(values: np.ndarray) -> Any:
    import sapien

    return sapien.Pose(values[:3], values[3:])


def _perturbed(controller: Any) -> np.ndarray | None:
    """Which steps a controller marks as not to be imitated."""
    perturbed = getattr(controller, "perturbed", None)
    return None if perturbed is None else np.array(perturbed, dtype=bool)


def _require_equal(again: RecordedEpisode, episode: RecordedEpisode) -> None:
    if not equal_trees(again.obs, episode.obs):
        raise DemonstrationError("replay", "simulated again, the observations differ")


def delta_command(env: gymnasium.Env, pose: np.ndarray) -> tuple[np.ndarray, bool]:
    """Computes the delta action that moves the end effector to a pose, as far as one action can.

    Args:
        env: a ManiSkill environment with a delta end-effector controller, or one of several side by side.
        pose: ``[7]`` position and quaternion wxyz, in the frame of the world.

    Returns:
        The arm's action, clipped as the controller clips it, and whether that took no clipping.
    """
    import sapien
    from mani_skill.trajectory.utils.actions.conversion import delta_pose_to_pd_ee_delta

    arm = _base(env).agent.controller.controllers["arm"]
    target = sapien.Pose(pose[:3], pose[3:])
    current = _pose(env.ee_pose) if isinstance(env, EnvRow) else arm.ee_link.pose.sp
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
