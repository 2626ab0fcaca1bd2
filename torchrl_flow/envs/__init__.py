"""Environments. No simulator is imported before an environment is built."""

from torchrl_flow.envs._maniskill_check import ManiSkillUnavailableError, RenderDeviceError
from torchrl_flow.envs.maniskill import ManiSkillEnv, ManiSkillWrapper

__all__ = ["ManiSkillEnv", "ManiSkillUnavailableError", "ManiSkillWrapper", "RenderDeviceError"]
