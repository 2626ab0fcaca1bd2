"""Handling of non-finite updates, and a check of values against the bound of the rewards."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_flow.functional.chunk import value_bound
from torchrl_flow.util.numbers import NonFiniteError

__all__ = ["UpdateGuard", "current_guard", "guarding"]

_log = logging.getLogger(__name__)

REWARD_KEY: NestedKey = ("next", "reward")
STEPS_KEY: NestedKey = ("next", "steps_to_next_obs")
VALUES = ("q_mean", "q_target_mean", "pred_value", "target_value", "q/data", "q/policy", "train/value")
"""Names of metrics that are mean values of actions or states, without the parts before them."""
_ENDINGS = tuple(f"/{name}" for name in VALUES)
FACTOR = 10.0
"""Factor by which values may exceed the bound of the rewards, since an entropy bonus increases values."""


class UpdateGuard:
    """Counter of updates whose loss or gradient is not finite, with an error above a limit.

    A skipped update changes no weights, and its gradient is discarded. An update of several groups of a
    :class:`~torchrl_flow.training.NamedLossStepper` with a ``method`` is skipped from the first group on that is not
    finite; groups before it have changed their weights. A skipped update counts as an update: schedules and
    update-to-data ratios continue.

    Args:
        max_skipped: number of updates that may be skipped; a further one raises an error.
        gamma: discount of the values in :meth:`check_values`; None for no check.

    Raises:
        ValueError: if a number is outside its allowed range.

    Examples:
        >>> guard = UpdateGuard(1)
        >>> guard.skip(NonFiniteError("Update 3: loss = nan is not finite."))
        >>> guard.skipped
        1
    """

    def __init__(self, max_skipped: int = 0, *, gamma: float | None = None) -> None:
        if max_skipped < 0:
            raise ValueError(f"max_skipped must be at least 0, got {max_skipped}.")
        if gamma is not None and not 0.0 <= gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}.")
        self.max_skipped, self.gamma = max_skipped, gamma
        self.skipped = 0
        """Number of skipped updates."""
        self._bound: Tensor | None = None
        self._warned = False
        self._seen: Callable[[], TensorDictBase | None] = lambda: None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> UpdateGuard:
        """Make the guard from ``skip_updates`` and ``gamma`` of a run's configuration, if it has them."""
        gamma = config.get("gamma")
        if not isinstance(gamma, (int, float)) or not 0.0 <= gamma <= 1.0:
            gamma = None
        return cls(config.get("skip_updates", 0), gamma=gamma)

    def metrics(self) -> dict[str, float]:
        """Return ``train/skipped_updates`` if any update was skipped."""
        return {"train/skipped_updates": float(self.skipped)} if self.skipped else {}

    def skip(self, error: NonFiniteError) -> None:
        """Count a non-finite update.

        Raises:
            NonFiniteError: the given error, if the allowed number of updates was already skipped.
        """
        if self.skipped >= self.max_skipped:
            if not self.max_skipped:
                raise error
            raise NonFiniteError(
                f"{error} {self.skipped} updates were skipped before, which is the largest number allowed."
            ) from error
        self.skipped += 1
        _log.warning("%s Skipped: %d of at most %d.", error, self.skipped, self.max_skipped)

    def see(self, batch: TensorDictBase | None) -> None:
        """Record the rewards of a batch, which bound action values: once for each batch, and until the warning."""
        if batch is None or self.gamma is None or self._warned or self._seen() is batch:
            return
        self._seen = weakref.ref(batch)
        reward = batch.get(REWARD_KEY, None)
        if not isinstance(reward, Tensor) or not reward.numel():
            return
        steps = batch.get(STEPS_KEY, None)
        steps = torch.ones_like(reward) if not isinstance(steps, Tensor) or steps.shape != reward.shape else steps
        largest = value_bound(reward.detach().abs().nan_to_num(0.0, posinf=0.0), steps, self.gamma).max()
        self._bound = largest if self._bound is None else torch.maximum(self._bound, largest)

    def check_values(self, metrics: Mapping[str, Any]) -> None:
        """Warn once about a mean value far above the bound of all recorded rewards.

        Args:
            metrics: scalars by name. Scalars whose name is in :data:`VALUES`, or ends in a slash and such a name, are
                checked.
        """
        if self._warned or self._bound is None:
            return
        names = [name for name in metrics if f"/{name}".endswith(_ENDINGS)]
        bound = float(self._bound) if names else 0.0
        for name in names:
            if bound > 0 and abs(float(metrics[name])) > FACTOR * bound:
                self._warned = True
                _log.warning(
                    "%s = %.4g, and rewards such as those seen so far give values of at most %.4g in size (discount "
                    "%g): the critic diverges. Lower its learning rate, raise the number of critics, or bound rewards.",
                    *(name, float(metrics[name]), bound, self.gamma),
                )
                return


_guards: list[UpdateGuard] = []


def current_guard() -> UpdateGuard:
    """Return the guard of the current run; outside a run, a guard that skips no updates."""
    return _guards[-1] if _guards else UpdateGuard()


@contextmanager
def guarding(guard: UpdateGuard) -> Iterator[UpdateGuard]:
    """Make a guard the current one inside the block."""
    _guards.append(guard)
    try:
        yield guard
    finally:
        _guards.remove(guard)
