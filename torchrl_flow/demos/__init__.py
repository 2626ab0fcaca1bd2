"""The making of demonstrations: planner, recording, imperfection, ledger, and where recipes find them."""

from __future__ import annotations

from torchrl_flow.demos.make import MakeDemosArgs, MakeDemosReport, make_demonstrations
from torchrl_flow.demos.source import DemoSource

__all__ = [
    "DemoSource",
    "MakeDemosArgs",
    "MakeDemosReport",
    "make_demonstrations",
]
