"""Offline tasks on logged transitions, with the environment that evaluates them, and their reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.offline.conclusion import conclude_offline, measure_references, offline_row
    from torchrl_flow.offline.envs import GymTask, offline_task

__all__ = [
    "GymTask",
    "conclude_offline",
    "measure_references",
    "offline_row",
    "offline_task",
]

__getattr__, __dir__ = lazy_exports(__name__)
