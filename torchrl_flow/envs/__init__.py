"""Environments and their transforms. No simulator is imported before an environment is built."""

from __future__ import annotations

from torchrl_flow.envs._planar_demonstrator import DEMO_QUALITIES, PlanarDemonstrator
from torchrl_flow.envs._planar_demos import collect_demonstrations
from torchrl_flow.envs._planar_dynamics import PlanarGeometry
from torchrl_flow.envs.maniskill import (
    BatchUnsupportedError,
    ManiSkillEnv,
    ManiSkillUnavailableError,
    ManiSkillWrapper,
    RenderDeviceError,
    maniskill_renders,
)
from torchrl_flow.envs.planar import PlanarPickPlaceEnv
from torchrl_flow.envs.slate import (
    SLATE_ENVS,
    SLATE_POLICIES,
    BeliefState,
    ItemCatalogue,
    LatentSlate,
    SlateEnv,
    SlatePolicy,
    latent_slate_env,
    make_catalogue,
    make_slate_policy,
)
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms

__all__ = [
    "DEMO_QUALITIES",
    "SLATE_ENVS",
    "SLATE_POLICIES",
    "BatchUnsupportedError",
    "BeliefState",
    "ItemCatalogue",
    "LatentSlate",
    "ManiSkillEnv",
    "ManiSkillUnavailableError",
    "ManiSkillWrapper",
    "PlanarDemonstrator",
    "PlanarGeometry",
    "PlanarPickPlaceEnv",
    "RenderDeviceError",
    "SMDPChunk",
    "SlateEnv",
    "SlatePolicy",
    "collect_demonstrations",
    "history_transforms",
    "latent_slate_env",
    "make_catalogue",
    "make_slate_policy",
    "maniskill_renders",
]
