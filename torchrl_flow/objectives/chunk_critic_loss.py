"""TD loss of a critic of executed chunks; the flow is not trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torch.nn import Parameter

from torchrl_flow.functional.latent import expand_latent
from torchrl_flow.objectives.chunk_td_term import ChunkTDTerm, check_critic_fits
from torchrl_flow.objectives.flow_loss import AveragedCritic
from torchrl_flow.objectives.held_networks import HeldNetworks
from torchrl_flow.objectives.smdp_loss import SMDPLossModule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchrl_flow.modules import FlowActor, LatentGaussianPolicy, QEnsemble

__all__ = ["ChunkCriticLoss"]


class ChunkCriticLoss(AveragedCritic, HeldNetworks, SMDPLossModule):
    """TD loss of ``Q(s, a)`` on executed action chunks, online or offline: the action critic of a steered flow.

    ``y = R + gamma^k (1 - terminated) min_subset Q_target(s', a')`` with ``a'`` from the flow, which starts from the
    prior or from the latents of a steering policy. The flow is not trained; give the parameters of
    :meth:`critic_parameters` to the optimiser and step the target by
    ``NetworkSoftUpdate(loss, "critic_network", tau=0.005)``.

    Args:
        actor_network: the flow :class:`~torchrl_flow.modules.FlowActor`.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble`. Its weights are shared, not copied.
        latent_policy: chooses the noise of ``a'``; the prior where ``None``. It is shared, neither copied nor trained
            (:class:`~torchrl_flow.objectives.HeldNetworks`), so that updates made elsewhere take effect at once.

    Keyword Args:
        gamma: discount of one environment step.
        num_min_qs: size of the random subset of members whose minimum is taken; a new subset is drawn for each use.
        num_action_samples: N, candidates for ``a'``; the one with the highest mean target value is used. They are
            sampled with the actor's own K steps if N is 1, and with one step otherwise.
        augment: let the encoders augment observations.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_qvalue``, and detached: ``q_mean``, ``q_std`` (between members), ``q_target_mean``, ``td_error``.
    Each row's largest TD error is written into the input as the priority for a replay buffer.

    Raises:
        ValueError: if an argument is outside its allowed range, or the networks do not fit together.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> loss = ChunkCriticLoss(actor, QEnsemble.for_actor(actor))
        >>> loss.out_keys
        ['loss_qvalue', 'q_mean', 'q_std', 'q_target_mean', 'td_error']
    """

    @dataclass
    class _AcceptedKeys(SMDPLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts: those of :class:`~torchrl_flow.objectives.SMDPLossModule`."""

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
        num_action_samples: int = 1,
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(gamma, reduction)
        check_critic_fits(actor_network, critic_network, num_min_qs)
        if not {*actor_network.encoder.parameters()}.isdisjoint(critic_network.encoder.parameters()):
            raise ValueError("the critic must not share the flow's encoder, which is frozen: give it a copy.")
        num_steps = actor_network.num_steps if num_action_samples == 1 else 1
        self.td = ChunkTDTerm(
            num_min_qs, num_action_samples=num_action_samples, target_num_steps=num_steps, augment=augment
        )
        for name, network in (("actor_network", actor_network), ("critic_network", critic_network)):
            self.convert_to_functional(network, name, create_target_params=True)  # pyright: ignore[reportArgumentType]
        # Made here, not at first use, so that every state dict of the loss has the same entries.
        self.make_value_estimator()
        self.hold(latent_policy=latent_policy)
        self._out_keys = ["loss_qvalue", "q_mean", "q_std", "q_target_mean", "td_error"]

    def _make_in_keys(self) -> list[NestedKey]:
        policy, critic = self.latent_policy, self.critic_network.encoder.in_keys
        following = [*critic, *self.actor_network.in_keys, *([] if policy is None else policy.in_keys)]
        wanted = [*critic, self.tensor_keys.action, *self._transition_keys(*following)]
        return list(dict.fromkeys(unravel_key(key) for key in wanted))

    def critic_parameters(self) -> Iterator[Parameter]:
        """Yield the critic's parameters, the only ones that the loss trains."""
        return self.critic_network_params.parameters()

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

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute ``mean_i (Q_i(s, a) - y)^2``, and its metrics."""
        action = tensordict[self.tensor_keys.action]
        action = action.reshape(-1, *action.shape[-2:])
        q = self.td.values(self.critic_network, self.critic_network_params, tensordict, action)
        return self._td_loss(tensordict, q)

    @torch.no_grad()
    def next_value(self, tensordict: TensorDictBase) -> Tensor:
        """Return the target critic's value ``[*B, 1]`` of the flow's chunk (the best of N) for a state.

        Args:
            tensordict: the next observations, ``[*B]``.
        """
        chunks = self.sample_targets(tensordict, self.td.num_action_samples)
        value = self.td.next_value(self.critic_network, self.target_critic_network_params, tensordict, chunks)
        return value.reshape(*self.actor_network.encoder.batch_shape(tensordict), 1)

    def sample_targets(self, tensordict: TensorDictBase, num: int) -> Tensor:
        """Return ``num`` executed chunks ``[B, num, H_a, A]`` of the flow for each state of a batch."""
        steer = None if self.latent_policy is None else self._steer
        return self.td.chunks(self.actor_network, self.target_actor_network_params, tensordict, num, steer)

    def _steer(self, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        """Steer noise ``[B, num, H, A]`` from the prior by the policy's latents."""
        policy: Any = self.latent_policy
        latent = policy.normal(tensordict).sample(torch.Size([noise.shape[1]]))
        latent = latent.reshape(noise.shape[1], -1, *latent.shape[-2:]).transpose(0, 1)
        return expand_latent(latent, noise, policy.steer_mode)
