"""Runs: their directory, metrics, checkpoints and resumption."""

from __future__ import annotations

from torchrl_flow.runs.checkpoint import CheckpointDirectory, save_checkpoint
from torchrl_flow.runs.checkpoint_reader import (
    TrainingCheckpoint,
    Which,
    latest_checkpoint,
    load_checkpoint,
    require_task,
)
from torchrl_flow.runs.metrics import RunLogger, read_metrics
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
