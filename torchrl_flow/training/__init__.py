"""Everything around a training loop: runs, checkpoints, evaluation, metrics, reports, sweeps, demonstrations.

The loops themselves are in the recipes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.training.collectors import CollectorError, CollectorRollouts, make_rollouts
    from torchrl_flow.training.features import append_features
    from torchrl_flow.training.finite import NonFiniteError, gradient_step, require_finite_modules
    from torchrl_flow.training.guard import UpdateGuard, guarding
    from torchrl_flow.training.loss_groups import LossGroup
    from torchrl_flow.training.macro_buffer import (
        ReplayState,
        macro_replay,
        macro_transitions,
        replay_demonstrations,
        steered_rollouts,
    )
    from torchrl_flow.training.multi_chunk import multi_chunk_transitions
    from torchrl_flow.training.rollouts import ChunkRollouts, finished_success, minibatches
    from torchrl_flow.training.steppers import NamedLossStepper

__all__ = [
    "ChunkRollouts",
    "CollectorError",
    "CollectorRollouts",
    "LossGroup",
    "NamedLossStepper",
    "NonFiniteError",
    "ReplayState",
    "UpdateGuard",
    "append_features",
    "finished_success",
    "gradient_step",
    "guarding",
    "macro_replay",
    "macro_transitions",
    "make_rollouts",
    "minibatches",
    "multi_chunk_transitions",
    "replay_demonstrations",
    "require_finite_modules",
    "steered_rollouts",
]

__getattr__, __dir__ = lazy_exports(__name__)
