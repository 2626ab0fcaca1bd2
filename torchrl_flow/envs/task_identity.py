"""Identity of an environment's task, and checks of task names and of the number of sub-environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchrl.data.tensor_specs import Bounded
from torchrl.envs import EnvBase

from torchrl_flow.envs.maniskill.requirements import maniskill_installed
from torchrl_flow.envs.names import PLANAR
from torchrl_flow.envs.own import is_own_task, own_identity, sizes_of
from torchrl_flow.envs.unwrap import base_env
from torchrl_flow.util.suggest import did_you_mean
from torchrl_flow.util.task_info import TaskInfo

__all__ = [
    "action_bounds",
    "require_num_envs",
    "require_task_name",
    "task_info",
]


def task_info(env: EnvBase) -> TaskInfo:
    """Return the task identity of an environment below any transforms, with the sizes of observations and actions.

    The environment describes its task by its attribute ``task_info``, a mapping of the known fields and details of
    :class:`TaskInfo`. The sizes ``state_dim``, ``pixels_size`` and ``action_dim`` are read from the specs; they are
    omitted for an environment that has neither ``observation`` nor ``pixels``.

    Raises:
        ValueError: if the environment has no attribute ``task_info``, or one of its fields is not allowed.
    """
    own = own_identity(env)
    env = base_env(env)
    if own is not None:
        return own
    info: Any = getattr(env, "task_info", None)
    if not isinstance(info, Mapping):
        raise ValueError(
            f"{type(env).__name__} has no task_info: give it an attribute task_info, a mapping with at least task, "
            "control_mode and obs_mode."
        )
    return TaskInfo.of({**info, **sizes_of(env)})


def action_bounds(env: EnvBase) -> tuple[Tensor | None, Tensor | None]:
    """Return the bounds ``[A]`` of one action of an environment of single actions or chunks; None without bounds."""
    spec: Any = env.full_action_spec_unbatched[env.action_key]
    if not isinstance(spec, Bounded):
        return None, None
    box: Any = spec.space
    low, high = (torch.as_tensor(bound).reshape(-1, spec.shape[-1])[0] for bound in (box.low, box.high))
    return low.cpu().clone(), high.cpu().clone()


def require_task_name(task: str) -> None:
    """Check a task name for a misspelt planar task; ManiSkill, if installed, checks the names of its tasks.

    Raises:
        ValueError: if the check fails. The error names the task that was probably meant.
    """
    if task == PLANAR or is_own_task(task):
        return
    hint = did_you_mean(task, [PLANAR])
    # With ManiSkill installed, a similar name may be a task that the user has registered.
    if task.lower() == PLANAR or (hint and not maniskill_installed()):
        raise ValueError(f"there is no task {task!r}.{hint}")


def require_num_envs(
    task: str, num_envs: int | None, sim_backend: str = "physx_cpu", obs_mode: str | None = "state"
) -> None:
    """Check the number of sub-environments of a task.

    Raises:
        ValueError: for several ManiSkill sub-environments that render on the CPU, or a misspelt task.
    """
    require_task_name(task)
    renders = "rgb" in (obs_mode or "state")
    if task != PLANAR and not is_own_task(task) and (num_envs or 1) > 1 and sim_backend == "physx_cpu" and renders:
        raise ValueError(
            f"num_envs={num_envs} is not possible for {task!r} with obs_mode={obs_mode!r} on the CPU: several "
            "environments in one process have no images. Leave num_envs (--num-envs) out, put single "
            "environments in a torchrl.envs.ParallelEnv, or use sim_backend='physx_cuda'."
        )
