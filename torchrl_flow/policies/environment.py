"""The environment of a checkpoint's policy."""

from __future__ import annotations

from typing import Any

from torchrl.checkpoint import CheckpointError
from torchrl.envs import EnvBase

from torchrl_flow.envs import PLANAR, make_evaluation_env, task_info
from torchrl_flow.envs.own import TRUSTED, is_own_task, trusted_tasks
from torchrl_flow.policies.rebuild import flow_config, require_actor_config
from torchrl_flow.runs import TrainingCheckpoint, require_task

__all__ = ["checkpoint_env"]


def checkpoint_env(
    checkpoint: TrainingCheckpoint, *, gamma: float = 0.99, episodes: int | None = None, **kwargs: Any
) -> EnvBase:
    """Make the chunk environment of a checkpoint's policy, with terminations ignored.

    The default of ``num_envs`` is that of :func:`make_evaluation_env`.

    Args:
        checkpoint: the checkpoint.
        gamma: discount of rewards inside a chunk.
        episodes: number of episodes of the evaluation, for the default of ``num_envs``.
        **kwargs: options of :func:`make_task_chunk_env`. A ``task``, ``control_mode`` or ``obs_mode`` that differs from
            the checkpoint's raises an error; None accepts any value. ``max_episode_steps`` is the checkpoint's if it is
            None.

    Raises:
        CheckpointError: if the checkpoint names no task, the environment's task differs from it, or the sizes of
            states, images or actions differ from those of the policy.
    """
    task = checkpoint.task
    if task.task is None:
        raise CheckpointError(
            f"{checkpoint.path} names no task; its manifest has {dict(task)} there. Give a checkpoint of a policy."
        )
    if is_own_task(task.task) and task.task not in {kwargs.get("task"), *trusted_tasks()}:
        raise CheckpointError(
            f"{checkpoint.path} was trained in an environment that {task.task} makes. The code is not in the "
            f"file, and a file must not choose which code runs. If you trust it, set {TRUSTED}={task.task}."
        )
    identity = {"task": task.task, "obs_mode": task.obs_mode, "control_mode": task.control_mode}
    # Checked before the simulator starts; the error states both values.
    require_task(checkpoint, {key: kwargs[key] for key in identity if kwargs.get(key) is not None})
    kwargs = {key: value for key, value in kwargs.items() if key not in identity}
    if kwargs.get("max_episode_steps") is None:
        kwargs["max_episode_steps"] = task.max_episode_steps
    config = flow_config(checkpoint)
    # The planar task has one control mode: the check below reports a different one in the checkpoint with both values.
    wanted: dict[str, Any] = {**identity, "control_mode": None if task.task == PLANAR else identity["control_mode"]}
    horizons = {"obs_horizon": config.obs_horizon, "act_horizon": config.act_horizon}
    kwargs.setdefault("image_size", config.pixels_size)
    env = make_evaluation_env(gamma=gamma, episodes=episodes, **horizons, **{**wanted, **kwargs})
    found = task_info(env)
    require_task(checkpoint, found)
    sizes = {name: found[name] for name in ("state_dim", "action_dim", "pixels_size") if name in found}
    # Observations that the policy does not read may have any size.
    require_actor_config(checkpoint, sizes, [name for name in sizes if checkpoint.actor_config.get(name) is not None])
    return env
