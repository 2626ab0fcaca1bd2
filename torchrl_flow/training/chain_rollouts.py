"""Rollouts of a noisy flow with the entries that PPO on its denoising chain reads."""

from __future__ import annotations

from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.modules import NoisyFlowActor
from torchrl_flow.training.collectors import CollectorRollouts, make_rollouts
from torchrl_flow.training.ray_rollouts import RayRollouts
from torchrl_flow.training.rollouts import ChunkRollouts

__all__ = ["noisy_rollouts"]

OUTCOME = ("reward", "done", "terminated", "steps_to_next_obs", "success")


def noisy_rollouts(
    env: EnvBase | CollectorEnvs,
    noisy: NoisyFlowActor,
    num_steps: int,
    *,
    seed: int | None = None,
    policy_device: torch.device | str | None = None,
) -> ChunkRollouts | CollectorRollouts | RayRollouts:
    """Make rollouts that keep only the noisy flow's observations, its chain and the outcome of each chunk.

    Args:
        env: chunk env, or :class:`~torchrl_flow.envs.CollectorEnvs` for several processes.
        noisy: noisy flow actor.
        num_steps: chunks per sub-environment and rollout.
        seed: seed of the first episodes.
        policy_device: device of the flow, if it is not that of the environment.
    """
    observed = list(noisy.in_keys)
    parts: dict[str, Any] = {"keep": [*observed, "flow"], "keep_next": [*observed, *OUTCOME]}
    return make_rollouts(env, noisy, num_steps, seed=seed, policy_device=policy_device, **parts)
