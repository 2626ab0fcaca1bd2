"""Keys and value estimator of losses that learn from transitions of executed chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.utils import dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_flow.functional.checks import check_fraction
from torchrl_flow.objectives.flow_loss import FlowLossModule

if TYPE_CHECKING:
    from typing_extensions import Self

    from torchrl_flow.modules import FlowActor, QEnsemble
    from torchrl_flow.objectives.chunk_td_term import ChunkTDTerm

__all__ = ["SMDPLossModule"]


class SMDPLossModule(FlowLossModule):
    """A loss module whose targets discount by executed steps, ``R + gamma^k (1 - terminated) V(s')``.

    A subclass registers networks as ``actor_network`` and ``critic_network``, holds a
    :class:`~torchrl_flow.objectives.ChunkTDTerm` as ``td``, and says by :meth:`next_value` what it bootstraps from.

    Args:
        gamma: discount of one environment step.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Raises:
        ValueError: if an argument is outside what is allowed.
    """

    @dataclass
    class _AcceptedKeys(FlowLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts.

        Attributes:
            action: the chunk that was sent, ``[*B, H_a, A]``.
            reward: discounted return of the executed steps ``[*B, 1]``, under ``"next"``.
            done: ``[*B, 1]`` bool, under ``"next"``.
            terminated: ``[*B, 1]`` bool, under ``"next"``.
            steps_to_next_obs: executed steps k ``[*B, 1]``; the whole key, with ``"next"``.
            priority: key to which the largest absolute TD error ``[*B]`` of each row is written.
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = ("next", "steps_to_next_obs")
        priority: NestedKey = "td_error"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    # The names under which a subclass registers its networks.
    actor_network: FlowActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    critic_network: QEnsemble
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams
    td: ChunkTDTerm
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, ValueEstimators.TD1, ValueEstimators.TDLambda)

    def __init__(self, gamma: float, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_fraction("gamma", gamma)
        self.gamma = gamma

    @torch.no_grad()
    def next_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the value ``[*B, 1]`` of the next observations; a subclass implements it."""
        raise NotImplementedError

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the targets ``y = R + gamma^k (1 - terminated) V(s')`` ``[*B, 1]`` of a batch.

        Raises:
            KeyError: if a key of the transition is missing; there is no default.
        """
        following: Any = tensordict["next"]
        return self.discounted(tensordict, self.next_value(following))

    def _td_loss(
        self, tensordict: TensorDictBase, q: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute ``mean_i (Q_i(s, a) - y)^2`` of values ``[num_qs, B]`` and its metrics, and write the priorities."""
        target = self.target_value(tensordict) if target is None else target
        batch = target.shape[:-1]
        rows, td_error, metrics = self.td(q, target.reshape(-1))
        loss = self._reduce_loss(rows.reshape(batch), tensordict, weights=self._row_weights(tensordict, batch))
        tensordict.set(self.tensor_keys.priority, td_error.reshape(batch))
        return loss, metrics

    def _estimator_keys(self) -> dict[str, NestedKey]:
        names = ("reward", "done", "terminated", "steps_to_next_obs")
        return {name: getattr(self.tensor_keys, name) for name in names}

    def _transition_keys(self, *observations: NestedKey) -> list[NestedKey]:
        """Return the keys of the following observations and of the transition, from the root."""
        keys = self.tensor_keys
        following = [*observations, keys.reward, keys.done, keys.terminated]
        return [unravel_key(key) for key in (*(("next", key) for key in following), keys.steps_to_next_obs)]

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())

    def make_value_estimator(
        self,
        value_type: ValueEstimators | ValueEstimatorBase | type[ValueEstimatorBase] | None = None,
        **hyperparams: Any,
    ) -> Self:
        """Choose the value estimator of the targets: TD(0) unless told otherwise, TD(1) or TD(lambda).

        The latter read ``[*B, T]`` batches with time in the last dimension. ``gamma`` is the loss's own by default.
        An estimator or a class of estimators may be given instead, as in TorchRL; it gets the loss's keys.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        given = isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase)
        if given or isinstance(value_type, ValueEstimatorBase):
            super().make_value_estimator(value_type, **hyperparams)  # pyright: ignore[reportArgumentType]
            self.value_estimator.set_keys(**self._estimator_keys())
            return self
        dispatch_value_estimator(
            self,
            value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys=self._estimator_keys(),
            **{"value_network": None, "device": self._default_device, **hyperparams},
        )
        return self

    def discounted(self, tensordict: TensorDictBase, next_value: Tensor) -> Tensor:
        """Return ``R + gamma^k (1 - terminated) next_value``, of values ``[*B, 1]`` or ``[N, *B, 1]``, in their shape.

        Raises:
            KeyError: if a key of the transition is missing; there is no default.
        """
        read = self._transition_keys()
        for key in read:
            self._entry(tensordict, key)
        if next_value.ndim > tensordict["next", self.tensor_keys.reward].ndim:  # pyright: ignore
            shape, transition = next_value.shape, TensorDict(batch_size=next_value.shape[:-1])
            for key in read:
                transition.set(key, tensordict[key].expand(shape))  # pyright: ignore
            tensordict = transition
        return self.value_estimator.value_estimate(tensordict, next_value=next_value)
