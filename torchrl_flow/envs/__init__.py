"""Environments and their transforms. No simulator is imported before an environment is built."""

from __future__ import annotations

from torchrl_flow.envs._maniskill_check import ManiSkillUnavailableError, RenderDeviceError
from torchrl_flow.envs._planar_demonstrator import DEMO_QUALITIES, PlanarDemonstrator
from torchrl_flow.envs._planar_demos import collect_demonstrations
from torchrl_flow.envs._planar_dynamics import PlanarGeometry
from torchrl_flow.envs.maniskill import ManiSkillEnv, ManiSkillWrapper
from torchrl_flow.envs.planar import PlanarPickPlaceEnv
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms

__all__ = [
    "DEMO_QUALITIES",
    "ManiSkillEnv",
    "ManiSkillUnavailableError",
    "ManiSkillWrapper",
    "PlanarDemonstrator",
    "PlanarGeometry",
    "PlanarPickPlaceEnv",
    "RenderDeviceError",
    "SMDPChunk",
    "collect_demonstrations",
    "history_transforms",
]
