"""Planning, conversion and recording of demonstrations with ManiSkill's motion planners."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import gymnasium
import numpy as np

from torchrl_flow.demos.motion import (
    ActionTransform,
    Controller,
    Follower,
    Motion,
    flag_of,
    maniskill_of,
    play,
)
from torchrl_flow.demos.recording import RebuiltEnv, RecordedEpisode, RecordingEnv, equal_trees
from torchrl_flow.demos.side_by_side import SideBySide
from torchrl_flow.envs.maniskill.batched import BatchUnsupportedError
from torchrl_flow.envs.maniskill.build import reconfiguration_of_one
from torchrl_flow.util.randomness import isolated_rng
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["DemonstrationError", "EnvFactory", "Recorder", "solver_for"]

logger = logging.getLogger(__name__)

PLANNER_CONTROL_MODE = "pd_joint_pos"
NO_ACTION = "the transform's controller gave no action"
NO_TIME_LIMIT = 100_000

EnvFactory = Callable[..., gymnasium.Env]


class DemonstrationError(Exception):
    """Failure of a seed at the ``stage`` ``planning``, ``conversion`` or ``replay``."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


class Recorder:
    """Maker of demonstrations of a task; :meth:`demonstrate` plans, converts and records one.

    A recorded episode is a simulation of the recorded actions from the seed. It is kept only if it ends in success or
    if ``may_fail`` of a transform's controller is True. Each simulation starts from a rebuilt scene: ManiSkill's CPU
    simulation keeps contact caches over a reset, so without the rebuild the last digits of an episode would depend on
    earlier episodes, and a resumed run would differ.

    Args:
        task: ManiSkill id of the task.
        env_factory: called as ``env_factory(task, obs_mode=..., control_mode=..., reward_mode=...)``; returns
            the plain ``gymnasium.make`` environment, without a time limit that ends planner motions early.
        control_mode: control mode of the recorded actions.
        obs_mode: observation mode of the recorded observations.
        reward_mode: reward mode; rewards are recorded unless it is ``"sparse"`` or ``"none"``.
        transform: function that changes the actions before they are recorded.
        verify: simulate each recorded episode once more, and require equal observations.
        side_by_side: number of motions to simulate together. The controller must move the end effector by deltas, and
            the task must run in a batch and must not rebuild its scene for each episode; the transform's controllers
            may then use only :func:`delta_command` and :func:`is_solved`. Defaults to None: one after the other.

    Raises:
        ValueError: if ManiSkill has no planner for the task.
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
            # Conversion is recorded directly, unless a transform changes its actions: then it needs no observations.
            alone = transform is not None and self._rows is None
            self._conversion = make("none", control_mode, "sparse") if alone else self.env
            self._stack = stack.pop_all()

    def _make_rows(self, task: str, number: int | None, modes: dict[str, str]) -> SideBySide | None:
        arm = maniskill_of(self.env).agent.controller.controllers["arm"]
        if number is None or number < 2 or not _is_delta_ee(arm) or reconfiguration_of_one(task):
            return None
        try:
            return SideBySide(task, number, max_episode_steps=NO_TIME_LIMIT, **modes)
        except BatchUnsupportedError as error:
            logger.info("%s", error)
            return None

    @property
    def side_by_side(self) -> int:
        """Number of motions that are simulated together."""
        return 1 if self._rows is None else self._rows.number

    def plan(self, seed: int) -> np.ndarray:
        """Plan the motion of a seed; return its waypoints, ``[P, J + 1]`` joint positions and gripper commands.

        Raises:
            DemonstrationError: if the planner fails; it then always fails for this seed.
        """
        start = time.perf_counter()
        with isolated_rng(seed):
            try:
                return self._plan(seed)
            finally:
                self.planning_s += time.perf_counter() - start

    def record(self, planned: Mapping[int, np.ndarray]) -> dict[int, RecordedEpisode | DemonstrationError]:
        """Convert and record planned motions, up to :attr:`side_by_side` of them.

        Args:
            planned: results of :meth:`plan`, by seed.

        Returns:
            The demonstration or the error of each seed, equal to those of :meth:`demonstrate`.
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
        """Close the environments."""
        self._stack.close()

    def demonstrate(self, seed: int) -> RecordedEpisode:
        """Make the demonstration of a seed.

        Raises:
            DemonstrationError: if a stage fails; it then always fails for this seed.
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
        except Exception as error:  # the exceptions of planners are not specified
            logger.debug("seed %d: %s", seed, output.getvalue())
            raise DemonstrationError("planning", f"the planner raised {type(error).__name__}: {error}") from error
        if isinstance(result, int):
            raise DemonstrationError("planning", "the planner found no path")
        if not flag_of(result[-1], "success"):
            raise DemonstrationError("planning", "the planned motion does not solve the task")
        return np.stack(self._planning.actions)

    def _convert(self, seed: int, waypoints: np.ndarray) -> Motion:
        env = self._conversion
        env.reset(seed=seed)
        if maniskill_of(env).control_mode == PLANNER_CONTROL_MODE:
            for waypoint in waypoints:
                env.step(waypoint)
        elif _is_delta_ee(maniskill_of(env).agent.controller.controllers["arm"]):
            follower = Follower(env, waypoints, maniskill_of(env).agent.robot.get_qpos()[0].cpu().numpy().copy())
            while (action := follower(env)) is not None:
                env.step(action)
            return follower.motion(seed, env.actions)
        else:
            from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

            self._planning.reset(seed=seed)
            from_pd_joint_pos(maniskill_of(env).control_mode, waypoints, cast(Any, self._planning), cast(Any, env))
        return Motion(seed, np.stack(env.actions), None, waypoints[:, -1].copy())

    def _perform(self, seed: int, motion: np.ndarray | Controller) -> np.ndarray | None:
        """Record the transformed motion; return which steps are not to be imitated."""
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
    """Find ManiSkill's motion-planning solution of a task.

    Raises:
        ValueError: if the task has no planner. The error lists the tasks that have one.
    """
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS

    if task not in MP_SOLUTIONS:
        raise ValueError(
            f"task={task!r} has no motion planner in ManiSkill.{did_you_mean(task, MP_SOLUTIONS)} Those that have: "
            f"{', '.join(sorted(MP_SOLUTIONS))}."
        )
    return MP_SOLUTIONS[task]


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


def _perturbed(controller: Any) -> np.ndarray | None:
    """Return which steps a controller marks as not to be imitated."""
    perturbed = getattr(controller, "perturbed", None)
    return None if perturbed is None else np.array(perturbed, dtype=bool)


def _require_equal(again: RecordedEpisode, episode: RecordedEpisode) -> None:
    if not equal_trees(again.obs, episode.obs):
        raise DemonstrationError("replay", "a second simulation gave other observations")
