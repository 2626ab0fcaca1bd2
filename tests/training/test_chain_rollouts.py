from __future__ import annotations

import torch

from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import FlowActorConfig, NoiseNetConfig, NoisyFlowActor, make_flow_actor, make_noise_net
from torchrl_flow.training import noisy_rollouts


def test_rollouts_keep_what_ppo_on_the_chain_reads_and_nothing_else():
    sizes = {"action_dim": 3, "state_dim": 12, "obs_horizon": 1, "pred_horizon": 8, "act_horizon": 4}
    actor = make_flow_actor(FlowActorConfig(**sizes, width=16, depth=1, num_steps=2))
    noisy = NoisyFlowActor(actor, make_noise_net(NoiseNetConfig(), actor))
    env = make_chunk_env(PlanarPickPlaceEnv(3, max_episode_steps=10), obs_horizon=1, act_horizon=4, gamma=0.9)
    data = noisy_rollouts(env, noisy, 2, seed=0).collect()
    assert data.shape == (3, 2)
    outcome = {
        ("next", name) for name in ("observation", "reward", "done", "terminated", "steps_to_next_obs", "success")
    }
    chain = {("flow", name) for name in ("x", "x_next", "log_prob")}
    assert set(data.keys(True, True)) == {"observation", *chain, *outcome}
    scored = noisy.get_dist(data.reshape(-1)).log_prob(data.reshape(-1)["flow", "x_next"])
    assert torch.allclose(scored, data.reshape(-1)["flow", "log_prob"], atol=1e-5)
