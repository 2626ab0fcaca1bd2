"""n-step returns over chunks: transitions of several executed chunks from rollouts of single chunks."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase

__all__ = ["multi_chunk_transitions"]


def multi_chunk_transitions(data: TensorDictBase, num_chunks: int, *, gamma: float) -> TensorDictBase:
    """Replace each transition of a rollout by one over up to ``num_chunks`` chunks.

    ``reward`` becomes ``sum_i gamma^(k_0 + .. + k_(i-1)) R_i``, and ``steps_to_next_obs`` the sum of the ``k_i``, also
    at the root if the entry exists there. A loss that discounts by executed steps then has an n-step target. All other
    entries below ``"next"`` are those of the last chunk. The sum stops at the end of the episode or the rollout. The
    actions are those of the behaviour policy: if the policy has changed since, more chunks increase the bias of the
    target, but reduce its dependence on the critic.

    Args:
        data: transitions ``[*N, T]`` of a chunk environment, time in the last dimension, with ``reward``, ``done`` and
            ``steps_to_next_obs`` ``[*N, T, 1]`` below ``"next"``.
        num_chunks: n; 1 returns the data unchanged.

    Keyword Args:
        gamma: discount of one environment step.

    Returns:
        transitions ``[*N, T]``.

    Raises:
        ValueError: if ``num_chunks`` is below 1, ``gamma`` is not in [0, 1], or the data have no time dimension.

    Examples:
        >>> from tensordict import TensorDict
        >>> ones = torch.ones(4, 1)
        >>> after = {"reward": ones, "done": ones > 1, "steps_to_next_obs": 2 * ones, "observation": ones.cumsum(0)}
        >>> data = TensorDict({"next": TensorDict(after, [4])}, batch_size=[4])
        >>> folded = multi_chunk_transitions(data, 3, gamma=0.5)["next"]
        >>> folded["reward"].squeeze(-1), folded["observation"].squeeze(-1)
        (tensor([1.3125, 1.3125, 1.2500, 1.0000]), tensor([3., 4., 4., 4.]))
    """
    if num_chunks < 1:
        raise ValueError(f"num_chunks must be at least 1, got {num_chunks}.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}.")
    if not data.ndim:
        raise ValueError("data must be [*N, T], with time in the last dimension, got a single transition.")
    if num_chunks == 1:
        return data
    rows = data.reshape(-1, data.shape[-1])
    following: Any = rows["next"]
    reward, done = following["reward"], following["done"]
    steps = following["steps_to_next_obs"]
    time = rows.shape[1]
    total, executed = torch.zeros_like(reward), torch.zeros_like(steps)
    last = torch.arange(time, device=reward.device).expand(rows.shape[0], time).clone()
    going = torch.ones_like(done)
    for i in range(min(num_chunks, time)):
        here, there = slice(0, time - i), slice(i, time)
        now = going[:, here]
        total[:, here] += torch.where(now, gamma ** executed[:, here] * reward[:, there], 0.0)
        executed[:, here] += torch.where(now, steps[:, there], 0)
        last[:, here] += (now.squeeze(-1) & (i > 0)).to(last.dtype)
        going[:, here] = now & ~done[:, there]
    index = torch.arange(rows.shape[0], device=last.device).unsqueeze(1).expand_as(last)
    after = following[index, last].set("reward", total).set("steps_to_next_obs", executed)
    folded = rows.copy().set("next", after)
    if "steps_to_next_obs" in folded:
        folded.set("steps_to_next_obs", executed)
    return folded.reshape(data.shape)
