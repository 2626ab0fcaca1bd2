"""The planar pick-and-place task, vectorised in PyTorch, and its demonstrator."""

from __future__ import annotations

from torchrl_flow.envs.planar.env import PlanarPickPlaceEnv

__all__ = ["PlanarPickPlaceEnv"]
