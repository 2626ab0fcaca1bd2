"""The number of executed steps under ``"next"`` for TorchRL's value estimators, which look for it at the root alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from tensordict import NestedKey, TensorDictBase, unravel_key
from torchrl.objectives import TQCLoss
from torchrl.objectives.value import ValueEstimatorBase, advantages

__all__ = ["read_steps_under_next"]

ESTIMATORS = tuple(c for c in vars(advantages).values() if isinstance(c, type) and issubclass(c, ValueEstimatorBase))
"""TorchRL's value estimators, with their deprecated names, which are classes of their own."""

READERS = ("value_estimate", "forward")
"""Methods of them that read the number of executed steps k."""

ORIGINAL_REWARD = ("next", "original_reward")
"""Entry that TorchRL's ``MultiStep`` writes beside its own k at the root."""

_PREFERS_NEXT = "_torchrl_flow_prefers_next"
"""Attribute of the methods that this module replaced."""


def read_steps_under_next() -> None:
    """Make TorchRL's value estimators read k under ``"next"`` where a batch has it there.

    In TorchRL 0.14.1 they read an entry at the root. It is wrong where nothing copies k of an executed chunk to the
    root, and REDQLoss and IQLLoss discard it before their estimator reads it. Where a batch has the entry under
    ``"next"``, the root entry has no effect. Other batches are discounted as in TorchRL alone: by k of the root, or by
    gamma without k. So are batches of TorchRL's ``MultiStep``, which writes its own number of steps at the root.

    Every module that writes k calls this function; it has an effect once per process. It replaces methods of the
    classes, and therefore covers existing objects, ``GAE`` without a loss, and the estimators that trainers make.
    """
    for estimator in ESTIMATORS:
        for name in READERS:
            _replace(estimator, name, _estimator_reads_next)
    _replace(TQCLoss, "compute_target", _target_reads_next)


def _replace(owner: type, name: str, decorate: Callable[[Any], Any]) -> None:
    method = vars(owner).get(name)
    if method is not None and not hasattr(method, _PREFERS_NEXT):
        replaced = decorate(method)
        setattr(replaced, _PREFERS_NEXT, True)
        setattr(owner, name, replaced)


def _estimator_reads_next(method: Any) -> Any:
    @wraps(method)
    def reads_next(self: Any, tensordict: TensorDictBase | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensordict, TensorDictBase):  # a call by keywords
            return method(self, *(() if tensordict is None else (tensordict,)), *args, **kwargs)
        keys = self.tensor_keys  # an object of this estimator alone
        at_root = keys.steps_to_next_obs
        under_next = _under_next(at_root)
        if at_root == under_next or not _prefers(tensordict, under_next):
            return method(self, tensordict, *args, **kwargs)
        # Not set_keys: torch.compile of PyTorch 2.8 cannot trace its dataclasses.asdict.
        keys.steps_to_next_obs = under_next
        try:
            return method(self, tensordict, *args, **kwargs)
        finally:
            keys.steps_to_next_obs = at_root

    return reads_next


def _target_reads_next(method: Any) -> Any:
    """Move k to the root for TQCLoss, which expands the root entry to all quantiles before it calls its estimator."""

    @wraps(method)
    def reads_next(self: Any, tensordict: TensorDictBase) -> Any:
        keys = self.value_estimator.tensor_keys
        named = keys.steps_to_next_obs
        under_next = _under_next(named)
        if not _prefers(tensordict, under_next):
            return method(self, tensordict)
        data = tensordict.copy()
        at_root = unravel_key(under_next[1:])
        data.set(at_root, data.get(under_next))
        data = data.exclude(under_next)
        keys.steps_to_next_obs = at_root
        try:
            return method(self, data)
        finally:
            keys.steps_to_next_obs = named

    return reads_next


def _under_next(key: NestedKey) -> tuple[Any, ...]:
    parts: tuple[Any, ...] = (key,) if isinstance(key, str) else tuple(key)
    return parts if parts[0] == "next" else ("next", *parts)


def _prefers(tensordict: TensorDictBase, under_next: tuple[Any, ...]) -> bool:
    return (
        tensordict.get(under_next, None) is not None and tensordict.get(ORIGINAL_REWARD, None) is None  # pyright: ignore[reportArgumentType]
    )
