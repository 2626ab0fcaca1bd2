"""Tasks by name: the environment that a checkpoint, a recipe or the command line asks for."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torchrl.checkpoint import CheckpointError
from torchrl.envs import EnvBase

from torchrl_flow.envs import BatchUnsupportedError, ManiSkillEnv, PlanarPickPlaceEnv, maniskill_renders
from torchrl_flow.modules import CriticConfig, FlowActor, FlowActorConfig, QEnsemble, make_critic, make_flow_actor
from torchrl_flow.training.checkpoint import as_json
from torchrl_flow.training.checkpoint_check import building
from torchrl_flow.training.checkpoint_reader import TrainingCheckpoint, Which, load_checkpoint, require_task
from torchrl_flow.training.envs import make_chunk_env
from torchrl_flow.training.task_identity import PLANAR, require_num_envs, task_info

ObsMode = Literal["state", "rgb", "rgb+state"]
LATENT_POLICY = "latent_policy"
"""Role of the latent policy in checkpoints."""
PLANAR_CONTROL_MODE = "delta_position"

__all__ = [
    "LATENT_POLICY",
    "ObsMode",
    "default_num_envs",
    "evaluation_env",
    "flow_config",
    "load_critic",
    "load_policy",
    "make_evaluation_env",
    "make_task_chunk_env",
    "make_task_env",
    "observation_keys",
    "open_checkpoint",
    "rebuild_flow",
    "require_actor_config",
]


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
    **kwargs: Any,
) -> EnvBase:
    """Make the environment of single actions of a task.

    Args:
        task: ``"planar"`` or the ManiSkill id of a task.
        obs_mode: ``"state"``, ``"rgb"`` or ``"rgb+state"``.
        control_mode: ManiSkill's controller; ``pd_ee_delta_pose`` where ``None``. The planar task has one.
        num_envs: sub-environments; ``None`` for one, unbatched.
        max_episode_steps: time limit; the task's own where ``None``.
        ignore_terminations: end episodes at the time limit alone, ManiSkill's protocol of evaluation.
        **kwargs: passed to the environment.

    Raises:
        ValueError: if there is no such task or mode, or the task cannot have so many sub-environments.
    """
    observation_keys(obs_mode)
    require_num_envs(task, num_envs, kwargs.get("sim_backend", "physx_cpu"), obs_mode)
    if max_episode_steps is not None:
        kwargs["max_episode_steps"] = max_episode_steps
    if task == PLANAR:
        if obs_mode == "rgb":
            raise ValueError("the planar task has the obs_mode 'state' or 'rgb+state': its state is always seen.")
        if control_mode not in (None, PLANAR_CONTROL_MODE):
            raise ValueError(
                f"the planar task has the control mode {PLANAR_CONTROL_MODE!r} alone, got {control_mode!r}."
            )
        pixels = obs_mode != "state"
        return PlanarPickPlaceEnv(num_envs, from_pixels=pixels, ignore_terminations=ignore_terminations, **kwargs)
    if control_mode is not None:
        kwargs["control_mode"] = control_mode
    return ManiSkillEnv(task, num_envs=num_envs, obs_mode=obs_mode, ignore_terminations=ignore_terminations, **kwargs)


def open_checkpoint(source: str | Path | TrainingCheckpoint, which: Which = "last") -> TrainingCheckpoint:
    """Return the checkpoint itself, or open the file or the run that is named.

    Args:
        source: checkpoint, its file, or the directory of a run.
        which: of a run, the last checkpoint or the best one.
    """
    if isinstance(source, TrainingCheckpoint):
        return source
    return load_checkpoint(source, which=which)


def flow_config(checkpoint: TrainingCheckpoint) -> FlowActorConfig:
    """Return the description of a checkpoint's flow, with the number of sampling steps that it was trained to act with.

    Raises:
        CheckpointError: if the checkpoint holds no flow policy.
    """
    if not checkpoint.actor_config:
        raise CheckpointError(f"{checkpoint.path} does not say how its policy is built (no actor_config).")
    with building(checkpoint.path, "actor_config"):
        config = FlowActorConfig.from_dict(checkpoint.actor_config)
    # Older files of steered flows have the K of --num-steps among the script's arguments alone.
    steered = LATENT_POLICY in checkpoint.module_configs
    num_steps = checkpoint.config.get("num_steps") if steered else None
    return config if num_steps is None else dataclasses.replace(config, num_steps=num_steps)


def load_policy(
    source: str | Path | TrainingCheckpoint,
    *,
    role: str | None = None,
    which: Which = "last",
    device: torch.device | str = "cpu",
) -> tuple[FlowActor, TrainingCheckpoint]:
    """Rebuild the flow of a checkpoint: what a later stage starts from.

    What acts in a run may be more than its flow: :func:`~torchrl_flow.training.load_acting_policy` rebuilds that. Of a
    flow that is steered the latent policy is left behind, with a warning.

    Args:
        source: checkpoint, its file, or the directory of a run.
        role: which weights; the averaged ones (``ema_policy``) where there are any, else ``policy``.
        which: of a run, the last checkpoint or the best one.
        device: where the policy goes.

    Returns:
        the policy in evaluation mode, and the checkpoint.

    Raises:
        CheckpointError: if the checkpoint holds no flow policy.
    """
    checkpoint = open_checkpoint(source, which)
    if LATENT_POLICY in checkpoint.module_configs:
        message = f"{checkpoint.path} holds a flow and the latent policy that steers it: the flow alone is taken."
        warnings.warn(message, stacklevel=2)
    return rebuild_flow(checkpoint, role=role, device=device), checkpoint


def rebuild_flow(
    checkpoint: TrainingCheckpoint, *, role: str | None = None, device: torch.device | str = "cpu"
) -> FlowActor:
    """Rebuild the flow of a checkpoint, steered or not; see :func:`load_policy`."""
    config = flow_config(checkpoint)
    with building(checkpoint.path, "actor_config"):
        actor = make_flow_actor(config)
    if role is None:
        role = "ema_policy" if "ema_policy" in checkpoint.roles else "policy"
    checkpoint.restore(modules={role: actor})
    return actor.to(device).eval()


def require_actor_config(
    checkpoint: TrainingCheckpoint, wanted: FlowActor | Mapping[str, Any], fields: Iterable[str] | None = None
) -> None:
    """Refuse a checkpoint whose policy is built otherwise, naming both values of each field that differs.

    Args:
        checkpoint: the checkpoint.
        wanted: a policy made by ``make_flow_actor``, or fields of :class:`FlowActorConfig`, of which None is any value.
        fields: those to compare; all of ``wanted``'s by default.

    Raises:
        CheckpointError: if one differs.
    """
    given = wanted.config if isinstance(wanted, FlowActor) else wanted
    # As the checkpoint has it, lists in place of tuples.
    values: dict[str, Any] = as_json("wanted", given or {})
    differing = [
        f"{name}: checkpoint {checkpoint.actor_config.get(name)!r}, here {values[name]!r}"
        for name in (values if fields is None else fields)
        if values.get(name) is not None and checkpoint.actor_config.get(name) != values[name]
    ]
    if differing:
        raise CheckpointError(f"{checkpoint.path} was made for another policy. {'; '.join(differing)}.")


def load_critic(
    source: str | Path | TrainingCheckpoint, actor: FlowActor, *, role: str | None = None, which: Which = "last"
) -> tuple[QEnsemble, TrainingCheckpoint]:
    """Rebuild the critic of action chunks from a checkpoint.

    Args:
        source: checkpoint, its file, or the directory of a run.
        actor: the policy whose chunks it values, as :func:`load_policy` gives it; a critic that shares its encoder
            writes its weights into it.
        role: which weights; the averaged ones (``target_critic``) where there are any, else ``critic``.
        which: of a run, the last checkpoint or the best one.

    Raises:
        CheckpointError: if the checkpoint holds no critic, or one of another policy's shapes.
    """
    checkpoint = open_checkpoint(source, which)
    if "critic" not in checkpoint.module_configs:
        raise CheckpointError(
            f"{checkpoint.path} holds no critic, only {', '.join(checkpoint.roles) or 'nothing'}: it was written by a "
            "stage that trains none. Train one from it, or name a checkpoint of aw_shortcut_flow_offline or later."
        )
    require_actor_config(checkpoint, actor, ("action_dim", "state_dim", "obs_horizon", "act_horizon"))
    if role is None:
        role = "target_critic" if "target_critic" in checkpoint.roles else "critic"
    with building(checkpoint.path, "module_configs.critic"):
        critic = make_critic(CriticConfig.from_dict(checkpoint.module_configs["critic"]), actor)
    checkpoint.restore(modules={role: critic})
    return critic, checkpoint


def make_task_chunk_env(
    task: str, *, obs_horizon: int, act_horizon: int, gamma: float, obs_mode: str = "state", **kwargs: Any
) -> EnvBase:
    """Make the environment of a task in which one step executes a chunk (:func:`make_chunk_env`).

    Args:
        task: as in :func:`make_task_env`.
        obs_horizon: number of observations in the history.
        act_horizon: number of actions executed per step.
        gamma: discount of the rewards inside a chunk.
        obs_mode: what is observed.
        **kwargs: passed to :func:`make_task_env`.
    """
    # Rendering is most of a step's time, and the policy sees the last frames of a chunk alone.
    renders = obs_mode != "state" and task != PLANAR
    return make_chunk_env(
        make_task_env(task, obs_mode=obs_mode, **kwargs),
        obs_horizon=obs_horizon,
        act_horizon=act_horizon,
        gamma=gamma,
        obs_keys=observation_keys(obs_mode),
        render_last=obs_horizon if renders else None,
    )


def default_num_envs(
    task: str, obs_mode: str | None = "state", episodes: int | None = None, visuals: bool | None = None
) -> int | None:
    """Return how many sub-environments an evaluation runs at a time; its result is the same for any number.

    Args:
        task: name of the task.
        obs_mode: what is observed.
        episodes: of the evaluation; the number divides them without a small rest.
        visuals: whether the environment shall be able to film; ``None`` where the machine can.

    Returns:
        for ManiSkill's states on the CPU about 25, and ``None``, one unbatched environment, where it renders: only
        single ones do.

    Examples:
        >>> default_num_envs("planar"), default_num_envs("PickCube-v1", "rgb")
        (50, None)
        >>> default_num_envs("PickCube-v1", episodes=60, visuals=False)
        20
    """
    most = 50 if task == PLANAR else 25
    if task != PLANAR:
        renders = "rgb" in (obs_mode or "state")
        if renders or visuals or (visuals is None and maniskill_renders()):
            return None
    return most if episodes is None else math.ceil(episodes / math.ceil(episodes / most))


def make_evaluation_env(task: str, *, episodes: int | None = None, **kwargs: Any) -> EnvBase:
    """Make the chunk environment to evaluate in, with terminations ignored.

    Where ``num_envs`` is not given it is that of :func:`default_num_envs`, and one environment for a task of ManiSkill
    that cannot be batched. An episode of ManiSkill's is the same for any number: it depends on its seed and actions.

    Args:
        task: as in :func:`make_task_env`.
        episodes: how many will be played, for the default of ``num_envs``.
        **kwargs: passed to :func:`make_task_chunk_env`.
    """
    kwargs.setdefault("ignore_terminations", True)
    if "num_envs" in kwargs or str(kwargs.get("sim_backend", "physx_cpu")) != "physx_cpu":
        return make_task_chunk_env(task, **kwargs)
    number = default_num_envs(task, kwargs.get("obs_mode"), episodes, kwargs.get("visuals"))
    try:
        return make_task_chunk_env(task, num_envs=number, **kwargs)
    except BatchUnsupportedError:
        return make_task_chunk_env(task, **kwargs)


def evaluation_env(
    checkpoint: TrainingCheckpoint, *, gamma: float = 0.99, episodes: int | None = None, **kwargs: Any
) -> EnvBase:
    """Make the chunk environment that a checkpoint's policy was trained for, with terminations ignored.

    Where ``num_envs`` is not given it is that of :func:`make_evaluation_env`.

    Args:
        checkpoint: the checkpoint.
        gamma: discount of rewards inside a chunk.
        episodes: how many will be played, for the default of ``num_envs``.
        **kwargs: passed to :func:`make_task_chunk_env`; a ``task``, ``control_mode`` or ``obs_mode`` that is not the
            checkpoint's is refused, None is any. ``max_episode_steps`` is the checkpoint's where it is None.

    Raises:
        CheckpointError: if the checkpoint names no task, or the environment is another than it names, or its states,
            images or actions have other sizes than the checkpoint's policy.
    """
    task = checkpoint.task
    if "task" not in task:
        raise CheckpointError(f"{checkpoint.path} names no task; it says {dict(task)}.")
    identity = {key: task[key] for key in ("task", "obs_mode", "control_mode")}
    # Before the simulator is started, and with both values named.
    require_task(checkpoint, {key: kwargs[key] for key in identity if kwargs.get(key) is not None})
    kwargs = {key: value for key, value in kwargs.items() if key not in identity}
    if kwargs.get("max_episode_steps") is None:
        kwargs["max_episode_steps"] = task.get("max_episode_steps")
    config = flow_config(checkpoint)
    # The planar task has one control mode: another one in the checkpoint is named below, with both values.
    wanted: dict[str, Any] = {**identity, "control_mode": None if task["task"] == PLANAR else identity["control_mode"]}
    horizons = {"obs_horizon": config.obs_horizon, "act_horizon": config.act_horizon}
    env = make_evaluation_env(gamma=gamma, episodes=episodes, **horizons, **{**wanted, **kwargs})
    found = task_info(env)
    require_task(checkpoint, found)
    sizes = {name: found[name] for name in ("state_dim", "action_dim", "pixels_size") if name in found}
    # What a policy does not see may have any size.
    require_actor_config(checkpoint, sizes, [name for name in sizes if checkpoint.actor_config.get(name) is not None])
    return env
