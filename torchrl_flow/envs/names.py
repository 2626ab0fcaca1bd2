"""Names of the planar task and of choices about an environment; reading options needs them without torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["PLANAR", "PLANAR_CONTROL_MODE", "AfterSuccess", "ObsMode"]

PLANAR = "planar"
"""Name of the planar task."""
PLANAR_CONTROL_MODE = "delta_position"
"""Its control mode."""
AfterSuccess = Literal["end", "continue"]
"""Whether success ends a training episode."""
ObsMode = Literal["state", "rgb", "rgb+state"]
"""What a policy observes: the state, images, or both."""
