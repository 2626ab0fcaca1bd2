"""TorchRL's TD3+BC and IQL losses with networks called on tensors: the same values in less time."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import IQLLoss, TD3BCLoss
from torchrl.objectives.utils import distance_loss

from torchrl_flow.objectives.network_calls import (
    Entries,
    distribution,
    entries_of_next,
    evaluate,
    evaluate_members,
    members,
)
from torchrl_flow.objectives.ready_estimator import ReadyEstimator

__all__ = ["DirectIQLLoss", "DirectTD3BCLoss"]


class _CriticCalls(ReadyEstimator):
    """Mixin of losses with stacked critics ``qvalue_network``: evaluates the critics one after the other."""

    qvalue_network: Any
    tensor_keys: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Made here, not at first use, so that every state dict of the loss has the same entries.
        self.make_value_estimator()

    def _critic_values(self, params: Any, tensordict: TensorDictBase, given: Entries | None = None) -> Tensor:
        """Return the critics' values ``[num, *B]``; ``given`` replaces entries of the batch."""
        key = self.tensor_keys.state_action_value
        return evaluate_members(self.qvalue_network, params, tensordict, key, given).squeeze(-1)


class DirectTD3BCLoss(_CriticCalls, TD3BCLoss):
    """TorchRL's :class:`~torchrl.objectives.TD3BCLoss` in three quarters of its time.

    Values, keys, arguments and random draws are the same as in TorchRL. The value estimator is made in the constructor.
    The loss calls its networks on tensors instead of TensorDicts, one critic after the other instead of by
    ``torch.vmap``. The policy's loss evaluates only the first critic; TorchRL's loss evaluates all and uses the first.

    Args:
        *args: see TorchRL's loss.
        **kwargs: see TorchRL's loss.

    References:
        Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", https://arxiv.org/abs/2106.06860

    Examples:
        >>> from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
        >>> config = StatePolicyConfig(5, 3, hidden_sizes=(16,))
        >>> loss = DirectTD3BCLoss(make_state_policy(config), make_state_values(config), bounds=(-1.0, 1.0))
        >>> isinstance(loss, TD3BCLoss)
        True
    """

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the policy's loss, ``-alpha Q(s, pi(s)) / mean |Q| + mean (pi(s) - a)^2``."""
        keys = self.tensor_keys
        weights = self._maybe_get_priority_weight(tensordict)
        action = evaluate(self.actor_network, self.actor_network_params, tensordict, keys.action)
        # The gradient reaches the action although the critic's weights are detached.
        first = members(self._cached_detach_qvalue_network_params)[0]
        given = {keys.action: action}
        value = evaluate(self.qvalue_network, first, tensordict, keys.state_action_value, given).squeeze(-1)
        bc_loss = torch.nn.functional.mse_loss(action, tensordict[keys.action])
        scale = self.alpha / value.abs().mean().detach()
        loss = self._reduce_loss(bc_loss - scale * value, tensordict=tensordict, weights=weights)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {"state_action_value_actor": value.detach(), "bc_loss": bc_loss.detach(), "lmbd": scale}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critics' loss with the target ``r + gamma (1 - terminated) min_i Q_i(s', pi(s') + noise)``."""
        keys = self.tensor_keys
        weights = self._maybe_get_priority_weight(tensordict)
        noise = torch.randn_like(tensordict[keys.action]) * self.policy_noise
        with torch.no_grad():
            following = entries_of_next(tensordict, [*self.actor_network.in_keys, *self.qvalue_network.in_keys])
            action = evaluate(self.actor_network, self.target_actor_network_params, tensordict, keys.action, following)
            action = action + noise.clamp(-self.noise_clip, self.noise_clip)
            low, high = self.min_action, self.max_action
            following[keys.action] = action.clamp(low, high)  # pyright: ignore[reportCallIssue, reportArgumentType]
            next_value = self._critic_values(self.target_qvalue_network_params, tensordict, following).amin(0)
            target = self.value_estimator.value_estimate(tensordict, next_value=next_value.unsqueeze(-1)).squeeze(-1)
        value = self._critic_values(self.qvalue_network_params, tensordict)
        rows = distance_loss(value, target.expand_as(value), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(rows, tensordict=tensordict, weights=weights)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        value = value.detach()
        metadata = {"td_error": (value - target).square(), "next_state_value": next_value, "pred_value": value}
        return loss, {**metadata, "target_value": target}


class DirectIQLLoss(_CriticCalls, IQLLoss):
    """TorchRL's :class:`~torchrl.objectives.IQLLoss` in two thirds of its time.

    Values, keys and arguments are the same as in TorchRL. The value estimator is made in the constructor.
    :meth:`forward` computes the target critics' values of the batch and the values of its states once each; TorchRL's
    loss computes them twice. The loss calls its networks on tensors instead of TensorDicts, one critic after the other
    instead of by ``torch.vmap``.

    Args:
        *args: see TorchRL's loss.
        **kwargs: see TorchRL's loss.

    References:
        Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", https://arxiv.org/abs/2110.06169

    Examples:
        >>> from torchrl_flow.modules import StatePolicyConfig, make_observation_value
        >>> from torchrl_flow.modules import make_state_policy, make_state_values
        >>> config = StatePolicyConfig(5, 3, "gaussian", hidden_sizes=(16,))
        >>> networks = make_state_policy(config), make_state_values(config), make_observation_value(config)
        >>> isinstance(DirectIQLLoss(*networks), IQLLoss)
        True
    """

    @dispatch()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the losses of policy, critics and value."""
        q, value = self._target_values(tensordict), self._state_values(tensordict)
        loss_actor, _ = self.actor_loss(tensordict, q, value.detach())
        loss_qvalue, found = self.qvalue_loss(tensordict)
        loss_value, _ = self.value_loss(tensordict, q, value)
        tensordict.set(self.tensor_keys.priority, found["td_error"].amax(0))
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_value": loss_value}
        entropy = -tensordict[self.tensor_keys.log_prob].mean()
        if self.reduction != "none":
            out = TensorDict({**losses, "entropy": entropy})
        else:
            out = TensorDict(losses, batch_size=tensordict.batch_size)
            if self.scalar_output_mode == "non_tensor":
                out.set_non_tensor("entropy", entropy)
        self._clear_weakrefs(tensordict, out, *_NETWORKS)
        return out

    def _target_values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the smallest of the target critics' values ``[*B]`` of the batch's actions."""
        with torch.no_grad():
            return self._critic_values(self.target_qvalue_network_params, tensordict).amin(0)

    def _state_values(self, tensordict: TensorDictBase, given: Entries | None = None) -> Tensor:
        """Return the values ``[*B]`` of the batch's states; ``given`` replaces entries of the batch."""
        params, key = self.value_network_params, self.tensor_keys.value
        return evaluate(self.value_network, params, tensordict, key, given).squeeze(-1)

    def actor_loss(
        self, tensordict: TensorDictBase, q: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the policy's loss, ``-min(exp(temperature (Q - V)), 100) log pi(a | s)``.

        Args:
            tensordict: a batch.
            q: the target critics' smallest values of the batch's actions ``[*B]``, if already computed.
            value: the values of the batch's states ``[*B]``, if already computed.
        """
        policy = distribution(self.actor_network, self.actor_network_params, tensordict)
        log_prob = policy.log_prob(tensordict[self.tensor_keys.action])
        q = self._target_values(tensordict) if q is None else q
        if value is None:
            with torch.no_grad():
                value = self._state_values(tensordict)
        if log_prob.shape != q.shape:
            raise RuntimeError(f"Losses shape mismatch: {log_prob.shape} and {q.shape}")
        weights = ((q - value) * self.temperature).exp().clamp_max(100)
        tensordict.set(self.tensor_keys.log_prob, log_prob.detach())
        loss = self._reduce_loss(-(weights * log_prob), tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {}

    def value_loss(
        self, tensordict: TensorDictBase, q: Tensor | None = None, value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the value's loss, the expectile of ``Q - V``; the arguments are those of :meth:`actor_loss`."""
        q = self._target_values(tensordict) if q is None else q
        value = self._state_values(tensordict) if value is None else value
        loss = self._reduce_loss(self.loss_value_diff(q - value, self.expectile), tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critics' loss with the target ``r + gamma (1 - terminated) V(s')``."""
        with torch.no_grad():
            following = entries_of_next(tensordict, self.value_network.in_keys)  # pyright: ignore[reportOptionalMemberAccess]
            next_value = self._state_values(tensordict, following)
            target = self.value_estimator.value_estimate(tensordict, next_value=next_value.unsqueeze(-1)).squeeze(-1)
        value = self._critic_values(self.qvalue_network_params, tensordict)
        rows = distance_loss(value, target.expand_as(value), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(rows, tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {"td_error": (value.detach() - target).square()}


_NETWORKS = (
    "actor_network_params",
    "qvalue_network_params",
    "target_actor_network_params",
    "target_qvalue_network_params",
    "value_network_params",
    "target_value_network_params",
)
"""Parameters whose weak references TorchRL's losses clear under compilation."""
