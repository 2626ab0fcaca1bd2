"""Environment transforms: action chunks as single transitions, observation histories."""

from __future__ import annotations

from torchrl_flow.envs.transforms.history import history_transforms
from torchrl_flow.envs.transforms.smdp import SMDPChunk

__all__ = ["SMDPChunk", "history_transforms"]
