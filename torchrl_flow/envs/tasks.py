"""Construction of environments by the task name of a recipe, a checkpoint or the command line."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

from torchrl.envs import EnvBase

from torchrl_flow.envs.chunk_env import make_chunk_env
from torchrl_flow.envs.maniskill import BatchUnsupportedError, ManiSkillEnv, maniskill_renders
from torchrl_flow.envs.names import PLANAR, PLANAR_CONTROL_MODE
from torchrl_flow.envs.own import is_own_task, make_own_env
from torchrl_flow.envs.planar.env import PlanarPickPlaceEnv
from torchrl_flow.envs.task_identity import require_num_envs

__all__ = [
    "default_num_envs",
    "filming_env",
    "make_evaluation_env",
    "make_task_chunk_env",
    "make_task_env",
    "observation_keys",
]

_FILMED_BY = "torchrl_flow_filmed_by"


def observation_keys(obs_mode: str) -> tuple[str, ...]:
    """Return the observation keys of a mode.

    Examples:
        >>> observation_keys("rgb+state")
        ('observation', 'pixels')
    """
    keys = {"state": ("observation",), "rgb": ("observation", "pixels"), "rgb+state": ("observation", "pixels")}
    if obs_mode not in keys:
        raise ValueError(f"obs_mode must be one of {sorted(keys)}, got {obs_mode!r}.")
    return keys[obs_mode]


def make_task_env(
    task: str,
    *,
    obs_mode: str = "state",
    control_mode: str | None = None,
    num_envs: int | None = None,
    max_episode_steps: int | None = None,
    ignore_terminations: bool = False,
    image_size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> EnvBase:
    """Make the environment of single actions of a task.

    Args:
        task: ``"planar"``, the ManiSkill id of a task, or a function that makes a user-defined environment,
            ``"my_package:make_env"`` (``envs.own.make_own_env``).
        obs_mode: ``"state"``, ``"rgb"`` or ``"rgb+state"``.
        control_mode: ManiSkill's controller. Defaults to ``pd_ee_delta_pose``. The planar task has one control mode.
        num_envs: number of sub-environments; ``None`` for one environment without a batch dimension.
        max_episode_steps: time limit in environment steps. Defaults to the limit of the task.
        ignore_terminations: end episodes only at the time limit, as in ManiSkill's evaluation protocol.
        image_size: height and width of ManiSkill's images. Defaults to the size of the camera. Other environments set
            the size of their images.
        **kwargs: passed to the environment.

    Raises:
        ValueError: if there is no such task or mode, or the task does not support this number of sub-environments.
    """
    observation_keys(obs_mode)
    if is_own_task(task):
        given: dict[str, Any] = {"obs_mode": obs_mode, "control_mode": control_mode, "num_envs": num_envs}
        given |= {"max_episode_steps": max_episode_steps, "ignore_terminations": ignore_terminations}
        return make_own_env(task, **given, **kwargs)
    require_num_envs(task, num_envs, kwargs.get("sim_backend", "physx_cpu"), obs_mode)
    if max_episode_steps is not None:
        kwargs["max_episode_steps"] = max_episode_steps
    if task == PLANAR:
        if obs_mode == "rgb":
            raise ValueError(
                "obs_mode of the planar task must be 'state' or 'rgb+state', got 'rgb': its state is always observed."
            )
        if control_mode not in (None, PLANAR_CONTROL_MODE):
            raise ValueError(f"control_mode of the planar task must be {PLANAR_CONTROL_MODE!r}, got {control_mode!r}.")
        pixels = obs_mode != "state"
        return PlanarPickPlaceEnv(num_envs, from_pixels=pixels, ignore_terminations=ignore_terminations, **kwargs)
    if control_mode is not None:
        kwargs["control_mode"] = control_mode
    if image_size is not None and obs_mode != "state":
        kwargs["render_size"] = tuple(image_size)
    return ManiSkillEnv(task, num_envs=num_envs, obs_mode=obs_mode, ignore_terminations=ignore_terminations, **kwargs)


def make_task_chunk_env(
    task: str,
    *,
    obs_horizon: int,
    act_horizon: int,
    gamma: float,
    obs_mode: str = "state",
    record_steps: bool = False,
    **kwargs: Any,
) -> EnvBase:
    """Make the environment of a task in which one step executes a chunk (:func:`make_chunk_env`).

    Args:
        task: name of the task, see :func:`make_task_env`.
        obs_horizon: number of observations in the history.
        act_horizon: number of actions executed per step.
        gamma: discount of the rewards inside a chunk.
        obs_mode: observation mode.
        record_steps: record the steps that :func:`~torchrl_flow.evaluation.record_episodes` reads.
        **kwargs: passed to :func:`make_task_env`.
    """
    # Rendering takes most of a step's time, and the policy reads only the last frames of a chunk.
    renders = obs_mode != "state" and task != PLANAR and not is_own_task(task)
    return make_chunk_env(
        make_task_env(task, obs_mode=obs_mode, **kwargs),
        obs_horizon=obs_horizon,
        act_horizon=act_horizon,
        gamma=gamma,
        obs_keys=observation_keys(obs_mode),
        record_steps=record_steps,
        render_last=obs_horizon if renders and not record_steps else None,
    )


def default_num_envs(
    task: str, obs_mode: str | None = "state", episodes: int | None = None, visuals: bool | None = None
) -> int | None:
    """Return the number of sub-environments of an evaluation; its result does not depend on this number.

    Args:
        task: name of the task.
        obs_mode: observation mode.
        episodes: episodes of the evaluation. The number of sub-environments is chosen so that the last group of
            episodes is nearly full.
        visuals: whether the environment itself must have visuals for videos; otherwise :func:`filming_env` provides
            them for a batch.

    Returns:
        About 25 for ManiSkill with state observations on the CPU. ``None``, one environment without a batch dimension,
        for images (only single environments render) and for user-defined environments.

    Examples:
        >>> default_num_envs("planar"), default_num_envs("PickCube-v1", "rgb")
        (50, None)
        >>> default_num_envs("PickCube-v1", episodes=60, visuals=False)
        20
    """
    if is_own_task(task):
        return None
    most = 50 if task == PLANAR else 25
    if task != PLANAR:
        renders = "rgb" in (obs_mode or "state")
        if renders or visuals:
            return None
    return most if episodes is None else math.ceil(episodes / math.ceil(episodes / most))


def make_evaluation_env(task: str, *, episodes: int | None = None, **kwargs: Any) -> EnvBase:
    """Make the chunk environment of an evaluation, with terminations ignored.

    The default of ``num_envs`` is :func:`default_num_envs`, or one environment for a ManiSkill task that cannot be
    batched. A ManiSkill episode does not depend on this number, only on its seed and actions.

    Args:
        task: name of the task, see :func:`make_task_env`.
        episodes: number of episodes of the evaluation, for the default of ``num_envs``.
        **kwargs: passed to :func:`make_task_chunk_env`.
    """
    kwargs.setdefault("ignore_terminations", True)
    if str(kwargs.get("sim_backend", "physx_cpu")) != "physx_cpu":
        return make_task_chunk_env(task, **kwargs)
    number = default_num_envs(task, kwargs.get("obs_mode"), episodes, kwargs.get("visuals"))
    try:
        env = make_task_chunk_env(task, **{"num_envs": number, **kwargs})
    except BatchUnsupportedError:
        if "num_envs" in kwargs:
            raise
        return make_task_chunk_env(task, **kwargs)
    if env.batch_size and task != PLANAR and not is_own_task(task):
        # A batch on the CPU has no visuals. filming_env makes the environment that films on demand.
        single = {**kwargs, "num_envs": None, "visuals": None}
        setattr(env, _FILMED_BY, functools.partial(make_task_chunk_env, task, **single))
    return env


@contextlib.contextmanager
def filming_env(env: EnvBase) -> Iterator[EnvBase]:
    """Provide an environment that films the episodes of an evaluation environment; equal seeds give equal episodes.

    The result is the environment itself. For a batch of :func:`make_evaluation_env` without visuals, on a machine that
    renders, it is a single environment with visuals, which is closed afterwards.

    Args:
        env: environment of :func:`make_evaluation_env`, or any other.
    """
    make = getattr(env, _FILMED_BY, None)
    if make is None or not maniskill_renders():
        yield env
        return
    films = make()
    try:
        yield films
    finally:
        films.close()
