"""Parts of a training loop: gradient steps, steppers, learning rates, rollouts, replay, checks for NaN.

The recipes contain the training loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.training.chain_rollouts import noisy_rollouts
    from torchrl_flow.training.collectors import CollectorRollouts, make_rollouts
    from torchrl_flow.training.data_parallel import DataParallelLoss
    from torchrl_flow.training.features import append_features
    from torchrl_flow.training.finite import (
        NonFiniteError,
        gradient_step,
        require_finite_modules,
        require_finite_rollout,
    )
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
    from torchrl_flow.training.ray_learners import LearnerError, RayLearners
    from torchrl_flow.training.ray_rollouts import RayRollouts
    from torchrl_flow.training.rollouts import ChunkRollouts, CollectorError, finished_success, minibatches
    from torchrl_flow.training.schedules import warmup_cosine
    from torchrl_flow.training.steppers import NamedLossStepper
    from torchrl_flow.training.trainer_parts import ChunkHooks, SteeredCollector, with_finite_steps

__all__ = [
    "ChunkHooks",
    "ChunkRollouts",
    "CollectorError",
    "CollectorRollouts",
    "DataParallelLoss",
    "LearnerError",
    "LossGroup",
    "NamedLossStepper",
    "NonFiniteError",
    "RayLearners",
    "RayRollouts",
    "ReplayState",
    "SteeredCollector",
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
    "noisy_rollouts",
    "replay_demonstrations",
    "require_finite_modules",
    "require_finite_rollout",
    "steered_rollouts",
    "warmup_cosine",
    "with_finite_steps",
]

__getattr__, __dir__ = lazy_exports(__name__)
