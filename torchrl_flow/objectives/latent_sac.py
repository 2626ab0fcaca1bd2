"""Soft actor-critic over a flow's noise, by temporal differences or by distilling a critic of actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import SACLoss, ValueEstimators
from torchrl.objectives.utils import distance_loss

from torchrl_flow.functional.latent import expand_latent
from torchrl_flow.objectives.held_networks import HeldNetworks

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

    from torchrl_flow.modules import FlowActor, LatentGaussianPolicy, QEnsemble

DistillationMode = Literal["forward", "aliased", "both"]
"""Which pairs of noise and action train the critic of noise: forward, aliased, or both."""

__all__ = ["DistillationMode", "DistilledSACLoss", "LatentSACLoss"]


class LatentSACLoss(SACLoss):
    """TorchRL's :class:`~torchrl.objectives.SACLoss` on latents and SMDP transitions, with metrics of steering.

    Keys, discount of ``gamma^k`` and target entropy are set; losses and gradients are SACLoss's own. Beside that there
    is a switch for the entropy in the backup.

    Args:
        latent_policy: the :class:`~torchrl_flow.modules.LatentGaussianPolicy`.
        critics: a list of critics of latents (:func:`~torchrl_flow.modules.make_latent_critics`).

    Keyword Args:
        gamma: discount of one environment step.
        target_entropy: a number, or ``"auto"`` for -0.5 times the size of the latent.
        backup_entropy: whether the value of the next state counts its entropy.
        **kwargs: as in SACLoss.

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

    _vmap_qnetworkN0: Callable[..., TensorDictBase]  # noqa: N815
    actor_network: LatentGaussianPolicy

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        critics: Sequence[QEnsemble],
        *,
        gamma: float = 0.99,
        target_entropy: float | Literal["auto"] = "auto",
        backup_entropy: bool = True,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> None:
        if target_entropy == "auto":
            target_entropy = -0.5 * latent_policy.latent_shape.numel()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        super().__init__(
            latent_policy,
            qvalue_network=list(critics),  # pyright: ignore[reportArgumentType]
            num_qvalue_nets=len(critics),
            target_entropy=target_entropy,
            reduction=reduction,
            **{"loss_function": "l2", "scalar_output_mode": "exclude", **kwargs},
        )
        self.backup_entropy = backup_entropy
        self.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
        self.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
        # Registered now, so that every state dict of the loss has the same entries.
        _ = self.target_entropy
        self._out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "policy_entropy", "q_mean", "q_std"]
        self._out_keys += ["td_error"]

    def _transition_keys(self) -> list[NestedKey]:
        keys = self.tensor_keys
        return [keys.reward, keys.done, keys.terminated, "steps_to_next_obs"]

    def _set_in_keys(self) -> None:
        keys = self.tensor_keys
        observations = list(dict.fromkeys([*self.actor_network.in_keys, *self.qvalue_network.in_keys]))
        following = [key for key in observations if key != keys.action]
        following += self._transition_keys()
        wanted = [*observations, *(("next", key) for key in following)]
        self._in_keys = list(dict.fromkeys(unravel_key(key) for key in wanted))

    def _next_state_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the smallest target value ``[*B, 1]`` of a draw, without the entropy."""
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            latent = self.actor_network.get_dist(tensordict).sample()
        tensordict.set(self.tensor_keys.action, latent)
        values = self._vmap_qnetworkN0(tensordict, self.target_qvalue_network_params)
        return values.get(self.tensor_keys.state_action_value).min(0)[0]

    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        for key in self._transition_keys():
            tensordict[unravel_key(("next", key))]  # A missing k would be taken for 1.
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
        """Return what the critics see of a batch ``[*B]``, flattened; also where a batch does not know its size."""
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
        """Compute the critics' loss alone, and its metrics."""
        return self._regression(tensordict, self._values(tensordict), self._compute_target_v2(tensordict))

    def _regression(
        self, tensordict: TensorDictBase, values: Tensor, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = distance_loss(values, target.expand_as(values), loss_function=self.loss_function).sum(0)
        loss = self._reduce_loss(rows, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict))
        values = values.detach()
        error = (values - target).abs()
        tensordict.set(self.tensor_keys.priority, error.amax(0))
        return loss, {
            "q_mean": values.mean(),
            "q_std": values.std(0, unbiased=False).mean(),
            "td_error": error.mean(),
        }

    def policy_loss(self, tensordict: TensorDictBase) -> TensorDict:
        """Compute the losses of the policy and of the temperature alone, and their metrics."""
        loss_actor, metadata = self.actor_loss(tensordict)
        log_prob = metadata["log_prob"]
        weights = self._maybe_get_priority_weight(tensordict)
        loss_alpha = self._reduce_loss(self._alpha_loss(log_prob=log_prob), tensordict=tensordict, weights=weights)
        metrics = {"alpha": self._alpha.detach().clone(), "policy_entropy": -log_prob.mean()}
        return TensorDict({"loss_actor": loss_actor, "loss_alpha": loss_alpha, **metrics})

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Tensor], prefix: str, *rest: Any) -> None:
        # What a loss that distils holds besides is no part of this one; policy and critics are the same.
        absent = tuple(f"{prefix}{name}." for name in ("flow", "action_critic") if not hasattr(self, name))
        for key in [key for key in state_dict if absent and key.startswith(absent)]:
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


class DistilledSACLoss(HeldNetworks, LatentSACLoss):
    """SAC over noise whose critics ``Q(s, w)`` are distilled from a critic of actions: DSRL with noise aliasing.

    ``Q(s, w) <- Q(s, a)``, head by head, on pairs of a latent and the action that it stands for: ``"forward"``,
    ``w`` from the prior, bounded as the policy's latents are, and ``a`` by the flow; ``"aliased"``, the batch's latent
    and executed action, of an online transition or of a demonstration whose latent was found by a
    :class:`~torchrl_flow.modules.NoiseAliaser`; or ``"both"``. The action critic learns by
    :class:`~torchrl_flow.objectives.ChunkCriticLoss`, from all data, whatever policy made it; nothing here trains it.

    :meth:`distillation_pairs` makes the pairs of several steps in one pass of the flow; what it returns is a batch
    for :meth:`qvalue_loss`.

    Args:
        latent_policy: see :class:`LatentSACLoss`.
        critics: see :class:`LatentSACLoss`.
        action_critic: the teacher, a :class:`~torchrl_flow.modules.QEnsemble` of executed chunks. Held, neither
            copied nor trained (:class:`~torchrl_flow.objectives.HeldNetworks`), as is the flow.
        flow: the frozen :class:`~torchrl_flow.modules.FlowActor`.

    Keyword Args:
        mode: ``"forward"``, ``"aliased"`` or ``"both"``.
        num_steps: K of the flow; ``None`` for its own.
        **kwargs: see :class:`LatentSACLoss`.

    Output: as :class:`LatentSACLoss`; ``td_error`` is the error of the distillation.

    Raises:
        ValueError: if the teacher has neither one head nor one for each critic, or a name is unknown.
    """

    action_critic: QEnsemble
    flow: FlowActor
    mode: DistillationMode
    num_steps: int | None

    def __init__(
        self,
        latent_policy: LatentGaussianPolicy,
        critics: Sequence[QEnsemble],
        action_critic: QEnsemble,
        flow: FlowActor,
        *,
        mode: DistillationMode = "forward",
        num_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in ("forward", "aliased", "both"):
            raise ValueError(f"mode must be 'forward', 'aliased' or 'both', got {mode!r}.")
        if action_critic.num_qs != len(critics):
            raise ValueError(f"the action critic has {action_critic.num_qs} heads for {len(critics)} critics of noise.")
        # Before the parent asks for the keys; networks can be registered after it alone.
        self.mode, self.num_steps = mode, num_steps
        self._teacher_keys = [*flow.in_keys, *action_critic.encoder.in_keys]
        self._executed_key = action_critic.action_key
        super().__init__(latent_policy, critics, **kwargs)
        self.hold(action_critic=action_critic, flow=flow)

    def _set_in_keys(self) -> None:
        observations = [*self.actor_network.in_keys, *self.qvalue_network.in_keys, *self._teacher_keys]
        own = [] if self.mode == "forward" else [self.tensor_keys.action, self._executed_key]
        wanted = [*(key for key in observations if key != self.tensor_keys.action), *own]
        self._in_keys: list[NestedKey] = list(dict.fromkeys(wanted))

    def _teach(self, tensordict: TensorDictBase, action: Tensor) -> Tensor:
        """Return the teacher's values ``[N, B, S]`` of actions ``[B, S, H_a, A]``."""
        critic = self.action_critic
        features = critic.encoder(*critic.encoder.preprocess(tensordict))
        return critic.q_values(features, action).squeeze(-1)

    @torch.no_grad()
    def distillation_pairs(self, tensordict: TensorDictBase, num: int = 1) -> TensorDict:
        """Make the pairs of ``num`` steps of distillation from a batch, by one pass of flow and teacher.

        Args:
            tensordict: batch ``[*B]``.
            num: steps.

        Returns:
            batches ``[num, R]`` of observations, latents and the teacher's values; R is the number of rows, twice
            that with ``mode="both"``.
        """
        policy, flow = self.actor_network, self.flow
        reference = next(self.action_critic.parameters())
        rows: Any = self._observations(tensordict)
        latents, targets = [], []
        if self.mode != "aliased":
            shape = torch.Size([rows.shape[0], num])
            options: dict[str, Any] = {"device": reference.device, "dtype": reference.dtype}
            latent = policy.prior_latent(torch.randn(*shape, *policy.latent_shape, **options))
            fill = torch.randn(*shape, *flow.noise_shape, **options)
            noise = expand_latent(latent, fill, policy.steer_mode)
            chunk = flow.sample(flow.features(tensordict), noise, num_steps=self.num_steps)
            latents.append(latent.transpose(0, 1))
            targets.append(self._teach(tensordict, chunk[..., flow.executed_slice, :]).permute(2, 1, 0))
        if self.mode != "forward":
            latent = tensordict[self.tensor_keys.action].reshape(-1, *policy.latent_shape)
            action = tensordict[self.action_critic.action_key].reshape(-1, 1, flow.act_horizon, flow.action_dim)
            latents.append(latent.expand(num, *latent.shape))
            targets.append(self._teach(tensordict, action).permute(2, 1, 0).expand(num, -1, -1))
        rows = torch.cat([rows] * len(latents)) if len(latents) > 1 else rows
        pairs: Any = rows.expand(num, *rows.shape).clone(False)
        pairs.set(self.tensor_keys.action, torch.cat(latents, 1))
        return pairs.set("distillation_target", torch.cat(targets, 1))

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of distillation alone, of a batch or of what :meth:`distillation_pairs` made of one."""
        given = tensordict.get("distillation_target", None) is not None
        pairs: Any = tensordict if given else self.distillation_pairs(tensordict)[0]
        return self._regression(pairs, self._values(pairs), pairs["distillation_target"].movedim(-1, 0))
