"""Training and evaluation environments of online recipes, and checks of their options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.envs.maniskill import BatchUnsupportedError
from torchrl_flow.envs.names import PLANAR, AfterSuccess
from torchrl_flow.envs.own import is_own_task
from torchrl_flow.envs.task_identity import require_num_envs
from torchrl_flow.policies.environment import checkpoint_env
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint

__all__ = [
    "evaluation_env_options",
    "make_training_env",
    "make_training_envs",
    "policy_evaluation_env",
    "training_env_options",
]


def training_env_options(
    task: str,
    *,
    num_envs: int | None,
    sim_backend: str | None,
    planar_envs: int,
    maniskill_envs: int = 1,
    obs_mode: str | None = "state",
) -> dict[str, Any]:
    """Return the number of environments and the simulation backend of a training on a task.

    Args:
        task: ``"planar"`` or the ManiSkill id of a task.
        num_envs: number of environments in the batch. 0, and 1 with ManiSkill, gives one environment without a batch
            dimension; ``None`` the task's default.
        sim_backend: ManiSkill's simulation backend. ``None`` is physx_cuda for several environments on a machine with a
            CUDA device, otherwise physx_cpu, which simulates several environments in this process.
        planar_envs: default number of environments of the planar task.
        maniskill_envs: default number of environments of a ManiSkill task with state observations; with images it is 1.
        obs_mode: observation mode; images of several environments need physx_cuda.

    Raises:
        SystemExit: if the task does not support these options. The message states a remedy.
    """
    if num_envs is not None and num_envs < 0:
        raise SystemExit(f"--num-envs must be at least 0, got {num_envs}.")
    if is_own_task(task):
        if sim_backend is not None:
            raise SystemExit(
                f"--sim-backend {sim_backend} applies only to ManiSkill: leave it out for the user-defined "
                f"environment {task}."
            )
        return {"num_envs": num_envs or None}
    if task == PLANAR:
        if sim_backend is not None:
            raise SystemExit(
                f"--sim-backend {sim_backend} applies only to ManiSkill: leave it out for the planar task."
            )
        return {"num_envs": (planar_envs if num_envs is None else num_envs) or None}
    if num_envs is None and "rgb" not in (obs_mode or "state"):
        num_envs = maniskill_envs
    on_gpu = (num_envs or 1) > 1 and torch.cuda.is_available()
    backend = sim_backend or ("physx_cuda" if on_gpu else "physx_cpu")
    if backend.split(":")[0] not in ("physx_cpu", "physx_cuda"):
        raise SystemExit(f"--sim-backend must be physx_cpu or physx_cuda (physx_cuda:1, ...), got {backend}.")
    if backend.startswith("physx_cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"--sim-backend {sim_backend} of {task} needs a CUDA device, and there is none: leave it out for physx_cpu."
        )
    try:
        require_num_envs(task, num_envs, backend, obs_mode)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return {"num_envs": num_envs if (num_envs or 1) > 1 else None, "sim_backend": backend}


def make_training_env(
    checkpoint: TrainingCheckpoint,
    *,
    num_envs: int | None,
    sim_backend: str | None = None,
    planar_envs: int = 256,
    maniskill_envs: int = 1,
    after_success: AfterSuccess = "end",
    **kwargs: Any,
) -> EnvBase:
    """Make the training environment of a checkpoint's task, an environment of chunks.

    Args:
        checkpoint: checkpoint of the policy.
        num_envs: see :func:`training_env_options`.
        sim_backend: see :func:`training_env_options`.
        planar_envs: see :func:`training_env_options`.
        maniskill_envs: see :func:`training_env_options`.
        after_success: ``"end"`` an episode at its first success, or ``"continue"`` it to the time limit: sparse rewards
            then pay for every step at the goal.
        **kwargs: passed to :func:`checkpoint_env`, such as ``gamma`` and ``max_episode_steps``.

    Raises:
        SystemExit: if the task does not support these options.
    """
    task = str(checkpoint.task.task)
    obs_mode = checkpoint.task.obs_mode
    usual = {"planar_envs": planar_envs, "maniskill_envs": maniskill_envs}
    options = training_env_options(task, num_envs=num_envs, sim_backend=sim_backend, obs_mode=obs_mode, **usual)
    kwargs["ignore_terminations"] = after_success == "continue"
    try:
        return checkpoint_env(checkpoint, **options, **kwargs)
    except BatchUnsupportedError:
        if num_envs is not None:
            raise
        return checkpoint_env(checkpoint, **{**options, "num_envs": None}, **kwargs)


def evaluation_env_options(
    task: str, *, num_envs: int | None, sim_backend: str | None, obs_mode: str | None = "state"
) -> dict[str, Any]:
    """Return the given options among number of environments and simulation backend of an evaluation.

    Args:
        task: ``"planar"`` or the ManiSkill id of a task.
        num_envs: see :func:`training_env_options`; ``None`` for the task's default.
        sim_backend: see :func:`training_env_options`.
        obs_mode: observation mode.

    Raises:
        SystemExit: if the task does not support these options. The message states a remedy.
    """
    if num_envs is None and sim_backend is None:
        return {}
    asked: dict[str, Any] = {"num_envs": num_envs, "sim_backend": sim_backend, "obs_mode": obs_mode}
    found = training_env_options(task, planar_envs=50, **asked)
    return found if num_envs is not None else {name: value for name, value in found.items() if name != "num_envs"}


def policy_evaluation_env(
    checkpoint: TrainingCheckpoint, *, num_envs: int | None, sim_backend: str | None = None, **kwargs: Any
) -> EnvBase:
    """Make the evaluation environment of a checkpoint's policy (:func:`checkpoint_env`) with the given backend.

    Args:
        checkpoint: checkpoint of the policy.
        num_envs: see :func:`evaluation_env_options`.
        sim_backend: see :func:`training_env_options`.
        **kwargs: passed to :func:`checkpoint_env`, such as ``gamma`` and ``episodes``.

    Raises:
        SystemExit: if the task does not support these options.
    """
    task, obs_mode = str(checkpoint.task.task), checkpoint.task.obs_mode
    options = evaluation_env_options(task, num_envs=num_envs, sim_backend=sim_backend, obs_mode=obs_mode)
    return checkpoint_env(checkpoint, **options, **kwargs)


def make_training_envs(
    checkpoint: TrainingCheckpoint,
    *,
    num_envs: int | None,
    sim_backend: str | None = None,
    planar_envs: int = 256,
    maniskill_envs: int = 1,
    episodes: int | None = None,
    after_success: AfterSuccess = "end",
    collectors: int = 1,
    ray_workers: int | None = None,
    ray_address: str | None = None,
    collector_sync: bool = True,
    **kwargs: Any,
) -> tuple[EnvBase | CollectorEnvs, EnvBase]:
    """Make the training environment (:func:`make_training_env`) and the evaluation environment.

    On a GPU ManiSkill evaluates with the number of environments and the backend of the training; otherwise with the
    task's default number. Several collector processes simulate on the CPU and make their environments themselves.

    Args:
        checkpoint: checkpoint of the policy.
        num_envs: environments of each collector process, see :func:`training_env_options`.
        sim_backend: see :func:`training_env_options`.
        planar_envs: training environments of the planar task if ``num_envs`` is ``None``.
        maniskill_envs: training environments of a ManiSkill task if ``num_envs`` is ``None``.
        episodes: episodes of the evaluation.
        after_success: see :func:`make_training_env`. The evaluation environment always continues.
        collectors: number of collector processes; 1 collects in this process.
        ray_workers: number of Ray workers that collect instead. Defaults to none.
        ray_address: address of the Ray cluster. Defaults to this machine.
        collector_sync: a rollout is that of all processes or workers; False: of the first one that is ready.
        **kwargs: passed to :func:`checkpoint_env`, such as ``gamma`` and ``max_episode_steps``.

    Raises:
        SystemExit: if the task does not support these options.
    """
    task, obs_mode = str(checkpoint.task.task), checkpoint.task.obs_mode
    asked: dict[str, Any] = {"num_envs": num_envs, "sim_backend": sim_backend, "planar_envs": planar_envs}
    asked["maniskill_envs"] = maniskill_envs
    elsewhere = collectors > 1 or ray_workers is not None
    if elsewhere:
        given = f"--collectors {collectors}" if ray_workers is None else f"--ray-workers {ray_workers}"
        asked["sim_backend"] = _cpu_backend(task, sim_backend, given)
    found = training_env_options(task, obs_mode=obs_mode, **asked)
    if elsewhere:
        ray = {"on_ray": ray_workers is not None, "ray_address": ray_address, "wait_for_all": collector_sync}
        envs = _collector_envs(
            checkpoint, ray_workers or collectors, asked, found, after_success=after_success, **kwargs
        )
        train_env = dataclasses.replace(envs, **ray)
    else:
        train_env = make_training_env(checkpoint, **asked, after_success=after_success, **kwargs)
    on_gpu = found.get("sim_backend", "physx_cpu") != "physx_cpu"
    return train_env, checkpoint_env(checkpoint, episodes=episodes, **(found if on_gpu else {}), **kwargs)


def _cpu_backend(task: str, sim_backend: str | None, given: str) -> str | None:
    """Return the simulation backend of collector processes; None for the planar task."""
    if sim_backend not in (None, "physx_cpu"):
        raise SystemExit(
            f"{given} simulates on the CPU: leave out --sim-backend {sim_backend}, or collect in one process "
            "(--collectors 1), which steps all environments of a GPU together."
        )
    return sim_backend if task == PLANAR or is_own_task(task) else "physx_cpu"


def _collector_envs(
    checkpoint: TrainingCheckpoint,
    collectors: int,
    asked: dict[str, Any],
    found: dict[str, Any],
    **kwargs: Any,
) -> CollectorEnvs:
    """Return the factory of the collector processes' environments, after a test that the task can be batched."""
    num_envs = found["num_envs"]
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    if asked["num_envs"] is None and num_envs is not None and "sim_backend" in found:
        try:
            make_training_env(checkpoint, num_envs=2, sim_backend=found["sim_backend"], **kwargs).close()
        except BatchUnsupportedError:
            num_envs = None
    options = {**kwargs, "num_envs": num_envs or 0, "sim_backend": found.get("sim_backend")}
    return CollectorEnvs(functools.partial(make_training_env, checkpoint, **options), collectors, num_envs)
