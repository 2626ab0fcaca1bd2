"""Environment transforms: action chunks as single transitions, observation histories."""

from __future__ import annotations

from torchrl_flow.envs.transforms.history import history_transforms
from torchrl_flow.envs.transforms.hold import HoldSuccess
from torchrl_flow.envs.transforms.smdp import SMDPChunk

__all__ = ["HoldSuccess", "SMDPChunk", "history_transforms"]
