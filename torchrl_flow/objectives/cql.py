"""Conservative Q-learning with the paper's log-sum-exp over all sampled actions of a state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.modules.distributions.utils import rsample_and_log_prob
from torchrl.objectives import CQLLoss
from torchrl.objectives.utils import distance_loss

from torchrl_flow.objectives.network_calls import (
    distribution,
    entries_of_next,
    evaluate_members,
)
from torchrl_flow.objectives.ready_estimator import ReadyEstimator

__all__ = ["ConservativeQLoss"]


class ConservativeQLoss(ReadyEstimator, CQLLoss):
    """TorchRL's :class:`~torchrl.objectives.CQLLoss` with the conservative term of the paper, CQL(H).

    The term of a state is ``log sum_a exp Q(s, a) - Q(s, a_data)``, its sum estimated with ``num_random`` uniform
    actions and ``num_random`` actions of the policy at each of this state and the next, each divided by its density.
    TorchRL 0.14.1 stacks the three kinds along the last dimension of ``[B * num_random, 1]``: its log-sum-exp runs over
    three actions at a time and the mean over the others is taken outside the logarithm, which is a weaker penalty; and
    with ``reduction="none"`` every row holds a mean over the batch. Everything else, arguments included, is as in
    TorchRL, except that the value estimator is made in the constructor: TD(0) unless :meth:`make_value_estimator` is
    called.

    Actions are single ones ``[*B, A]``, or chunks ``[*B, H_a, A]``, which TorchRL's loss does not take. A chunk is one
    action: the policy's log-probability is that of the whole chunk, uniform chunks have the density ``2^-(H_a A)``, and
    targets are discounted by ``gamma^k`` for the k steps that were executed (``("next", "steps_to_next_obs")``). Single
    actions count as one step if a batch has no such entry.

    Args:
        actor_network: see TorchRL's loss.
        qvalue_network: list of critics, see TorchRL's loss; each keeps its own initial weights. They read the whole
            chunk.
        gamma: discount of one environment step.
        **kwargs: see TorchRL's loss.

    Raises:
        ValueError: in a call, if the policy's log-probability is not one number for each action or chunk, or a critic
            does not return one value.
        KeyError: in a call, if a batch of chunks has no number of executed steps.

    References:
        Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", https://arxiv.org/abs/2006.04779

    Examples:
        >>> from torchrl.data import Bounded
        >>> from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
        >>> config = StatePolicyConfig(5, 3, "gaussian", (16,))
        >>> spec = Bounded(-1.0, 1.0, torch.Size([3]))
        >>> loss = ConservativeQLoss(make_state_policy(config), make_state_values(config), action_spec=spec)
        >>> loss.num_random
        10
    """

    @dataclass
    class _AcceptedKeys(CQLLoss._AcceptedKeys):
        """Keys that ``set_keys`` accepts, in addition to those of TorchRL's loss.

        Attributes:
            steps_to_next_obs: executed steps ``[*B, 1]``; optional for single actions.
        """

        steps_to_next_obs: NestedKey = ("next", "steps_to_next_obs")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, actor_network: Any, qvalue_network: Any, *, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(actor_network, qvalue_network, **kwargs)
        # Made here, not at first use, so that every state dict of the loss has the same entries.
        self.make_value_estimator(gamma=gamma)

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        if self._value_estimator is not None:
            self._value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> ConservativeQLoss:
        """Choose the value estimator of the targets, as in TorchRL; it reads the number of executed steps."""
        super().make_value_estimator(value_type, **hyperparams)
        self.value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)
        return self

    def q_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """Compute the critics' loss, as in TorchRL.

        Raises:
            KeyError: if a batch of chunks has no number of executed steps.
        """
        if tensordict[self.tensor_keys.action].ndim > tensordict.ndim + 1:
            tensordict[self.value_estimator.tensor_keys.steps_to_next_obs]
        keys, params = self.tensor_keys, self.qvalue_network_params
        with torch.no_grad():
            target = self._target(tensordict)
        values = evaluate_members(self.qvalue_network, params, tensordict, keys.state_action_value)
        tensordict.set(keys.pred_q1, values[0])
        tensordict.set(keys.pred_q2, values[1])
        values = values.squeeze(-1)
        rows = distance_loss(values, target.expand_as(values), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(rows, tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {"td_error": (values.detach() - target).square()}

    def _target(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``r + gamma^k (1 - terminated) (min_i Q_i(s', a') - alpha log pi(a' | s'))`` of the target critics."""
        if self.max_q_backup:
            return self._get_value_v(
                tensordict.copy(), self._alpha, self.actor_network_params, self.target_qvalue_network_params
            )
        keys = self.tensor_keys
        following = entries_of_next(tensordict, [*self.actor_network.in_keys, *self.qvalue_network.in_keys])
        policy = distribution(self.actor_network, self.actor_network_params, tensordict, following)
        action, log_prob = rsample_and_log_prob(policy)
        params, following[keys.action] = self.target_qvalue_network_params, action
        values = evaluate_members(self.qvalue_network, params, tensordict, keys.state_action_value, following)
        value = values.amin(0)
        if not self.deterministic_backup:
            value = value - self._alpha * log_prob.reshape(value.shape)
        return self.value_estimator.value_estimate(tensordict, next_value=value).squeeze(-1)

    def cql_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """Compute the conservative term; :meth:`q_loss` has written the values of the data's actions.

        Raises:
            KeyError: if :meth:`q_loss` was not called before.
        """
        keys = self.tensor_keys
        pred_q1, pred_q2 = tensordict[keys.pred_q1], tensordict[keys.pred_q2]
        pred = torch.stack([pred_q1, pred_q2]).squeeze(-1)
        batch = tensordict.batch_size
        action, log_density = self._sampled_actions(tensordict)
        q = self._values(tensordict, action)
        corrected = (q - log_density) / self.temperature
        spread = torch.logsumexp(corrected, -1) * self.temperature
        terms = self.min_q_weight * (spread - pred)
        if terms.shape[1:] != batch:
            raise ValueError(f"critics must give one value per row, got {list(q.shape)} for batch {list(batch)}.")
        tensordict.set(keys.cql_q1_loss, terms[0])
        tensordict.set(keys.cql_q2_loss, terms[1])
        return self._reduce_loss(terms.sum(0), tensordict=tensordict), {}  # pyright: ignore[reportArgumentType]

    def actor_bc_loss(self, tensordict: TensorDictBase, policy: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Compute the policy's cloning loss, ``alpha log pi(a' | s) - log pi(a | s)`` with ``a'`` from the policy.

        Args:
            tensordict: a batch.
            policy: the policy's distribution in the batch's states, if already computed.
        """
        policy = distribution(self.actor_network, self.actor_network_params, tensordict) if policy is None else policy
        _, log_prob = rsample_and_log_prob(policy)
        cloned = policy.log_prob(tensordict[self.tensor_keys.action])
        loss = self._reduce_loss(self._alpha * log_prob - cloned, tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {"bc_log_prob": cloned.mean().detach()}

    def actor_loss(self, tensordict: TensorDictBase, policy: Any = None) -> tuple[Tensor, dict[Any, Any]]:
        """Compute the policy's loss, ``alpha log pi(a | s) - min_i Q_i(s, a)`` with ``a`` drawn from the policy.

        Args:
            tensordict: a batch.
            policy: the policy's distribution in the batch's states, if already computed.
        """
        keys = self.tensor_keys
        policy = distribution(self.actor_network, self.actor_network_params, tensordict) if policy is None else policy
        action, log_prob = rsample_and_log_prob(policy)
        params, given = self._cached_detach_qvalue_params, {keys.action: action}
        values = evaluate_members(self.qvalue_network, params, tensordict, keys.state_action_value, given)
        value = values.amin(0).squeeze(-1)
        if log_prob.shape != value.shape:
            raise RuntimeError(f"Losses shape mismatch: {log_prob.shape} and {value.shape}")
        loss = self._reduce_loss(self._alpha * log_prob - value, tensordict=tensordict)
        self._clear_weakrefs(tensordict, *_NETWORKS)
        return loss, {keys.log_prob: log_prob.detach()}

    @torch.no_grad()
    def _sampled_actions(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Draw actions ``[*B, 3 * num_random, ...]``, or chunks, with their log-densities ``[*B, 3 * num_random]``."""
        data, batch, number = tensordict[self.tensor_keys.action], tensordict.batch_size, self.num_random
        event = data.shape[len(batch) :]
        shape = torch.Size([*batch, number])
        actions = [data.new_empty([*shape, *event]).uniform_(-1.0, 1.0)]
        densities = [data.new_full(shape, -event.numel() * math.log(2.0))]
        for given in ({}, entries_of_next(tensordict, self.actor_network.in_keys)):
            # The policy's network runs once per state, not once per action.
            policy = distribution(self.actor_network, self.actor_network_params, tensordict, given, number)
            drawn, log_prob = rsample_and_log_prob(policy)
            if log_prob.numel() != shape.numel():
                raise ValueError(
                    f"the policy must give one log-probability for each action {list(event)}, got "
                    f"{list(log_prob.shape)} for {shape.numel()} actions: a distribution of chunks needs event_dims=2."
                )
            actions.append(drawn.reshape(*shape, *event))
            densities.append(log_prob.reshape(shape))
        return torch.cat(actions, len(batch)), torch.cat(densities, -1)

    def _values(self, tensordict: TensorDictBase, action: Tensor) -> Tensor:
        """Return the critics' values ``[2, *B, M]`` of M actions ``[*B, M, ...]`` of each state."""
        keys, batch = self.tensor_keys, tensordict.batch_size
        shape = torch.Size([*batch, action.shape[len(batch)]])
        data = {keys.action: action}
        for key in self.actor_network.in_keys:
            value = tensordict[key]
            data[key] = value.unsqueeze(len(batch)).expand(*shape, *value.shape[len(batch) :])
        params, entries = self.qvalue_network_params, TensorDict(data, shape, device=action.device)
        return evaluate_members(self.qvalue_network, params, entries, keys.state_action_value).squeeze(-1)


_NETWORKS = ("actor_network_params", "qvalue_network_params", "target_qvalue_network_params")
"""Parameters whose weak references TorchRL's losses clear under compilation."""
