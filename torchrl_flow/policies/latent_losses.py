"""The losses of DSRL's off-policy stages: SAC over latents, alone or distilled from a critic of executed actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives import SoftUpdate
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_flow.modules import (
    CriticConfig,
    QEnsemble,
    SteeredFlowActor,
    flow_on_features,
    make_critic,
    make_latent_critics,
)
from torchrl_flow.objectives import (
    ActionScorer,
    ChunkCriticLoss,
    DistillationMode,
    DistilledSACLoss,
    LatentSACLoss,
    NetworkSoftUpdate,
)

__all__ = ["LatentLosses", "make_latent_losses"]


@dataclass(frozen=True)
class LatentLosses:
    """The losses of a latent policy and its critics, and the target updater of the TD loss.

    Args:
        sac: the loss of the latent policy, its temperature and the critics of latents.
        td: the loss of the critic of actions; ``None`` without distillation.
        target: target updater of the critic of actions, or of the critics of latents if there is none.
    """

    sac: LatentSACLoss
    td: ChunkCriticLoss | None
    target: TargetNetUpdater

    def modules(self) -> dict[str, Any]:
        """Return the networks other than flow and latent policy, by their role in a checkpoint."""
        if self.td is None:
            return {"sac": self.sac}
        return {"critic": self.td.critic_network, "target_critic": self.td.target_critic, "sac": self.sac}

    def optimizers(self, *, actor_lr: float, critic_lr: float, alpha_lr: float) -> dict[str, torch.optim.Optimizer]:
        """Make Adam for ``policy`` (with the temperature), ``critics`` (of latents) and ``critic`` (of actions)."""
        policy = [{"params": [*self.sac.actor_network_params.parameters()], "lr": actor_lr}]
        policy += [{"params": [self.sac.log_alpha], "lr": alpha_lr}]
        groups: dict[str, Any] = {"policy": policy, "critics": self.sac.qvalue_network_params.parameters()}
        groups |= {} if self.td is None else {"critic": self.td.critic_parameters()}
        return {name: torch.optim.Adam(group, critic_lr, fused=True) for name, group in groups.items()}

    def terms(self) -> dict[str, Callable[[TensorDictBase], Any]]:
        """Return the methods of the losses, by the name of the optimiser in :meth:`optimizers` that minimises them."""
        terms: dict[str, Any] = {"policy": self.sac.policy_loss, "critics": self.sac.qvalue_loss}
        return terms if self.td is None else {**terms, "critic": self.td.qvalue_loss}


def make_latent_losses(
    actor: SteeredFlowActor,
    latent_critics: CriticConfig,
    critic: QEnsemble | CriticConfig | None = None,
    *,
    gamma: float,
    tau: float,
    mode: DistillationMode = "forward",
    num_latents: int = 1,
    within_state_weight: float = 1.0,
    steered_targets: bool = True,
    **options: Any,
) -> LatentLosses:
    """Build the losses of a steered flow with new critics of latents.

    Args:
        actor: the flow and the latent policy that steers it.
        latent_critics: sizes of the critics of latents.
        critic: critic of actions, or the sizes of a new one, from which the critics of latents are distilled (DSRL-NA).
            With ``None`` the critics of latents learn from rewards.
        gamma: discount of one environment step.
        tau: rate at which the target follows the critic. The call sets the target to the critic; restore a checkpoint
            afterwards.
        mode: pairs of latents and actions for the distillation; see :class:`~torchrl_flow.objectives.DistilledSACLoss`.
        num_latents: number of latents from the prior per state of the distillation.
        within_state_weight: weight of the differences between the latents of a state.
        steered_targets: bootstrap the action critic's targets from the latent policy. False uses the unsteered flow.
        **options: keyword arguments of :class:`~torchrl_flow.objectives.LatentSACLoss`.
    """
    policy, flow = actor.policy, flow_on_features(actor.flow) if actor.reads_features else actor.flow
    critic = make_critic(critic, flow) if isinstance(critic, CriticConfig) else critic
    critics = make_latent_critics(latent_critics, flow, policy)
    if critic is None:
        sac = LatentSACLoss(policy, critics, gamma=gamma, **options)
        return LatentLosses(sac, None, SoftUpdate(sac, tau=tau))
    td = ChunkCriticLoss(flow, critic, policy if steered_targets else None, gamma=gamma)
    teacher = ActionScorer(flow, critic, steer_mode=policy.steer_mode)
    pairs: dict[str, Any] = {"num_latents": num_latents, "within_state_weight": within_state_weight, "mode": mode}
    sac = DistilledSACLoss(policy, critics, teacher, gamma=gamma, **pairs, **options)
    return LatentLosses(sac, td, NetworkSoftUpdate(td, "critic_network", tau=tau))
