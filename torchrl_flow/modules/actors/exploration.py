"""The rule by which all actors decide whether to draw noise."""

from __future__ import annotations

from torchrl.envs.utils import ExplorationType, exploration_type

__all__ = ["draws_noise"]


def draws_noise() -> bool:
    """Return whether an actor draws missing noise under the current exploration type.

    Under ``ExplorationType.RANDOM``, or if no type is set, noise is drawn. Under ``DETERMINISTIC``, ``MEAN`` and
    ``MODE`` it is zero: a flow has no mean or mode in closed form, and its zero-noise sample replaces both. All actors
    of this package call this function. Noise in the input is used under every type.

    Examples:
        >>> from torchrl.envs.utils import ExplorationType, set_exploration_type
        >>> with set_exploration_type(ExplorationType.MODE):
        ...     draws_noise()
        False
    """
    return exploration_type() not in (ExplorationType.DETERMINISTIC, ExplorationType.MEAN, ExplorationType.MODE)
