"""torchrl_flow."""

from torchrl_flow.envs._planar_demos import DEMO_QUALITIES, PlanarDemonstrator, collect_demonstrations
from torchrl_flow.envs.planar import PlanarPickPlaceEnv

__all__ = ["DEMO_QUALITIES", "PlanarDemonstrator", "PlanarPickPlaceEnv", "collect_demonstrations"]
