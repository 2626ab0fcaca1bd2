"""Environments. Importing this package imports no simulator: ManiSkill is imported when an environment is built."""

from torchrl_flow.envs.maniskill import ManiSkillEnv, ManiSkillWrapper

__all__ = ["ManiSkillEnv", "ManiSkillWrapper"]
