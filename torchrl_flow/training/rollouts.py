"""Consecutive rollouts of fixed length from a chunk environment, which can be resumed in mid-episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, lazy_stack
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.envs.unwrap import base_env
from torchrl_flow.training.finite import require_finite_rollout
from torchrl_flow.util.processes import exit_codes, first_ended
from torchrl_flow.util.randomness import mix_seeds
from torchrl_flow.util.torchrl_compat import can_set_state

__all__ = ["ChunkRollouts", "CollectorError", "finished_success", "minibatches"]


class CollectorError(RuntimeError):
    """Error if a collector process or a worker of a ``ParallelEnv`` cannot start or has ended; it names the process."""


class ChunkRollouts:
    """Rollouts of ``[*N, T]`` transitions; sub-environments are reset when their episodes end.

    The last transition of an episode keeps its true last observation under ``"next"``, from which value estimators
    bootstrap at a truncation. TorchRL's collectors can also be used; this class has a state, so that a resumed run
    continues in mid-episode.

    Args:
        env: chunk env (see :func:`~torchrl_flow.envs.make_chunk_env`).
        policy: policy that maps the observation TensorDict to one with the action.
        num_steps: T, chunks per sub-environment.

    Keyword Args:
        keep: root entries to keep. Defaults to all.
        keep_next: entries below ``"next"`` to keep. Defaults to all.
        prepare: function applied to each transition before it is stored, such as an encoder of the next observation.
        seed: seed of the first episodes, if the reset of the environment takes one. In a resumed run, it also seeds the
            new episodes of an environment without a state.
        policy_device: device of the policy, if it is not that of the environment.

    Raises:
        ValueError: if ``num_steps`` is below 1.
        NonFiniteError: in :meth:`collect`, if the environment returns an observation or a reward that is not finite.
        CollectorError: in :meth:`collect`, if a worker of a :class:`~torchrl.envs.ParallelEnv` has ended.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: Callable[[TensorDictBase], TensorDictBase],
        num_steps: int,
        *,
        keep: Sequence[NestedKey] | None = None,
        keep_next: Sequence[NestedKey] | None = None,
        prepare: Callable[[TensorDictBase], TensorDictBase] | None = None,
        seed: int | None = None,
        policy_device: torch.device | str | None = None,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        self.env, self.policy, self.num_steps = env, policy, num_steps
        self._keep, self._keep_next, self._prepare, self._seed = keep, keep_next, prepare, seed
        self._policy_device = None if policy_device is None else torch.device(policy_device)
        self._carry: TensorDictBase | None = None
        self._collected = 0

    @property
    def chunks(self) -> int:
        """Number of chunks in a rollout, over all sub-environments."""
        return self.env.batch_size.numel() * self.num_steps

    @torch.no_grad()
    def collect(self) -> TensorDictBase:
        """Return the next ``[*N, T]`` transitions.

        Raises:
            NonFiniteError: if the environment or the policy returns a number that is not finite. The error names its
                key and the sub-environment. Returned data are therefore safe to store.
            CollectorError: if a worker of a :class:`~torchrl.envs.ParallelEnv` has ended. The error names the worker.
        """
        workers = self._workers()
        try:
            return self._collect()
        except (RuntimeError, OSError, EOFError) as error:
            workers = workers or self._workers()  # they may have started in this rollout
            codes = exit_codes(workers)
            if not codes:
                raise
            number, how = first_ended(codes)
            raise CollectorError(
                f"Rollout {self._collected + 1}: worker {number + 1} of the {len(workers)} of the ParallelEnv has "
                f"ended ({how}). Nothing of this rollout is kept: go on from the last checkpoint (--resume)."
            ) from error

    def _workers(self) -> list[Any]:
        """Return the processes of a ``ParallelEnv`` that has started; other environments have none."""
        # Not getattr, which TorchRL forwards to the workers.
        return list(vars(base_env(self.env)).get("_workers") or ())

    def _collect(self) -> TensorDictBase:
        if self._carry is None:
            if self._seed is not None:
                # After a resumption without a state the episodes must differ from the first ones.
                self.env.set_seed(self._seed if not self._collected else mix_seeds([self._seed, self._collected]))
            self._carry = self.env.reset()
            self._require_finite(self._carry, "reset")
        carry, steps = self._carry, []
        with set_exploration_type(ExplorationType.RANDOM):
            for number in range(self.num_steps):
                step, carry = self.env.step_and_maybe_reset(self._acted(carry))
                self._require_finite(step, f"chunk {number + 1}")
                self._require_finite(carry, f"reset after chunk {number + 1}")
                step = step if self._prepare is None else self._prepare(step)
                steps.append(kept_entries(step, self._keep, self._keep_next))
        data = lazy_stack(steps, -1).contiguous()
        self._carry = carry
        self._collected += 1
        return data

    def _acted(self, carry: TensorDictBase) -> TensorDictBase:
        if self._policy_device in (None, self.env.device):
            return self.policy(carry)
        return self.policy(carry.to(self._policy_device)).to(self.env.device)

    def _require_finite(self, data: Any, when: str) -> None:
        require_finite_rollout(data.reshape(-1), f"Rollout {self._collected + 1}, {when}")

    def metrics(self) -> dict[str, Any]:
        """Return an empty mapping: this process has nothing to log about collection."""
        return {}

    def close(self) -> None:
        """Close the environment."""
        if not self.env.is_closed:
            self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the rollouts: the last observation and, if it has a state, the simulation."""
        if self._carry is None:
            return {}
        base = base_env(self.env)
        # The env's state can be set (TorchRL's mark), or the env replays its episodes (supports_resumption).
        if not (getattr(base, "supports_resumption", False) or can_set_state(base)):
            return {"collected": self._collected}
        carry = {_joined(key): value for key, value in self._carry.items(True, True)}
        # The state of a transformed env holds only that of its transforms, such as the frames of a history.
        transforms = dict(self.env.state_dict()) if self.env is not base else {}
        simulation = dict(base.state_dict())
        return {"carry": carry, "collected": self._collected, "simulation": simulation, "transforms": transforms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; an environment without a state starts new episodes."""
        self._carry, self._collected = None, int(state.get("collected", 0))
        if not state.get("simulation"):
            return
        self.env.reset()
        base_env(self.env).load_state_dict(state["simulation"])
        if state.get("transforms"):
            self.env.load_state_dict(state["transforms"])
        self._carry = TensorDict(dict(state["carry"]), self.env.batch_size, device=self.env.device).unflatten_keys(".")


def kept_entries(
    step: TensorDictBase, keep: Sequence[NestedKey] | None, keep_next: Sequence[NestedKey] | None
) -> TensorDictBase:
    """Return transitions with the given entries at the root and below ``"next"``; ``None`` for all."""
    after = step.get("next")
    after = after.select(*keep_next, strict=False) if keep_next is not None else after.copy()
    before = step.select(*keep, strict=False) if keep is not None else step.exclude("next")
    return before.set("next", after)


def finished_success(data: TensorDictBase, *, success_key: NestedKey = "success") -> dict[str, Tensor]:
    """Return ``success``, the share of successes over the episodes that finished in a rollout.

    The result is empty if no episode finished, or if the task has no success.

    The success of an episode is that of its last chunk, not its termination, which may be a failure.

    Args:
        data: transitions of any shape ``[*B]``, from an environment in which success ends an episode.
        success_key: key of the success flag below ``"next"``, bool ``[*B, 1]``.

    Examples:
        >>> done, success = torch.tensor([[True], [False], [True]]), torch.tensor([[True], [False], [False]])
        >>> finished_success(TensorDict({"next": {"done": done, "success": success}}, batch_size=[3]))
        {'success': tensor(0.5000)}
    """
    following: Any = data["next"]
    if success_key not in following:
        return {}
    finished = following[success_key][following["done"]]
    return {"success": finished.float().mean()} if finished.numel() else {}


def _joined(key: NestedKey) -> str:
    return key if isinstance(key, str) else ".".join(map(str, key))


def minibatches(data: TensorDictBase, size: int) -> Iterator[TensorDictBase]:
    """Yield the rows of ``data`` ``[B]`` in a random order, ``size`` at a time; a smaller last part is dropped.

    Args:
        data: the rows.
        size: rows of a minibatch. If there are fewer rows, all of them form one minibatch.

    Raises:
        ValueError: if ``size`` is below 1.

    Examples:
        >>> data = TensorDict(x=torch.arange(10), batch_size=[10])
        >>> [part.shape[0] for part in minibatches(data, 4)]
        [4, 4]
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    rows = data.shape[0]
    order = torch.randperm(rows, device=data.device)
    size = min(size, rows)
    for first in range(0, rows - size + 1, size):
        yield data[order[first : first + size]]  # pyright: ignore[reportReturnType]
