"""Temporal differences of a critic of executed chunks, beside a flow that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_flow.functional.ensemble import EnsembleReduction
from torchrl_flow.functional.latent import expand_latent
from torchrl_flow.objectives.chunk_critic import ChunkCriticObjective
from torchrl_flow.objectives.held_networks import HeldNetworks

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, LatentGaussianPolicy, QEnsemble

__all__ = ["ChunkCriticLoss"]


class ChunkCriticLoss(HeldNetworks, ChunkCriticObjective):
    """TD loss of ``Q(s, a)`` on executed action chunks, online and off: the action critic of a steered flow.

    ``y = R + gamma^k (1 - terminated) min_subset Q_target(s', a')`` with ``a'`` from the flow: started from the prior,
    or from the latents of a policy that steers it. The flow is not trained; give the parameters of
    :meth:`critic_parameters` to the optimiser and step the target by
    ``NetworkSoftUpdate(loss, "critic_network", tau=0.005)``.

    Args:
        actor_network: the flow :class:`~torchrl_flow.modules.FlowActor`.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble`. Its weights are shared, not copied.
        latent_policy: chooses the noise of ``a'``; the prior where ``None``. Held, neither copied nor trained
            (:class:`~torchrl_flow.objectives.HeldNetworks`), so that what trains it is seen at once.

    Keyword Args:
        gamma: discount of one environment step.
        num_min_qs: members in the random subset of the reduction ``"min"``, drawn anew for each use.
        target_reduction: of the target critic's members; see :func:`~torchrl_flow.functional.reduce_ensemble`.
        kappa: of the reduction ``"ucb"``, mean + kappa std: below 0 pessimistic, above 0 optimistic.
        num_action_samples: N, candidates for ``a'``; the one of the highest mean target value is taken.
        target_num_steps: K of the candidates; ``None`` for the actor's own where N is 1, and 1 where it is more.
        loss_function: distance, as in TorchRL.
        augment: let the encoders augment observations.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_qvalue``, and detached: ``q_mean``, ``q_std`` (between members), ``q_target_mean``, ``td_error``.
    Writes each row's largest TD error into the input, as priority for a replay buffer.

    Raises:
        ValueError: if an argument is outside what is allowed, or the networks do not fit together.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = ChunkCriticLoss(actor, QEnsemble.for_actor(actor))
        >>> loss.out_keys
        ['loss_qvalue', 'q_mean', 'q_std', 'q_target_mean', 'td_error']
    """

    @dataclass
    class _AcceptedKeys(ChunkCriticObjective._AcceptedKeys):
        """Keys that ``set_keys`` accepts; chunks and masks are read by no term here."""

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    latent_policy: LatentGaussianPolicy | None

    def __init__(
        self,
        actor_network: FlowActor,
        critic_network: QEnsemble,
        latent_policy: LatentGaussianPolicy | None = None,
        *,
        gamma: float = 0.99,
        num_min_qs: int = 2,
        target_reduction: EnsembleReduction = "min",
        kappa: float = -1.0,
        num_action_samples: int = 1,
        target_num_steps: int | None = None,
        loss_function: str = "l2",
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            gamma=gamma,
            num_min_qs=num_min_qs,
            target_reduction=target_reduction,
            kappa=kappa,
            num_action_samples=num_action_samples,
            target_num_steps=target_num_steps,
            encoder_grad="critic",
            loss_function=loss_function,
            consistency_fraction=0.0,
            target_clip=None,
            augment=augment,
            reduction=reduction,
        )
        if self.shared_encoder:
            raise ValueError("the critic must not share the flow's encoder, which is frozen: give it a copy.")
        self.hold(latent_policy=latent_policy)
        self._out_keys = ["loss_qvalue", "q_mean", "q_std", "q_target_mean", "td_error"]

    def _make_in_keys(self) -> list[NestedKey]:
        keys, policy = self.tensor_keys, self.latent_policy
        critic = self.critic_network.encoder.in_keys
        following = [*critic, *self.actor_network.in_keys, *([] if policy is None else policy.in_keys)]
        following += [keys.reward, keys.done, keys.terminated]
        wanted = [*critic, keys.action, *(("next", key) for key in following), keys.steps_to_next_obs]
        return list(dict.fromkeys(unravel_key(key) for key in wanted))

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if a shape does not fit.
        """
        loss, metrics = self.qvalue_loss(tensordict)
        out = TensorDict({"loss_qvalue": loss, **metrics})
        names = (f"{prefix}{name}_network_params" for name in ("actor", "critic") for prefix in ("", "target_"))
        self._clear_weakrefs(tensordict, out, *names)
        return out

    def _next_noise(self, tensordict: TensorDictBase, features: Tensor, num: int) -> Tensor:
        noise = super()._next_noise(tensordict, features, num)
        policy = self.latent_policy
        if policy is None:
            return noise
        latent = policy.normal(tensordict).sample(torch.Size([num]))
        latent = latent.flatten(1, -3).transpose(0, 1)  # [num, *B, S, A] to [B, num, S, A]
        return expand_latent(latent, noise, policy.steer_mode)
