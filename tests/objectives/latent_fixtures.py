from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_flow.modules import (
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    make_critic,
    make_flow_actor,
    make_latent_critics,
    make_latent_policy,
)

GAMMA, H, H_A, A, D, T = 0.9, 8, 4, 3, 5, 2


def make_networks(num_qs=2, shift=0.1, flow=None, **latent):
    """A flow, a policy over its noise, a critic of its actions and critics of its latents, off their start."""
    torch.manual_seed(0)
    config = {"action_dim": A, "state_dim": D, "pred_horizon": H, "act_horizon": H_A, "width": 16, "depth": 1}
    flow = make_flow_actor(FlowActorConfig(**config, num_steps=2, **(flow or {})))
    policy = make_latent_policy(LatentPolicyConfig(**{"hidden_sizes": (16,), **latent}), flow)
    critic_config = CriticConfig(num_qs=num_qs, hidden_sizes=(16,))
    critic = make_critic(critic_config, flow)
    critics = make_latent_critics(critic_config, flow, policy)
    for network in (flow, policy, critic, *critics):
        for parameter in network.parameters():
            parameter.data.add_(shift * torch.randn_like(parameter))
    flow.requires_grad_(False)
    return flow, policy, critic, critics


def make_batch(rows=8, seed=0, latent_shape=(H, A)):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    terminated = (torch.arange(rows) == 2)[:, None]
    truncated = (torch.arange(rows) == 3)[:, None]
    steps = torch.full((rows, 1), H_A)
    steps[2], steps[3], steps[4] = 2, 3, 1
    following = {
        "observation": randn(rows, T, D),
        "reward": randn(rows, 1),
        "terminated": terminated,
        "done": terminated | truncated,
        "steps_to_next_obs": steps,
    }
    data = {
        "observation": randn(rows, T, D),
        "action": randn(rows, H_A, A),
        "latent": randn(rows, *latent_shape),
        "next": TensorDict(following, batch_size=[rows]),
    }
    return TensorDict(data, batch_size=[rows])
