"""Environments and their transforms. A simulator is imported only when an environment is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.envs.chunk_env import ChunkEnv, make_chunk_env, reset_with_seeds
    from torchrl_flow.envs.collector_envs import CollectorEnvs
    from torchrl_flow.envs.maniskill.batched import BatchUnsupportedError
    from torchrl_flow.envs.maniskill.build import MAX_EPISODE_STEPS, OBS_MODES
    from torchrl_flow.envs.maniskill.env import ManiSkillEnv
    from torchrl_flow.envs.maniskill.requirements import ManiSkillUnavailableError, RenderDeviceError, maniskill_renders
    from torchrl_flow.envs.maniskill.wrapper import ManiSkillWrapper
    from torchrl_flow.envs.names import PLANAR, AfterSuccess, ObsMode
    from torchrl_flow.envs.planar.demonstrations import collect_demonstrations
    from torchrl_flow.envs.planar.demonstrator import DEMO_QUALITIES, PlanarDemonstrator
    from torchrl_flow.envs.planar.dynamics import PlanarGeometry
    from torchrl_flow.envs.planar.env import PlanarPickPlaceEnv
    from torchrl_flow.envs.task_identity import action_bounds, require_num_envs, task_info
    from torchrl_flow.envs.tasks import (
        default_num_envs,
        filming_env,
        make_evaluation_env,
        make_task_chunk_env,
        make_task_env,
        observation_keys,
    )
    from torchrl_flow.envs.transforms.executed_steps import CopyStepsToRoot
    from torchrl_flow.envs.transforms.frames import FrameRecorder, as_frames
    from torchrl_flow.envs.transforms.history import history_transforms
    from torchrl_flow.envs.transforms.smdp import SMDPChunk
    from torchrl_flow.envs.unwrap import base_env
    from torchrl_flow.util.task_info import TaskInfo

__all__ = [
    "DEMO_QUALITIES",
    "MAX_EPISODE_STEPS",
    "OBS_MODES",
    "PLANAR",
    "AfterSuccess",
    "BatchUnsupportedError",
    "ChunkEnv",
    "CollectorEnvs",
    "CopyStepsToRoot",
    "FrameRecorder",
    "ManiSkillEnv",
    "ManiSkillUnavailableError",
    "ManiSkillWrapper",
    "ObsMode",
    "PlanarDemonstrator",
    "PlanarGeometry",
    "PlanarPickPlaceEnv",
    "RenderDeviceError",
    "SMDPChunk",
    "TaskInfo",
    "action_bounds",
    "as_frames",
    "base_env",
    "collect_demonstrations",
    "default_num_envs",
    "filming_env",
    "history_transforms",
    "make_chunk_env",
    "make_evaluation_env",
    "make_task_chunk_env",
    "make_task_env",
    "maniskill_renders",
    "observation_keys",
    "require_num_envs",
    "reset_with_seeds",
    "task_info",
]

__getattr__, __dir__ = lazy_exports(__name__)
