"""Value and advantage estimators of losses that learn from executed chunks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import nn
from torchrl.objectives import (
    A2CLoss,
    CrossQLoss,
    DDPGLoss,
    IQLLoss,
    LossModule,
    PPOLoss,
    REDQLoss,
    ReinforceLoss,
    SACLoss,
    TD3BCLoss,
    TD3Loss,
    TQCLoss,
    ValueEstimators,
)
from torchrl.objectives.value import GAE, ValueEstimatorBase

from torchrl_flow.functional.checks import check_fraction
from torchrl_flow.objectives.cql import ConservativeQLoss
from torchrl_flow.objectives.smdp_loss import SMDPLossModule

__all__ = ["make_chunk_advantage", "make_chunk_estimator"]

Loss = TypeVar("Loss", bound=LossModule)

OFF_POLICY = (SACLoss, REDQLoss, TD3Loss, TD3BCLoss, DDPGLoss, IQLLoss, CrossQLoss, ConservativeQLoss, SMDPLossModule)
"""Losses that call ``value_estimate`` and therefore need k in every batch."""

ON_POLICY = (PPOLoss, A2CLoss, ReinforceLoss)
"""Losses that call the estimator if a batch has no advantage yet."""

REASONS = {
    "CQLLoss": "its conservative term draws single actions; ConservativeQLoss takes chunks",
    "DQNLoss": "it chooses among discrete actions, and a chunk is none",
    "DistributionalDQNLoss": "it chooses among discrete actions, and a chunk is none",
    "QMixerLoss": "it chooses among discrete actions, and a chunk is none",
    "DiscreteSACLoss": "it chooses among discrete actions, and a chunk is none",
    "DiscreteCQLLoss": "it chooses among discrete actions, and a chunk is none",
    "DiscreteIQLLoss": "it chooses among discrete actions, and a chunk is none",
    "DreamerActorLoss": "it imagines single steps",
    "DreamerValueLoss": "it imagines single steps",
    "DreamerV3Loss": "it imagines single steps",
    "DreamerV3ActorLoss": "it imagines single steps",
    "DreamerV3ValueLoss": "it imagines single steps",
    "MAPPOLoss": "its rewards are those of several agents, and SMDPChunk counts one k for all",
    "IPPOLoss": "its rewards are those of several agents, and SMDPChunk counts one k for all",
}
"""Reasons why losses cannot learn from chunks, by loss."""


def make_chunk_estimator(
    loss_module: Loss,
    value_type: ValueEstimators | ValueEstimatorBase | type[ValueEstimatorBase] | None = None,
    *,
    gamma: float = 0.99,
    steps_key: NestedKey = ("next", "steps_to_next_obs"),
    **hyperparams: Any,
) -> Loss:
    """Make the value estimator of a loss discount by ``gamma ** k``, the executed steps of each chunk.

    It calls ``make_value_estimator`` and sets the estimator's key of k. A batch without k then raises an error; TorchRL
    would discount it as one step. Keyword calls of the loss take k too (``next_steps_to_next_obs``;
    ``steps_to_next_obs`` of TQCLoss), but not those of ConservativeQLoss and A2CLoss, whose ``in_keys`` are fixed.

    Supported are SACLoss, TQCLoss, REDQLoss, TD3Loss, TD3BCLoss, DDPGLoss, IQLLoss, CrossQLoss, PPOLoss and its
    subclasses for one agent, A2CLoss and ReinforceLoss, with subclasses, and the losses of this package.

    Args:
        loss_module: loss; set its keys of reward, done and action before.
        value_type: kind of value estimator, as in ``make_value_estimator``. Defaults to the loss's own default.
        gamma: discount of one environment step, the same as that of :class:`~torchrl_flow.envs.SMDPChunk`.
        steps_key: key of k, int64 ``[*B, 1]``.
        **hyperparams: further hyper-parameters of the estimator, such as ``lmbda``.

    Returns:
        The loss.

    Raises:
        ValueError: if the loss cannot learn from chunks, or ``gamma`` is outside [0, 1].
        KeyError: in a call of the loss, if a batch has no k.

    Examples:
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import TD3Loss
        >>> from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
        >>> config = StatePolicyConfig(5, 3, act_horizon=4, obs_horizon=2, hidden_sizes=(16,))
        >>> loss = TD3Loss(make_state_policy(config), make_state_values(config)[0], bounds=(-1.0, 1.0))
        >>> make_chunk_estimator(loss, gamma=0.9).value_estimator.tensor_keys.steps_to_next_obs
        ('next', 'steps_to_next_obs')
    """
    check_fraction("gamma", gamma)
    _check_supported(loss_module)
    steps_key = unravel_key(steps_key)
    given = isinstance(value_type, ValueEstimatorBase)
    chosen: Any = value_type
    loss_module.make_value_estimator(chosen, **(hyperparams if given else {"gamma": gamma, **hyperparams}))
    estimator: Any = loss_module.value_estimator
    read_key = steps_key
    if isinstance(loss_module, TQCLoss):
        # The loss selects k beside "next" and repeats it for each quantile: a key under "next" is an error there.
        read_key = estimator.default_keys().steps_to_next_obs
    estimator.set_keys(steps_to_next_obs=read_key)
    reader: nn.Module = estimator if isinstance(loss_module, ON_POLICY) else loss_module
    for number in [n for n, hook in reader._forward_pre_hooks.items() if isinstance(hook, _NeedsSteps)]:
        del reader._forward_pre_hooks[number], reader._forward_pre_hooks_with_kwargs[number]
    reader.register_forward_pre_hook(_NeedsSteps(steps_key, read_key), with_kwargs=True)
    if _has_setter(loss_module):
        settable: Any = loss_module
        settable.in_keys = list(dict.fromkeys([*settable.in_keys, read_key]))
    return loss_module


def make_chunk_advantage(value_network: Any, *, gamma: float, lmbda: float, **options: Any) -> GAE:
    """Make TorchRL's generalised advantage estimator discount a chunk of k executed steps by ``gamma ** k``.

    Args:
        value_network: TensorDict module that writes ``state_value`` ``[*B, 1]``.
        gamma: discount of one environment step.
        lmbda: lambda of the estimator, per chunk.
        **options: further keyword arguments of :class:`~torchrl.objectives.value.GAE`. ``vectorized`` defaults to
            ``False``: on a CPU the loop is faster if gamma differs between rows.

    Raises:
        ValueError: if ``gamma`` or ``lmbda`` is outside [0, 1].

    Examples:
        >>> from torchrl.modules import ValueOperator
        >>> value = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
        >>> make_chunk_advantage(value, gamma=0.9, lmbda=0.95).tensor_keys.steps_to_next_obs
        ('next', 'steps_to_next_obs')
    """
    check_fraction("gamma", gamma)
    check_fraction("lmbda", lmbda)
    options = {"vectorized": False, **options}
    estimator = GAE(gamma=gamma, lmbda=lmbda, value_network=value_network, **options)
    estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return estimator


class _NeedsSteps:
    """Forward pre-hook that raises an error for a batch without k.

    Args:
        steps_key: key of k.
        read_key: key from which the estimator reads k; k is copied there if it differs.
    """

    def __init__(self, steps_key: NestedKey, read_key: NestedKey) -> None:
        self.steps_key, self.read_key = steps_key, read_key

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        data = args[0] if args else kwargs.get("tensordict")
        if not isinstance(data, TensorDictBase):
            name = self.read_key if isinstance(self.read_key, str) else "_".join(map(str, self.read_key))
            if name not in kwargs:
                raise self._missing(module, name, kwargs)
            return
        steps = data.get(self.steps_key, None)  # pyright: ignore[reportArgumentType]
        if steps is None:
            raise self._missing(module, self.steps_key, data.keys(True, True))
        if self.read_key != self.steps_key:
            data.set(self.read_key, steps)

    @staticmethod
    def _missing(module: nn.Module, key: NestedKey, found: Iterable[NestedKey]) -> KeyError:
        return KeyError(
            f"the batch has no {key!r}, by which {type(module).__name__} discounts chunks; it has "
            f"{sorted(map(str, found))}. Collect with make_chunk_env or SMDPChunk, or name the entry in "
            "make_chunk_estimator(..., steps_key=...)."
        )


def _check_supported(loss_module: LossModule) -> None:
    name = type(loss_module).__name__
    known = next((c.__name__ for c in type(loss_module).__mro__ if c.__name__ in REASONS), None)
    known = None if isinstance(loss_module, ConservativeQLoss) else known
    if known is None and isinstance(loss_module, (*OFF_POLICY, *ON_POLICY)):
        return
    reason = REASONS.get(known or "", "it has no value estimator that discounts by executed steps")
    supported = sorted(c.__name__ for c in (*OFF_POLICY, *ON_POLICY, TQCLoss) if c.__module__.startswith("torchrl."))
    raise ValueError(
        f"{name} cannot learn from action chunks: {reason}. Losses that can are {', '.join(supported)}, and those of "
        "torchrl_flow."
    )


def _has_setter(loss_module: LossModule) -> bool:
    found: Any = next(vars(c)["in_keys"] for c in type(loss_module).__mro__ if "in_keys" in vars(c))
    return not isinstance(found, property) or found.fset is not None
