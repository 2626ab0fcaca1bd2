"""Comparison of a critic's values with returns: prediction over episodes, and ranking of chunks within a state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.envs import reset_with_seeds
from torchrl_flow.evaluation.seeds import evaluation_seeds
from torchrl_flow.modules import FlowActor, QEnsemble
from torchrl_flow.util.progress import Progress

__all__ = ["values_and_returns", "values_within_states"]


@torch.no_grad()
def values_and_returns(
    env: EnvBase, actor: FlowActor, critic: QEnsemble, episodes: int, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the critic's mean values and the discounted returns of all chunks of several episodes, ``[N]`` each.

    Args:
        env: batch of chunk environments; each episode ends with its first ``done``.
        actor: the policy.
        critic: critic; the values of its members are averaged.
        episodes: number of episodes, with seeds from 10000 on.
        gamma: discount of one environment step.
    """
    parallel = env.batch_size.numel()
    values, returns = [], []
    bar = Progress(episodes, description="episodes", unit="ep")
    with bar, set_exploration_type(ExplorationType.RANDOM):
        for first in range(0, episodes, parallel):
            steps = []
            data = reset_with_seeds(env, list(evaluation_seeds(first + parallel)[first:]))
            alive = torch.arange(first, first + parallel) < episodes
            while alive.any():
                data = env.step(actor(data))
                following: Any = data["next"]
                value = critic(data)["state_action_value"].mean(0).reshape(-1)
                columns = (following[key].reshape(-1).float() for key in ("reward", "steps_to_next_obs"))
                steps.append((value, alive.clone(), *columns))
                alive &= ~following["done"].reshape(-1)
                data = env.maybe_reset(env.step_mdp(data))
            total = torch.zeros(parallel)
            for value, counted, reward, k in reversed(steps):
                total = torch.where(counted, reward + gamma**k * total, total)
                values.append(value[counted])
                returns.append(total[counted])
            bar.update(min(parallel, episodes - first))
    return torch.cat(values), torch.cat(returns)


@torch.no_grad()
def values_within_states(
    env: EnvBase,
    actor: FlowActor,
    critic: QEnsemble,
    *,
    states: int,
    candidates: int,
    rollouts: int,
    gamma: float,
) -> dict[str, float]:
    """Measure how well the critic's values rank several chunks of the policy in one state.

    In each state ``candidates`` chunks are executed, each in ``rollouts`` environments, where the policy then continues
    to the end of the episode. State ``i`` is reached from seed 40000 + i, after ``i % 8`` chunks.

    Args:
        env: ``candidates * rollouts`` chunk environments.
        actor: the policy.
        critic: critic; the values of its members are averaged.
        states: number of states; states after the end of an episode are omitted.
        candidates: chunks per state, at least 2.
        rollouts: continuations of each chunk, at least 2; their mean return is the chunk's return.
        gamma: discount of one environment step.

    Returns:
        ``within_state_correlation`` of values and mean returns, both centred within each state;
        ``within_state_agreement``, the correlation of the means of two halves of the returns, which measures their
        noise; ``within_state_q_std`` and ``within_state_return_std``, standard deviations within a state;
        ``within_states``, the number of states. Empty if no state remains.
    """
    values, returns = [], []
    bar = Progress(states, description="states", unit="state")
    with bar, set_exploration_type(ExplorationType.RANDOM):
        for number in range(states):
            data = _branch(env, actor, 40_000 + number, number % 8, candidates, rollouts)
            if data is not None:
                value = critic(data)["state_action_value"].mean(0)
                values.append(value.reshape(candidates, rollouts)[:, 0])
                returns.append(_continued_returns(env, actor, data, gamma).reshape(candidates, rollouts))
            bar.update(1)
    return _within_state_figures(torch.stack(values), torch.stack(returns)) if values else {}


def _branch(env: EnvBase, actor: FlowActor, seed: int, lead: int, candidates: int, rollouts: int) -> Any:
    """Reach one state in all environments and write its candidate chunks; None if the episode ends earlier."""
    parallel = env.batch_size.numel()
    generator = torch.Generator().manual_seed(seed)
    data = reset_with_seeds(env, [seed] * parallel)
    for _ in range(lead):
        noise = torch.randn(actor.noise_shape, generator=generator).expand(parallel, *actor.noise_shape)
        data = env.step(actor(data.set(actor.noise_key, noise.clone())))
        following: Any = data["next"]
        if following["done"].any():
            return None
        data = env.step_mdp(data).exclude(actor.noise_key)
    noise = torch.randn(candidates, *actor.noise_shape, generator=generator).repeat_interleave(rollouts, 0)
    return actor(data.set(actor.noise_key, noise))


def _continued_returns(env: EnvBase, actor: FlowActor, data: Any, gamma: float) -> Tensor:
    """Return the discounted returns ``[B]`` of the chunks of ``data``, continued by the policy to the end."""
    parallel = env.batch_size.numel()
    total, discount, alive = torch.zeros(parallel), torch.ones(parallel), torch.ones(parallel, dtype=torch.bool)
    while alive.any():
        data = env.step(data)
        following = data["next"]
        reward, k = (following[key].reshape(-1).float() for key in ("reward", "steps_to_next_obs"))
        total += torch.where(alive, discount * reward, 0.0)
        discount *= gamma**k
        alive &= ~following["done"].reshape(-1)
        data = actor(env.maybe_reset(env.step_mdp(data)).exclude(actor.noise_key))
    return total


def _within_state_figures(q: Tensor, returns: Tensor) -> dict[str, float]:
    """Compare values ``[S, candidates]`` with returns ``[S, candidates, rollouts]``, centred within each state."""
    halves = returns[..., ::2].mean(-1), returns[..., 1::2].mean(-1)

    def centred(rows: Tensor) -> Tensor:
        return (rows - rows.mean(-1, keepdim=True)).flatten()

    def correlation(first: Tensor, second: Tensor) -> float:
        first, second = centred(first), centred(second)
        return (first @ second / (first.norm() * second.norm()).clamp(min=1e-12)).item()

    return {
        "within_states": float(len(q)),
        "within_state_correlation": correlation(q, returns.mean(-1)),
        "within_state_agreement": correlation(*halves),
        "within_state_q_std": centred(q).std().item(),
        "within_state_return_std": centred(returns.mean(-1)).std().item(),
    }
