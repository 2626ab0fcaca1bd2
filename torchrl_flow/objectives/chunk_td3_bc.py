"""TD3+BC on action chunks: masks, weights, and a discount by the number of executed steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import TD3BCLoss

from torchrl_flow.functional.checks import check_one_of
from torchrl_flow.objectives.flow_loss import REDUCTIONS
from torchrl_flow.objectives.network_calls import running

__all__ = ["ChunkTD3BCLoss"]


class ChunkTD3BCLoss(TD3BCLoss):
    """TorchRL's :class:`~torchrl.objectives.TD3BCLoss` for chunks ``[*B, H_a, A]`` of actions.

    Differences: the cloning term of a row is the mean over its real steps only (``action_mask``). It is reduced
    together with the row, so that priority weights and ``reduction="none"`` apply to it too; TorchRL takes one mean
    over the whole batch. Targets are discounted by ``gamma ** k`` for ``k`` executed steps
    (``("next", "steps_to_next_obs")``). With chunks of one step, no mask and ``reduction="mean"`` both losses are
    equal. Critics read the whole chunk that was sent.

    Args:
        actor_network: policy that writes a deterministic ``action`` ``[*B, H_a, A]``.
        qvalue_network: list of critics of observation and chunk; each keeps its own initial weights.
        gamma: discount of an environment step.
        **kwargs: see TorchRL's loss; ``loss_function`` is ``"l2"`` here, as in the paper.

    Raises:
        ValueError: if the reduction is unknown.

    References:
        Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", https://arxiv.org/abs/2106.06860

    Examples:
        >>> from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
        >>> config = StatePolicyConfig(5, 3, act_horizon=4, obs_horizon=2, hidden_sizes=(16,))
        >>> loss = ChunkTD3BCLoss(make_state_policy(config), make_state_values(config), bounds=(-1.0, 1.0))
        >>> ("next", "steps_to_next_obs") in loss.in_keys
        True
    """

    @dataclass
    class _AcceptedKeys(TD3BCLoss._AcceptedKeys):
        """Keys that ``set_keys`` accepts, in addition to those of TorchRL's loss.

        Attributes:
            action_mask: ``[*B, H_a]`` bool, True where a step of the chunk is real; optional.
            steps_to_next_obs: executed steps ``[*B, 1]``.
        """

        action_mask: NestedKey = "action_mask"
        steps_to_next_obs: NestedKey = ("next", "steps_to_next_obs")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, actor_network: Any, qvalue_network: Any, *, gamma: float = 0.99, **kwargs: Any) -> None:
        check_one_of("reduction", kwargs.get("reduction") or "mean", REDUCTIONS)
        options: dict[str, Any] = {"loss_function": "l2", **kwargs}
        super().__init__(actor_network, qvalue_network, **options)
        self._out_keys: list[NestedKey] = ["loss_actor", "loss_qvalue", "bc_loss", "lmbd", "pred_value"]
        self._out_keys += ["state_action_value_actor", "next_state_value", "target_value"]
        self.make_value_estimator(gamma=gamma)

    # In TorchRL a list of the class, on which select_out_keys has no effect.
    @property
    def out_keys(self) -> list[NestedKey]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Keys that the loss writes."""
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        inherited: Any = self._in_keys
        self._in_keys = list(dict.fromkeys([*inherited, unravel_key(self.tensor_keys.steps_to_next_obs)]))

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        if self._value_estimator is not None:
            self._value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> ChunkTD3BCLoss:
        """Choose the value estimator of the targets, as in TorchRL; it reads the number of executed steps."""
        super().make_value_estimator(value_type, **hyperparams)
        self.value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)
        return self

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critics' loss.

        Raises:
            KeyError: if a key of the transition is missing.
        """
        wanted: Any = self.in_keys
        for key in wanted:
            tensordict[key]
        return super().qvalue_loss(tensordict)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the policy's loss, ``-alpha Q(s, pi(s)) / mean |Q| + bc`` of each row.

        Raises:
            ValueError: if the policy's chunk and the data's chunk differ in shape.
        """
        weights = self._maybe_get_priority_weight(tensordict)
        data = tensordict.select(*self.actor_network.in_keys, strict=False)
        with running(self.actor_network_params, self.actor_network):
            data = self.actor_network(data)
        errors = self._clone_errors(tensordict, data[self.tensor_keys.action])
        critic_params = self._cached_detach_qvalue_network_params[0]
        inputs = data.select(*self.qvalue_network.in_keys, strict=False)
        with running(critic_params, self.qvalue_network):
            value = self.qvalue_network(inputs)[self.tensor_keys.state_action_value].squeeze(-1)
        scale = self.alpha / value.abs().mean().detach()
        loss = self._reduce_loss(errors - scale * value, tensordict=tensordict, weights=weights)
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "qvalue_network_params",
            "target_actor_network_params",
            "target_qvalue_network_params",
        )
        return loss, {"state_action_value_actor": value.detach(), "bc_loss": errors.detach().mean(), "lmbd": scale}

    def _clone_errors(self, tensordict: TensorDictBase, chunk: Tensor) -> Tensor:
        """Return each row's mean squared error ``[*B]`` over the steps that are real."""
        target = tensordict[self.tensor_keys.action]
        if chunk.shape != target.shape or chunk.ndim != tensordict.ndim + 2:
            raise ValueError(
                f"policy and data must have chunks of one shape [*B, H_a, A], got {list(chunk.shape)} and "
                f"{list(target.shape)}."
            )
        mask = tensordict.get(self.tensor_keys.action_mask, None)
        if mask is None:
            return (chunk - target).square().mean((-2, -1))
        # Entries past the end may hold any value, including NaN.
        errors = torch.where(mask.unsqueeze(-1), chunk - target, 0.0).square().mean(-1).sum(-1)
        return errors / mask.sum(-1).clamp(min=1)
