"""Values of executed chunks against their returns: whether a critic predicts returns and ranks chunks of a state."""

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
    """Return the critic's mean value and the discounted return of every chunk of some episodes, ``[N]`` each.

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
    """Return how well the critic's values rank several chunks of the policy in one state.

    In each state ``candidates`` chunks start, each in ``rollouts`` environments, in which the policy then goes on.
    State ``i`` is reached from seed 40000 + i, after ``i % 8`` chunks.

    Args:
        env: ``candidates * rollouts`` chunk environments.
        actor: the policy.
        critic: critic; the values of its members are averaged.
        states: states to compare chunks in; those after the end of an episode are left out.
        candidates: chunks that are compared in a state, at least 2.
        rollouts: episodes that continue from each chunk, at least 2; their mean is its return.
        gamma: discount of one environment step.

    Returns:
        ``within_state_correlation`` of values and mean returns, both less the mean of their state;
        ``within_state_agreement``, the correlation of the means of two halves of the returns, which measures their
        noise; ``within_state_q_std`` and ``within_state_return_std``, deviations within a state; ``within_states``, the
        number of states. Empty without a state.
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
    """Reach one state in all environments and write the chunks that start there; None if the episode ends before."""
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
    """Execute the chunks of ``data``, let the policy go on to the end, and return the discounted returns ``[B]``."""
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
    """Compare values ``[S, candidates]`` with returns ``[S, candidates, rollouts]``, less the mean of each state."""
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
