"""A value estimator that a loss makes when it is built, so that all of its state dicts have the same entries."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torchrl.objectives import LossModule

    _Base = LossModule
else:
    # No loss of its own, as in held_networks.py.
    _Base = object

__all__ = ["ReadyEstimator"]


class ReadyEstimator(_Base):
    """Mixin of losses that call ``make_value_estimator`` when they are built and not at first use."""

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        # State dicts of losses without the mixin may lack the estimator: it stays as it is then.
        for name, value in self.value_estimator.state_dict(prefix=f"{prefix}_value_estimator.").items():
            state_dict.setdefault(name, value)
        super()._load_from_state_dict(state_dict, prefix, *rest)
