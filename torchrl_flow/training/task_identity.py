"""Identity of a task, and checks that demonstrations and options fit it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchrl.data.tensor_specs import Bounded
from torchrl.envs import EnvBase

from torchrl_flow._suggest import did_you_mean
from torchrl_flow.data.errors import DataError
from torchrl_flow.envs.maniskill.requirements import maniskill_installed
from torchrl_flow.training.envs import base_env

__all__ = [
    "PLANAR",
    "SIZES",
    "action_bounds",
    "padding_of",
    "require_demonstrations_of",
    "require_num_envs",
    "require_task_name",
    "task_info",
]

PLANAR = "planar"
"""Name of the planar task."""
SIZES = ("state_dim", "pixels_size", "action_dim")
"""Fields of a task's identity that its environment's specs give."""


def task_info(env: EnvBase) -> dict[str, Any]:
    """Return the identity of an environment's task, below any transforms, with the sizes of what it gives and takes.

    The sizes are ``state_dim``, ``pixels_size`` (``[h, w]``; None without images) and ``action_dim``; an environment
    that has neither ``observation`` nor ``pixels`` has none.

    Raises:
        ValueError: if the environment has no identity.
    """
    env = base_env(env)
    info: Any = getattr(env, "task_info", None)
    if not isinstance(info, Mapping):
        raise ValueError(
            f"{type(env).__name__} has no task_info, a mapping with at least task, control_mode and obs_mode."
        )
    return {**info, **_sizes(env)}


def _sizes(env: EnvBase) -> dict[str, Any]:
    specs: dict[Any, Any] = dict(env.full_observation_spec.items())
    state, pixels = specs.get("observation"), specs.get("pixels")
    if state is None and pixels is None:
        return {}
    return {
        "state_dim": None if state is None else int(state.shape[-1]),
        "pixels_size": None if pixels is None else [int(size) for size in pixels.shape[-2:]],
        "action_dim": int(env.full_action_spec[env.action_key].shape[-1]),
    }


def action_bounds(env: EnvBase) -> tuple[Tensor | None, Tensor | None]:
    """Return the bounds ``[A]`` of one action of an environment, of single actions or of chunks; None without any."""
    spec: Any = env.full_action_spec_unbatched[env.action_key]
    if not isinstance(spec, Bounded):
        return None, None
    box: Any = spec.space
    low, high = (torch.as_tensor(bound).reshape(-1, spec.shape[-1])[0] for bound in (box.low, box.high))
    return low.cpu().clone(), high.cpu().clone()


def require_demonstrations_of(task: Mapping[str, Any], found: Mapping[str, Any], source: str | Path) -> None:
    """Refuse demonstrations of another task, naming both values of each field that differs.

    Args:
        task: identity of the task (:func:`task_info`); of the reward mode and the sizes, those that it tells are
            compared.
        found: identity of the demonstrations, ``{**store.task_info, **store.sizes}``; fields of ``task_info`` that
            are None are not known and not compared.
        source: where they come from, for the message.

    Raises:
        DataError: if task, control mode, observation mode, reward mode, or a size of states, images or actions
            differ.
    """
    names = [name for name in ("task", "control_mode", "obs_mode") if found.get(name) is not None]
    names += ["reward_mode"] if None not in (task.get("reward_mode"), found.get("reward_mode")) else []
    names += [name for name in SIZES if name in task and name in found]
    differing = [
        f"{name}: demonstrations {_plain(found[name])!r}, here {_plain(task.get(name))!r}"
        for name in names
        if _plain(found[name]) != _plain(task.get(name))
    ]
    if differing:
        raise DataError(
            f"{source} holds demonstrations of another task. {'; '.join(differing)}. Give demonstrations of this task, "
            "recorded with this version of the simulator, robot and camera, or make them anew."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, torch.Size)) else value


def require_task_name(task: str) -> None:
    """Refuse a misspelt name of the planar task; ManiSkill tells those of its own where it is installed.

    Raises:
        ValueError: naming the task that was probably meant.
    """
    if task == PLANAR:
        return
    hint = did_you_mean(task, [PLANAR])
    # Where ManiSkill is, a name that is like it may be that of a task that the user has registered.
    if task.lower() == PLANAR or (hint and not maniskill_installed()):
        raise ValueError(f"there is no task {task!r}.{hint}")


def require_num_envs(
    task: str, num_envs: int | None, sim_backend: str = "physx_cpu", obs_mode: str | None = "state"
) -> None:
    """Refuse sub-environments that a task cannot have.

    Raises:
        ValueError: for more than one of ManiSkill that renders on the CPU, or a misspelt task.
    """
    require_task_name(task)
    renders = "rgb" in (obs_mode or "state")
    if task != PLANAR and (num_envs or 1) > 1 and sim_backend == "physx_cpu" and renders:
        raise ValueError(
            f"num_envs={num_envs} is not possible for {task!r} with obs_mode={obs_mode!r} on the CPU: many in one "
            "process are simulated without images. Leave num_envs (--num-envs) out, put single environments in a "
            "torchrl.envs.ParallelEnv, or use sim_backend='physx_cuda'."
        )


def padding_of(control_mode: str | None) -> Literal["hold", "last"]:
    """Return how chunks go on where a demonstration ends, so that the arm holds still.

    Zeros are no motion for controllers of differences and velocities (``"hold"``); to controllers of absolute
    positions they are a target, so that the last action is repeated (``"last"``).

    Examples:
        >>> padding_of("pd_ee_delta_pose"), padding_of("pd_joint_vel"), padding_of("pd_joint_pos")
        ('hold', 'hold', 'last')
    """
    mode = control_mode or ""
    relative = not mode or "delta" in mode or (mode.endswith("vel") and "pos" not in mode)
    return "hold" if relative else "last"
