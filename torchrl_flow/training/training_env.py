"""The environment that an online recipe trains in, and the refusal of what the task's simulation cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_flow.training.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.training.task_identity import PLANAR
from torchrl_flow.training.tasks import evaluation_env

__all__ = ["make_evaluation_env", "make_training_env", "make_training_envs", "training_env_options"]


def training_env_options(
    task: str, *, num_envs: int | None, sim_backend: str | None, planar_envs: int
) -> dict[str, Any]:
    """Return number of environments and simulation for a task.

    Args:
        task: ``"planar"`` or the ManiSkill id of a task.
        num_envs: environments that are stepped together; 0 and, with ManiSkill, 1 for one that is not batched; the
            task's usual number where ``None``.
        sim_backend: ManiSkill's simulation; what the number of environments needs where ``None``.
        planar_envs: the planar task's usual number.

    Raises:
        SystemExit: if the task cannot be simulated so, saying what can be done.
    """
    if num_envs is not None and num_envs < 0:
        raise SystemExit(f"--num-envs must be at least 0, got {num_envs}.")
    if task == PLANAR:
        if sim_backend is not None:
            raise SystemExit(f"--sim-backend {sim_backend} is ManiSkill's: the planar task has one simulation.")
        return {"num_envs": (planar_envs if num_envs is None else num_envs) or None}
    backend = sim_backend or ("physx_cuda" if (num_envs or 1) > 1 else "physx_cpu")
    if backend.split(":")[0] not in ("physx_cpu", "physx_cuda"):
        raise SystemExit(f"--sim-backend must be physx_cpu or physx_cuda (physx_cuda:1, ...), got {backend}.")
    if backend.startswith("physx_cuda") and not torch.cuda.is_available():
        asked = f"--num-envs {num_envs}" if sim_backend is None else f"--sim-backend {sim_backend}"
        raise SystemExit(
            f"{asked} of {task} needs ManiSkill's physx_cuda, and there is no CUDA device: give --num-envs 1, which "
            "physx_cpu simulates."
        )
    if (num_envs or 1) > 1 and backend == "physx_cpu":
        raise SystemExit(
            f"--num-envs {num_envs} of {task} is not possible with --sim-backend physx_cpu, which simulates one "
            "environment: give --num-envs 1, or --sim-backend physx_cuda on a machine with a CUDA device."
        )
    return {"num_envs": num_envs if (num_envs or 1) > 1 else None, "sim_backend": backend}


def make_training_env(
    checkpoint: TrainingCheckpoint,
    *,
    num_envs: int | None,
    sim_backend: str | None = None,
    planar_envs: int = 256,
    **kwargs: Any,
) -> EnvBase:
    """Make the chunk environment of a checkpoint's task in which success ends an episode.

    Args:
        checkpoint: of the policy.
        num_envs: see :func:`training_env_options`.
        sim_backend: see :func:`training_env_options`.
        planar_envs: see :func:`training_env_options`.
        **kwargs: passed to :func:`evaluation_env`, such as ``gamma`` and ``max_episode_steps``.

    Raises:
        SystemExit: if the task cannot be simulated so.
    """
    task = str(checkpoint.task.get("task"))
    options = training_env_options(task, num_envs=num_envs, sim_backend=sim_backend, planar_envs=planar_envs)
    return evaluation_env(checkpoint, ignore_terminations=False, **options, **kwargs)


def make_evaluation_env(
    checkpoint: TrainingCheckpoint, *, num_envs: int | None, sim_backend: str | None = None, **kwargs: Any
) -> EnvBase:
    """Make the chunk environment of a checkpoint's task for evaluation, where terminations are ignored.

    Args:
        checkpoint: of the policy.
        num_envs: see :func:`training_env_options`; 50 of the planar task where ``None``.
        sim_backend: see :func:`training_env_options`.
        **kwargs: passed to :func:`evaluation_env`, such as ``gamma`` and ``max_episode_steps``.

    Raises:
        SystemExit: if the task cannot be simulated so.
    """
    task = str(checkpoint.task.get("task"))
    options = training_env_options(task, num_envs=num_envs, sim_backend=sim_backend, planar_envs=50)
    return evaluation_env(checkpoint, **options, **kwargs)


def make_training_envs(
    checkpoint: TrainingCheckpoint,
    *,
    num_envs: int | None,
    sim_backend: str | None = None,
    planar_envs: int = 256,
    **kwargs: Any,
) -> tuple[EnvBase, EnvBase]:
    """Make the environment to train in (:func:`make_training_env`) and that to evaluate in.

    ManiSkill evaluates with as many environments as it trains with, in the same simulation; the planar task with 50.

    Args:
        checkpoint: of the policy.
        num_envs: see :func:`training_env_options`.
        sim_backend: see :func:`training_env_options`.
        planar_envs: environments to train in of the planar task, where ``num_envs`` is ``None``.
        **kwargs: passed to :func:`evaluation_env`, such as ``gamma`` and ``max_episode_steps``.

    Raises:
        SystemExit: if the task cannot be simulated so.
    """
    simulation: dict[str, Any] = {"num_envs": num_envs, "sim_backend": sim_backend}
    train_env = make_training_env(checkpoint, planar_envs=planar_envs, **simulation, **kwargs)
    if checkpoint.task.get("task") == PLANAR:
        simulation = {"num_envs": None}
    return train_env, make_evaluation_env(checkpoint, **simulation, **kwargs)
