"""Runs: their directory, metrics, checkpoints and resumption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.runs.checkpoint import CheckpointDirectory, save_checkpoint
    from torchrl_flow.runs.checkpoint_reader import (
        TrainingCheckpoint,
        latest_checkpoint,
        load_checkpoint,
        require_task,
    )
    from torchrl_flow.runs.metrics import RunLogger, read_metrics
    from torchrl_flow.runs.names import Which
    from torchrl_flow.runs.run import EVALUATION, Run

__all__ = [
    "EVALUATION",
    "CheckpointDirectory",
    "Run",
    "RunLogger",
    "TrainingCheckpoint",
    "Which",
    "latest_checkpoint",
    "load_checkpoint",
    "read_metrics",
    "require_task",
    "save_checkpoint",
]

__getattr__, __dir__ = lazy_exports(__name__)
