"""Critics of latents for TorchRL's actor-critic losses."""

from __future__ import annotations

import copy

from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.critics.config import CriticConfig
from torchrl_flow.modules.critics.q_ensemble import QEnsemble
from torchrl_flow.modules.observation.frozen_features import feature_encoder
from torchrl_flow.modules.steering.latent_policy import LatentGaussianPolicy

__all__ = ["make_latent_critics"]


def make_latent_critics(config: CriticConfig, actor: FlowActor, policy: LatentGaussianPolicy) -> list[QEnsemble]:
    """Build ``num_qs`` critics ``Q(s, w)`` of latents as separate modules, each with a copy of the actor's encoder.

    The result is a list, because a TorchRL loss redraws the initial weights of copies of a single network. Each critic
    reads the observations and the latent and writes ``state_action_value`` ``[*B, 1]``.

    Args:
        config: configuration of the critics; ``share_encoder`` must be False.
        actor: flow actor, which gives encoder and device.
        policy: latent policy, which gives shape and key of the latent.

    Raises:
        ValueError: if the configuration shares the encoder, which belongs to the frozen flow.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, LatentPolicyConfig, make_flow_actor, make_latent_policy
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))
        >>> policy = make_latent_policy(LatentPolicyConfig(), actor)
        >>> [critic.in_keys for critic in make_latent_critics(CriticConfig(num_qs=2), actor, policy)]
        [['observation', 'latent'], ['observation', 'latent']]
    """
    if config.share_encoder:
        raise ValueError("share_encoder must be False: the encoder is the frozen flow's.")
    steps, size = policy.latent_shape
    critics = [
        QEnsemble(
            feature_encoder(actor) if config.on_features else copy.deepcopy(actor.encoder).requires_grad_(True),
            action_dim=size,
            act_horizon=steps,
            num_qs=1,
            num_min_qs=1,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            init=config.init,
            reduction="mean",
            action_key=policy.latent_key,
        )
        for _ in range(config.num_qs)
    ]
    device = next(actor.parameters()).device
    return [critic.start_near_zero().to(device) for critic in critics]
