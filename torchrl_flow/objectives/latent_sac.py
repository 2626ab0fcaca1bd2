"""Soft actor-critic over a flow's noise, by temporal differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import SACLoss, ValueEstimators
from torchrl.objectives.utils import distance_loss

from torchrl_flow.functional.checks import check_one_of
from torchrl_flow.objectives.flow_loss import REDUCTIONS
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from torchrl_flow.modules import LatentGaussianPolicy, QEnsemble

__all__ = ["LatentSACLoss"]


class LatentSACLoss(SACLoss):
    """TorchRL's :class:`~torchrl.objectives.SACLoss` on latents and SMDP transitions, with additional metrics.

    It sets the keys, the discount ``gamma^k`` and the target entropy, and can omit the entropy from the backup. Losses
    and gradients are otherwise those of SACLoss.

    Args:
        latent_policy: the :class:`~torchrl_flow.modules.LatentGaussianPolicy`.
        qvalue_network: a list of critics of latents (:func:`~torchrl_flow.modules.make_latent_critics`).

    Keyword Args:
        gamma: discount of one environment step.
        target_entropy: a number, or ``"auto"`` for -0.5 times the size of the latent.
        backup_entropy: include the policy's entropy in the next state in the target.
        **kwargs: further options of SACLoss.

    Output: ``loss_actor``, ``loss_qvalue``, ``loss_alpha``, and detached: ``alpha``, ``policy_entropy``, ``q_mean``,
    ``q_std`` (between critics) and ``td_error``.

    Examples:
        >>> from torchrl_flow.modules import CriticConfig, FlowActorConfig, LatentPolicyConfig
        >>> from torchrl_flow.modules import make_flow_actor, make_latent_critics, make_latent_policy
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> policy = make_latent_policy(LatentPolicyConfig(), flow)
        >>> loss = LatentSACLoss(policy, make_latent_critics(CriticConfig(num_qs=2), flow, policy))
        >>> loss.target_entropy
        tensor(-24.)
    """

    @dataclass
    class _AcceptedKeys(SACLoss._AcceptedKeys):
        """Keys that ``set_keys`` accepts, in addition to those of TorchRL's loss.

        Attributes:
            steps_to_next_obs: executed steps ``[*B, 1]``, from the root.
        """

        steps_to_next_obs: NestedKey = ("next", "steps_to_next_obs")

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    _vmap_qnetworkN0: Callable[..., TensorDictBase]  # noqa: N815
    actor_network: LatentGaussianPolicy

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        qvalue_network: Sequence[QEnsemble],
        *,
        gamma: float = 0.99,
        target_entropy: float | Literal["auto"] = "auto",
        backup_entropy: bool = True,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        if target_entropy == "auto":
            target_entropy = -0.5 * latent_policy.latent_shape.numel()
        check_one_of("reduction", reduction, REDUCTIONS)
        options: dict[str, Any] = {"loss_function": "l2", "scalar_output_mode": "exclude", **kwargs}
        super().__init__(
            latent_policy,
            qvalue_network=list(qvalue_network),  # pyright: ignore[reportArgumentType]
            num_qvalue_nets=len(qvalue_network),
            target_entropy=target_entropy,
            reduction=reduction,
            **options,
        )
        self.backup_entropy = backup_entropy
        self.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        # Reading the property registers its buffer, so that every state dict of the loss has the same entries.
        _ = self.target_entropy
        self._out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "policy_entropy", "q_mean", "q_std"]
        self._out_keys += ["td_error"]

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        if self._value_estimator is not None:
            self._value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> LatentSACLoss:
        """Choose the value estimator of the targets, as in TorchRL; it reads the number of executed steps."""
        super().make_value_estimator(value_type, **hyperparams)
        self.value_estimator.set_keys(steps_to_next_obs=self.tensor_keys.steps_to_next_obs)
        return self

    def _transition_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        following = [("next", key) for key in (keys.reward, keys.done, keys.terminated)]
        return [unravel_key(key) for key in (*following, keys.steps_to_next_obs)]

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        observations = list(dict.fromkeys([*self.actor_network.in_keys, *self.qvalue_network.in_keys]))
        following = [unravel_key(("next", key)) for key in observations if key != keys.action]
        self._in_keys = list(dict.fromkeys([*map(unravel_key, observations), *following, *self._transition_keys()]))

    def _next_state_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the smallest target value ``[*B, 1]`` of a sampled latent, without the entropy."""
        with running(self.actor_network_params, self.actor_network):
            latent = self.actor_network.get_dist(tensordict).sample()
        tensordict.set(self.tensor_keys.action, latent)
        values = self._vmap_qnetworkN0(tensordict, self.target_qvalue_network_params)
        return values.get(self.tensor_keys.state_action_value).min(0)[0]

    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        for key in self._transition_keys():
            tensordict[key]  # Raises a KeyError; a missing k would count as 1.
        if self.backup_entropy:
            return super()._compute_target_v2(tensordict)
        with torch.no_grad():
            tensordict = tensordict.clone(False)
            following: Any = tensordict.get("next").copy()
            tensordict.set(("next", self.value_estimator.tensor_keys.value), self._next_state_value(following))
            return self.value_estimator.value_estimate(tensordict).squeeze(-1)

    def _values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the critics' values ``[N, *B]`` of the batch's latents."""
        values = self._vmap_qnetworkN0(
            tensordict.select(*self.qvalue_network.in_keys, strict=False), self.qvalue_network_params
        )
        return values.get(self.tensor_keys.state_action_value).squeeze(-1)

    def _observations(self, tensordict: TensorDictBase) -> TensorDict:
        """Return the critics' observations in a batch ``[*B]``, flattened; the batch size may be empty."""
        batch = self.actor_network.encoder.batch_shape(tensordict)
        keys = [key for key in self.qvalue_network.in_keys if key != self.tensor_keys.action]
        flat = {key: tensordict[key].reshape(-1, *tensordict[key].shape[len(batch) :]) for key in keys}
        return TensorDict(flat, batch_size=[batch.numel()])

    @torch.no_grad()
    def latent_values(self, tensordict: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the critics' values ``[N, B, M]`` of M latents ``[B, M, S, A]`` for each of B observations."""
        rows: Any = self._observations(tensordict).repeat_interleave(latent.shape[1], 0)
        return self._values(rows.set(self.tensor_keys.action, latent.flatten(0, 1))).unflatten(-1, latent.shape[:2])

    def mean_value(self, tensordict: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the critics' mean value ``[B]`` of a latent ``[B, S, A]`` for each observation."""
        return self.latent_values(tensordict, latent.unsqueeze(1)).mean(0).squeeze(-1)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute only the critics' loss, ``sum_i (Q_i(s, w) - y)^2``, and its metrics."""
        rows, error, metrics = self._regression(self._values(tensordict), self._compute_target_v2(tensordict))
        loss = self._reduce_loss(rows, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        tensordict.set(self.tensor_keys.priority, error)
        return loss, metrics

    def _regression(self, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return each row's loss and largest error, ``[*B]``, of values and targets ``[N, *B]``, and metrics."""
        rows = distance_loss(values, target.expand_as(values), loss_function=self.loss_function).sum(0)
        values = values.detach()
        error = (values - target).abs()
        metrics = {"q_mean": values.mean(), "q_std": values.std(0, unbiased=False).mean(), "td_error": error.mean()}
        return rows, error.amax(0), metrics

    def policy_loss(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute only the losses of the policy and the temperature, and their metrics."""
        loss_actor, metadata = self.actor_loss(tensordict)
        log_prob = metadata["log_prob"]
        weights = self._maybe_get_priority_weight(tensordict)
        loss_alpha = self._reduce_loss(self._alpha_loss(log_prob=log_prob), tensordict=tensordict, weights=weights)
        metrics = {"alpha": self._alpha.detach().clone(), "policy_entropy": -log_prob.mean()}
        return TensorDict({"loss_actor": loss_actor, "loss_alpha": loss_alpha, **metrics})

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        # A DistilledSACLoss has additional entries, which are dropped; policy and critics have the same keys.
        if not hasattr(self, "teacher"):
            absent = tuple(f"{prefix}{name}." for name in ("teacher", "flow", "action_critic"))
            for key in [key for key in state_dict if key.startswith(absent)]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute all losses of a batch."""
        loss_qvalue, metrics = self.qvalue_loss(tensordict)
        out = self.policy_loss(tensordict).update({"loss_qvalue": loss_qvalue, **metrics})
        names = ("actor_network_params", "qvalue_network_params", "target_qvalue_network_params")
        self._clear_weakrefs(tensordict, out, *names)
        return out
