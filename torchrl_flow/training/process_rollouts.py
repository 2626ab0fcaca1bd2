"""Base class of rollouts that other processes collect, with the learner in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, lazy_stack
from torch import nn

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.training.rollouts import kept_entries

__all__ = ["ProcessRollouts"]


class ProcessRollouts:
    """Base of rollouts from several processes: their arguments, their state, and the entries that are stored.

    A subclass starts the processes and implements ``collect`` and :meth:`close`.

    The arguments are those of :class:`~torchrl_flow.training.CollectorRollouts`.

    Raises:
        ValueError: if ``num_steps`` is below 1.
    """

    def __init__(
        self,
        envs: CollectorEnvs,
        policy: nn.Module,
        num_steps: int,
        *,
        keep: Sequence[NestedKey] | None = None,
        keep_next: Sequence[NestedKey] | None = None,
        prepare: Callable[[TensorDictBase], TensorDictBase] | None = None,
        seed: int | None = None,
        wait_for_all: bool | None = None,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.envs, self.policy, self.num_steps = envs, policy, num_steps
        self._keep, self._keep_next, self._prepare = keep, keep_next, prepare
        self._seed = int(torch.randint(2**31, ())) if seed is None else seed
        self.wait_for_all = envs.wait_for_all if wait_for_all is None else wait_for_all
        self._collected = 0

    @property
    def chunks(self) -> int:
        """Number of chunks in a rollout: of all processes with ``wait_for_all``, otherwise of one process."""
        return (self.envs.processes if self.wait_for_all else 1) * self.envs.batch_size.numel() * self.num_steps

    def metrics(self) -> dict[str, Any]:
        """Return what the processes add to the metrics of a rollout; by default nothing."""
        return {}

    def close(self) -> None:
        """End the processes."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the number of completed rollouts."""
        return {"collected": self._collected}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the number of completed rollouts; new processes start new episodes."""
        self.close()
        self._collected = int(state.get("collected", 0))

    def _weights(self) -> TensorDictBase:
        """Return the policy's current weights and buffers on the CPU."""
        weights: Any = TensorDict.from_module(self.policy)
        return weights.data.to("cpu")

    def _stored(self, data: TensorDictBase) -> TensorDictBase:
        """Apply ``prepare`` to each transition of ``[*N, T]``, and keep the chosen entries."""
        if self._prepare is None:
            return kept_entries(data, self._keep, self._keep_next)
        steps = [kept_entries(self._prepare(step), self._keep, self._keep_next) for step in data.unbind(-1)]
        return lazy_stack(steps, -1).contiguous()
