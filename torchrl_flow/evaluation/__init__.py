"""Evaluation over fixed seeds of chunk policies in environments and of offline policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.evaluation.chunk_values import values_and_returns, values_within_states
    from torchrl_flow.evaluation.offline_task import OfflineTask, SlateReturns, episode_returns
    from torchrl_flow.evaluation.policy_episodes import record_episodes, successful_part
    from torchrl_flow.evaluation.protocol import compare_num_steps, evaluate, success_metrics, warm_up
    from torchrl_flow.evaluation.result import EvaluationResult
    from torchrl_flow.evaluation.seeds import (
        TRAINING_SEED,
        VALIDATION_SEED,
        evaluation_seeds,
        validation_seeds,
    )

__all__ = [
    "TRAINING_SEED",
    "VALIDATION_SEED",
    "EvaluationResult",
    "OfflineTask",
    "SlateReturns",
    "compare_num_steps",
    "episode_returns",
    "evaluate",
    "evaluation_seeds",
    "record_episodes",
    "success_metrics",
    "successful_part",
    "validation_seeds",
    "values_and_returns",
    "values_within_states",
    "warm_up",
]

__getattr__, __dir__ = lazy_exports(__name__)
