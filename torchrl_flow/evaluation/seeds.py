"""Seeds of episodes: for the final evaluation, for evaluations while training, and for training."""

from __future__ import annotations

__all__ = ["EVALUATION_SEED", "TRAINING_SEED", "VALIDATION_SEED", "evaluation_seeds", "validation_seeds"]

EVALUATION_SEED = 10_000
"""Seed of the first episode of a final evaluation. All policies meet the same episodes."""
VALIDATION_SEED = 20_000
"""Seed of the first episode of an evaluation while training, which chooses the best checkpoint."""
TRAINING_SEED = 1_000_000
"""Seed of the first episode that a policy plays in order to learn from it."""


def evaluation_seeds(episodes: int) -> range:
    """Return the seeds of a final evaluation.

    Examples:
        >>> evaluation_seeds(100)
        range(10000, 10100)
    """
    return range(EVALUATION_SEED, EVALUATION_SEED + episodes)


def validation_seeds(episodes: int) -> range:
    """Return the seeds of an evaluation while training: none of them is one of a final evaluation.

    Examples:
        >>> validation_seeds(50)
        range(20000, 20050)
    """
    return range(VALIDATION_SEED, VALIDATION_SEED + episodes)
