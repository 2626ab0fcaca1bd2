"""When an actor draws noise: one rule for all actors."""

from __future__ import annotations

from torchrl.envs.utils import ExplorationType, exploration_type

__all__ = ["draws_noise"]


def draws_noise() -> bool:
    """Tell whether an actor draws the noise that it is not given, under the exploration type that is set.

    Under ``ExplorationType.RANDOM``, or where none is set, noise is drawn. Under ``DETERMINISTIC``, ``MEAN`` and
    ``MODE`` it is zero: a flow has no mean or mode in closed form, and its zero-noise sample stands for both. All
    actors here ask this function. Noise that is given as an entry of the input is used under every type.

    Examples:
        >>> from torchrl.envs.utils import ExplorationType, set_exploration_type
        >>> with set_exploration_type(ExplorationType.MODE):
        ...     draws_noise()
        False
    """
    return exploration_type() not in (ExplorationType.DETERMINISTIC, ExplorationType.MEAN, ExplorationType.MODE)
