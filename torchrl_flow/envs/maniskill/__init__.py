"""ManiSkill's manipulation tasks as TorchRL environments, single or batched, on a CPU or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.envs.maniskill.batched import BatchUnsupportedError
    from torchrl_flow.envs.maniskill.build import MAX_EPISODE_STEPS, OBS_MODES
    from torchrl_flow.envs.maniskill.env import ManiSkillEnv
    from torchrl_flow.envs.maniskill.requirements import ManiSkillUnavailableError, RenderDeviceError, maniskill_renders
    from torchrl_flow.envs.maniskill.wrapper import ManiSkillWrapper

__all__ = [
    "MAX_EPISODE_STEPS",
    "OBS_MODES",
    "BatchUnsupportedError",
    "ManiSkillEnv",
    "ManiSkillUnavailableError",
    "ManiSkillWrapper",
    "RenderDeviceError",
    "maniskill_renders",
]

__getattr__, __dir__ = lazy_exports(__name__)
