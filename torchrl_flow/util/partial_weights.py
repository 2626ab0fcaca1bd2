"""Weights of the trained part of a policy, for TorchRL's collectors, which accept the weights of all parts alone."""

from __future__ import annotations

from functools import wraps
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import nn

__all__ = ["accept_weights_of_part"]

TRAINED_PART = "trained_part"
"""Attribute of a policy: the name of the module whose weights alone may be sent to its collector."""

_ACCEPTS_PART = "_torchrl_flow_accepts_part"
"""Attribute of the method that this module replaced."""


def accept_weights_of_part() -> None:
    """Make TorchRL's collectors accept the weights of only the trained part of a policy that names one.

    ``SACTrainer`` and ``PPOTrainer`` send the weights of the loss's policy. If it is only a part of the policy that
    collects, TorchRL 0.14.1 raises a KeyError. The policy names this part in the attribute ``trained_part``; collectors
    of other policies are not affected. All collectors call the method of their base class that is replaced here, those
    in several processes too. The function has an effect once per process.
    """
    from torchrl.collectors import BaseCollector

    method: Any = BaseCollector.update_policy_weights_
    if hasattr(method, _ACCEPTS_PART):
        return

    @wraps(method)
    def accepts_part(self: Any, policy_or_weights: Any = None, **kwargs: Any) -> None:
        name = getattr(_collecting_policy(self), TRAINED_PART, None)
        if name is not None:
            policy_or_weights = _whole(policy_or_weights, name)
            kwargs |= {key: _whole(kwargs[key], name) for key in ("weights", "policy") if key in kwargs}
            if isinstance(kwargs.get("policy"), TensorDictBase):
                kwargs["weights"] = kwargs.pop("policy")
        method(self, policy_or_weights, **kwargs)

    setattr(accepts_part, _ACCEPTS_PART, True)
    setattr(BaseCollector, "update_policy_weights_", accepts_part)  # noqa: B010


def _collecting_policy(collector: Any) -> Any:
    # The first is that of a collector in this process, the second that of one with several processes.
    found = getattr(collector, "_orig_policy", None)
    return getattr(collector, "policy", None) if found is None else found


def _whole(source: Any, name: str) -> Any:
    """Return the weights of the policy, or of its part ``name``, or a module of either, as weights of the policy."""
    if isinstance(source, nn.Module):
        source = TensorDict.from_module(source)
    if isinstance(source, TensorDictBase) and name not in source:
        return TensorDict({name: source}, batch_size=[])
    return source
