"""The number of executed steps under ``"next"`` for TorchRL's losses that drop the root of a batch."""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey, unravel_key
from torchrl.objectives import IQLLoss, LossModule, REDQLoss

__all__ = ["read_steps_under_next"]

SELECTING = (REDQLoss, IQLLoss)
"""Losses that select ``"next"``, observation and action before they call their value estimator for the target."""

GET: Any = LossModule.value_estimator.fget
SET: Any = LossModule.value_estimator.fset


def read_steps_under_next() -> None:
    """Make the value estimators of REDQLoss and IQLLoss, with subclasses, read k under ``"next"``.

    In TorchRL 0.14.1 they read an entry at the root, which these losses have already dropped, so that each chunk is
    discounted as one step. A new property ``value_estimator`` of these losses moves the key to ``("next", key)``, also
    for existing estimators. Batches without the entry are discounted by gamma, as in TorchRL.

    Every module that writes k calls this function; it has an effect once per process. A TorchRL version that defines
    such a property itself is not changed.
    """
    for loss in SELECTING:
        if "value_estimator" not in vars(loss):
            setattr(loss, "value_estimator", property(_value_estimator, SET))  # noqa: B010


def _value_estimator(self: Any) -> Any:
    estimator = GET(self)
    keys = estimator.tensor_keys  # an object of this estimator alone
    if not _is_next(keys.steps_to_next_obs):
        # Not set_keys: torch.compile of PyTorch 2.8 cannot trace its dataclasses.asdict.
        keys.steps_to_next_obs = unravel_key(("next", keys.steps_to_next_obs))
    return estimator


def _is_next(key: NestedKey) -> bool:
    return isinstance(key, tuple) and key[0] == "next"
