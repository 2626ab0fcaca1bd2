"""An action chunk as one transition: executed steps, discounted return, latched flags.

A policy sends a chunk of ``k_max`` actions; the environment executes ``k <= k_max`` of them, because it stops at the
first step that ends the episode. The functions compute a chunk's semi-Markov transition from its per-step rewards and
flags, for both the environment transform and the data readers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_fraction, check_one_of, check_same_shape

__all__ = [
    "ChunkAlignment",
    "chunk_return",
    "executed_mask",
    "executed_slice",
    "executed_steps",
    "latch",
]

ChunkAlignment = Literal["newest", "oldest"]
"""First step of a predicted chunk: that of the newest or of the oldest observation."""
ALIGNMENTS = ("newest", "oldest")


def executed_slice(
    pred_horizon: int, act_horizon: int, obs_horizon: int = 1, alignment: ChunkAlignment = "newest"
) -> slice:
    """Return the slice of the executed steps in a predicted chunk.

    Two conventions exist for the first step of a chunk that is predicted from ``obs_horizon``
    observations. With ``"newest"`` it is the step of the newest observation, so that execution starts at
    index 0. With ``"oldest"`` it is the step of the oldest one, and the first ``obs_horizon - 1`` actions
    lie in the past.

    Args:
        pred_horizon (int): number of predicted actions, H.
        act_horizon (int): number of actions to execute, H_a.
        obs_horizon (int): number of observations in the policy's input, T. Defaults to 1.
        alignment (str): ``"newest"`` or ``"oldest"``. Defaults to ``"newest"``.

    Returns:
        slice: the executed steps, with ``stop - start == act_horizon``.

    Raises:
        ValueError: if a horizon is below 1, the alignment is unknown or the slice does not fit.

    Examples:
        >>> executed_slice(16, 8, obs_horizon=2)
        slice(0, 8, None)
        >>> executed_slice(16, 8, obs_horizon=2, alignment="oldest")
        slice(1, 9, None)
    """
    horizons = {"pred_horizon": pred_horizon, "act_horizon": act_horizon, "obs_horizon": obs_horizon}
    for name, value in horizons.items():
        check_at_least(name, value, 1)
    check_one_of("alignment", alignment, ALIGNMENTS)
    start = obs_horizon - 1 if alignment == "oldest" else 0
    stop = start + act_horizon
    if stop > pred_horizon:
        raise ValueError(
            f"act_horizon={act_horizon} actions starting at step {start} (obs_horizon={obs_horizon}, "
            f"alignment={alignment!r}) end at step {stop}, past pred_horizon={pred_horizon}: raise "
            f"pred_horizon to at least {stop} or lower act_horizon to at most {pred_horizon - start}."
        )
    return slice(start, stop)


def executed_mask(done: Tensor) -> Tensor:
    """Return whether each step of a chunk is executed; the last executed step is the first done.

    Args:
        done (Tensor): bool ``[*B, k_max]``, whether the episode ended at the step. Values after the first True of a row
            have no effect.

    Returns:
        Tensor: bool ``[*B, k_max]``; the first step is always executed.

    Raises:
        ValueError: if ``done`` is not a bool tensor with at least one dimension and one step.

    Examples:
        >>> executed_mask(torch.tensor([[False, True, False], [False, False, False]]))
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    _check_flags("done", done)
    first = torch.ones_like(done[..., :1])
    if done.shape[-1] == 1:
        return first
    alive = torch.cumsum(done[..., :-1], dim=-1, dtype=torch.int32) == 0
    return torch.cat([first, alive], dim=-1)


def executed_steps(done: Tensor) -> Tensor:
    """Return the number of steps up to and including the first done, k.

    Args:
        done (Tensor): bool ``[*B, k_max]``, whether the episode ended at the step.

    Returns:
        Tensor: int64 ``[*B, 1]``, between 1 and ``k_max``; ``k_max`` for a row without a done.

    Raises:
        ValueError: if ``done`` is not a bool tensor with at least one dimension and one step.

    Examples:
        >>> executed_steps(torch.tensor([[False, True, False], [False, False, False]]))
        tensor([[2],
                [3]])
    """
    return executed_mask(done).sum(dim=-1, keepdim=True)


def chunk_return(rewards: Tensor, executed: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the executed steps' rewards, ``sum_i gamma^i r_i``.

    The exponent is the position of the step in the chunk. Rewards of steps that were not executed have no effect, even
    if they are infinite or NaN.

    Args:
        rewards (Tensor): floating point ``[*B, k_max]``.
        executed (Tensor): bool ``[*B, k_max]``.
        gamma (float): discount per step, in [0, 1].

    Returns:
        Tensor: ``[*B, 1]``, with the dtype of ``rewards``.

    Raises:
        ValueError: if shapes or dtypes do not fit, or ``gamma`` lies outside [0, 1].

    Examples:
        >>> rewards = torch.tensor([[1.0, 2.0, 4.0]])
        >>> chunk_return(rewards, torch.tensor([[True, True, False]]), gamma=0.5)
        tensor([[2.]])
    """
    _check_flags("executed", executed)
    check_same_shape("[*B, k_max]", rewards=rewards, executed=executed)
    if not rewards.is_floating_point():
        raise ValueError(f"rewards must be floating point, got {rewards.dtype}: convert them first.")
    check_fraction("gamma", gamma)
    rewards = torch.where(executed, rewards, 0.0)
    if gamma != 1.0:
        steps = torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
        rewards = rewards * torch.pow(gamma, steps)
    return rewards.sum(dim=-1, keepdim=True)


def value_bound(reward: Tensor, steps: Tensor, gamma: float) -> Tensor:
    """Compute the largest absolute value if every chunk gave the reward R, ``|R| / (1 - gamma^k)``.

    Args:
        reward: discounted sum R of a chunk's rewards, any shape.
        steps: number k of its executed steps, of the same shape, at least 1.
        gamma: discount of a step, in [0, 1]; at 1 the bound is infinite except for rewards of 0.

    Returns:
        bounds of the same shape.

    Raises:
        ValueError: if the shapes differ or gamma is outside [0, 1].

    Examples:
        >>> value_bound(torch.tensor([1.0, -3.0]), torch.tensor([1, 2]), 0.5)
        tensor([2., 4.])
    """
    check_same_shape("[*B]", reward=reward, steps=steps)
    check_fraction("gamma", gamma)
    share = 1.0 - torch.full_like(reward, gamma).pow(steps)
    return torch.where(reward == 0, 0.0, reward.abs() / share)


def latch(flags: Tensor, executed: Tensor) -> Tensor:
    """Return whether a flag is True at any executed step.

    Args:
        flags (Tensor): bool ``[*B, k_max]``.
        executed (Tensor): bool ``[*B, k_max]``.

    Returns:
        Tensor: bool ``[*B, 1]``.

    Raises:
        ValueError: if the shapes differ or a tensor is not bool.

    Examples:
        >>> flags = torch.tensor([[True, False, False], [False, False, True]])
        >>> latch(flags, torch.tensor([[True, True, False], [True, True, False]]))
        tensor([[ True],
                [False]])
    """
    _check_flags("flags", flags)
    _check_flags("executed", executed)
    check_same_shape("[*B, k_max]", flags=flags, executed=executed)
    return (flags & executed).any(dim=-1, keepdim=True)


def _check_flags(name: str, flags: Tensor) -> None:
    if flags.dtype is not torch.bool:
        raise ValueError(f"{name} must be a bool tensor, got {flags.dtype}.")
    if flags.ndim < 1 or flags.shape[-1] < 1:
        raise ValueError(f"{name} must have shape [*B, k_max] with k_max >= 1, got {tuple(flags.shape)}.")
