"""TorchRL's losses that drop the root of a batch find the number of executed steps under ``"next"``."""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey, unravel_key
from torchrl.objectives import IQLLoss, LossModule, REDQLoss

__all__ = ["read_steps_under_next"]

SELECTING = (REDQLoss, IQLLoss)
"""Losses that select ``"next"``, observation and action before they ask their value estimator for the target."""

GET: Any = LossModule.value_estimator.fget
SET: Any = LossModule.value_estimator.fset


def read_steps_under_next() -> None:
    """Let the value estimators of REDQLoss and IQLLoss, with subclasses, read k under ``"next"``.

    TorchRL 0.14.1 has them read an entry at the root, which these losses have dropped by then, so that they discount
    each chunk as one step. Their property ``value_estimator`` moves the key to ``("next", key)``. It does so for
    estimators that were made before too. Batches without the entry are discounted by gamma, as without this function.

    Every module that writes k calls it, once for the process. A version of TorchRL that has a property of its own there
    is left as it is.
    """
    for loss in SELECTING:
        if "value_estimator" not in vars(loss):
            setattr(loss, "value_estimator", property(_value_estimator, SET))  # noqa: B010


def _value_estimator(self: Any) -> Any:
    estimator = GET(self)
    key = estimator.tensor_keys.steps_to_next_obs
    if not _is_next(key):
        estimator.set_keys(steps_to_next_obs=unravel_key(("next", key)))
    return estimator


def _is_next(key: NestedKey) -> bool:
    return isinstance(key, tuple) and key[0] == "next"
