"""Names of the planar task and of environment options, without an import of torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["PLANAR", "PLANAR_CONTROL_MODE", "AfterSuccess", "ObsMode"]

PLANAR = "planar"
"""Name of the planar task."""
PLANAR_CONTROL_MODE = "delta_position"
"""Control mode of the planar task."""
AfterSuccess = Literal["end", "continue"]
"""Whether success ends a training episode."""
ObsMode = Literal["state", "rgb", "rgb+state"]
"""Observations of a policy: the state, images, or both."""
