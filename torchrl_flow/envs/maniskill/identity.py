"""Properties of a ManiSkill environment below its wrappers: time limit, state entries, task identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchrl_flow.functional.observation import state_paths
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["state_keys", "task_identity", "time_limit"]


def time_limit(env: Any) -> int | None:
    """Return the number of steps after which episodes are truncated; ``None`` for no time limit."""
    while env is not None:
        limit = vars(env).get("_max_episode_steps")
        if limit is not None:
            return int(limit)
        env = vars(env).get("env")
    return None


def state_keys(env: Any) -> list[str] | None:
    """Return the entries of the state vector in order (``agent/qpos``, ...); ``None`` if ManiSkill flattens them."""
    raw = getattr(env.unwrapped, "_init_raw_obs", None)
    if not isinstance(raw, Mapping) or "state" in raw:
        return None
    return ["/".join(path) for path in state_paths(raw)]


def task_identity(env: Any, device: torch.device) -> dict[str, Any]:
    """Return the properties that identify a task, JSON-able."""
    base = env.unwrapped
    spec = getattr(base, "spec", None)
    return TaskInfo(
        task=type(base).__name__ if spec is None else spec.id,
        control_mode=getattr(base, "control_mode", None),
        obs_mode=base.obs_mode,
        reward_mode=getattr(base, "reward_mode", None),
        robot_uids=str(getattr(base, "robot_uids", None)),
        max_episode_steps=time_limit(env),
        sim_backend="physx_cpu" if device.type == "cpu" else "physx_cuda",
        recorded=frozenset(("control_mode", "reward_mode", "max_episode_steps")),
    ).to_dict()
