"""Seeds of episodes of the final evaluation, of evaluations during training, and of training."""

from __future__ import annotations

__all__ = ["EVALUATION_SEED", "TRAINING_SEED", "VALIDATION_SEED", "evaluation_seeds", "validation_seeds"]

EVALUATION_SEED = 10_000
"""Seed of the first episode of a final evaluation; all policies are evaluated on the same seeds."""
VALIDATION_SEED = 20_000
"""Seed of the first episode of an evaluation during training, which selects the best checkpoint."""
TRAINING_SEED = 1_000_000
"""Seed of the first episode of a policy's training data."""


def evaluation_seeds(episodes: int) -> range:
    """Return the seeds of a final evaluation.

    Examples:
        >>> evaluation_seeds(100)
        range(10000, 10100)
    """
    return range(EVALUATION_SEED, EVALUATION_SEED + episodes)


def validation_seeds(episodes: int) -> range:
    """Return the seeds of an evaluation during training, disjoint from those of a final evaluation.

    Examples:
        >>> validation_seeds(50)
        range(20000, 20050)
    """
    return range(VALIDATION_SEED, VALIDATION_SEED + episodes)
