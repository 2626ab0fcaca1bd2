"""Generation of demonstrations: planner, recording, flaws, record of attempts, and the demonstrations of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.demos.make import MakeDemosArgs, MakeDemosReport, make_demonstrations
    from torchrl_flow.demos.source import DemoSource

__all__ = [
    "DemoSource",
    "MakeDemosArgs",
    "MakeDemosReport",
    "make_demonstrations",
]

__getattr__, __dir__ = lazy_exports(__name__)
