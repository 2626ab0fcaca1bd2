"""Mixin that makes a loss's value estimator in the constructor, so that all state dicts have the same entries."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

    _Base = LossModule
else:
    # Not a LossModule, as in held_networks.py.
    _Base = object

__all__ = ["ReadyEstimator"]


class ReadyEstimator(_Base):
    """Mixin of losses that call ``make_value_estimator`` in their constructor, not at first use."""

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        # State dicts of losses without the mixin may lack the estimator, which then keeps its values.
        for name, value in self.value_estimator.state_dict(prefix=f"{prefix}_value_estimator.").items():
            state_dict.setdefault(name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)
