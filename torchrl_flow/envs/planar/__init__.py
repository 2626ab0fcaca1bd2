"""The planar pick-and-place task, vectorised in PyTorch, and its demonstrator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.envs.planar.env import PlanarPickPlaceEnv

__all__ = ["PlanarPickPlaceEnv"]

__getattr__, __dir__ = lazy_exports(__name__)
