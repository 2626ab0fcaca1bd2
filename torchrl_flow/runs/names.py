"""Names of checkpoints and of where a run logs, apart from their code so that reading options needs no torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["SUFFIX", "WandbMode", "Which"]

SUFFIX = ".torchrl"
"""Ending of a checkpoint's file."""
WandbMode = Literal["online", "offline"]
"""How Weights & Biases is logged to."""
Which = Literal["last", "best"]
"""Which checkpoint of a run."""
