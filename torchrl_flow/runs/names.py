"""Names of checkpoints and of logging modes, in a module without torch, so that reading options is fast."""

from __future__ import annotations

from typing import Literal

__all__ = ["SUFFIX", "WandbMode", "Which"]

SUFFIX = ".torchrl"
"""File name suffix of checkpoints."""
WandbMode = Literal["online", "offline"]
"""Modes of logging to Weights & Biases."""
Which = Literal["last", "best"]
"""Choice of a run's checkpoint."""
