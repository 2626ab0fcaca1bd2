"""Values of latents, from a critic of the actions that a flow makes of them or from critics of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_flow.functional.latent import SteerMode, expand_latent
from torchrl_flow.objectives.chunk_td_term import check_critic_fits

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor, QEnsemble
    from torchrl_flow.objectives.latent_sac import LatentSACLoss

__all__ = ["ActionScorer", "LatentScorer"]


class ActionScorer(nn.Module):
    """Values of latents from a critic of actions: the flow maps each latent to a chunk, which the critic values.

    Args:
        actor_network: the frozen :class:`~torchrl_flow.modules.FlowActor`. It is shared, not copied.
        critic_network: the :class:`~torchrl_flow.modules.QEnsemble` of its executed chunks. It is shared, not copied.

    Keyword Args:
        steer_mode: steer mode of the latents, ``latent_policy.steer_mode``.
        num_steps: sampling steps K; ``None`` for the flow's own.

    Raises:
        ValueError: if the networks do not fit together.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, QEnsemble, make_flow_actor
        >>> flow = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> scorer = ActionScorer(flow, QEnsemble.for_actor(flow, num_qs=2), steer_mode="tied")
        >>> scorer(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]), torch.randn(6, 4, 1, 3)).shape
        torch.Size([2, 6, 4])
    """

    def __init__(
        self,
        actor_network: FlowActor,
        critic_network: QEnsemble,
        *,
        steer_mode: SteerMode,
        num_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_critic_fits(actor_network, critic_network)
        self.actor_network, self.critic_network = actor_network, critic_network
        self.steer_mode: SteerMode = steer_mode
        self.num_steps = num_steps

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys of the observations of flow and critic."""
        return list(dict.fromkeys([*self.actor_network.in_keys, *self.critic_network.encoder.in_keys]))

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the members' values ``[num_qs, B, M]`` of M latents ``[B, M, S, A]`` for each of B observations."""
        flow = self.actor_network
        fill = torch.randn(*latent.shape[:2], *flow.noise_shape, device=latent.device, dtype=latent.dtype)
        noise = expand_latent(latent, fill, self.steer_mode)
        chunk = flow.sample(flow.features(tensordict), noise, num_steps=self.num_steps)
        return self.action_values(tensordict, chunk[..., flow.executed_slice, :])

    @torch.no_grad()
    def action_values(self, tensordict: TensorDictBase, action: Tensor) -> Tensor:
        """Return the members' values ``[num_qs, B, M]`` of M executed chunks ``[B, M, H_a, A]``."""
        critic = self.critic_network
        return critic.q_values(critic.encoder(*critic.encoder.preprocess(tensordict)), action).squeeze(-1)


class LatentScorer(nn.Module):
    """Values of latents from the critics of a loss.

    Args:
        loss_module: the :class:`~torchrl_flow.objectives.LatentSACLoss` or
            :class:`~torchrl_flow.objectives.DistilledSACLoss`. It is evaluated, not trained.
    """

    def __init__(self, loss_module: LatentSACLoss) -> None:
        super().__init__()
        self.loss_module = loss_module

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys of the critics' observations."""
        loss = self.loss_module
        return [key for key in loss.qvalue_network.in_keys if key != loss.tensor_keys.action]

    def forward(self, tensordict: TensorDictBase, latent: Tensor) -> Tensor:
        """Return the critics' values ``[N, B, M]`` of M latents ``[B, M, S, A]`` for each of B observations."""
        return self.loss_module.latent_values(tensordict, latent)
