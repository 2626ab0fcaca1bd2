"""Environment transforms: action chunks as single transitions, observation histories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.envs.transforms.executed_steps import CopyStepsToRoot
    from torchrl_flow.envs.transforms.history import history_transforms
    from torchrl_flow.envs.transforms.smdp import SMDPChunk

__all__ = ["CopyStepsToRoot", "SMDPChunk", "history_transforms"]

__getattr__, __dir__ = lazy_exports(__name__)
