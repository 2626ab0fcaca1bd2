"""Rollouts of Ray workers, on this machine or on a cluster; a worker that dies is replaced by a new one.

TorchRL's ``RayCollector`` (0.14.1) does not replace dead workers. Its iterator is a generator that calls ``ray.get``
for the rollouts of its actors. If an actor has died, the error ends the generator, and the running rollouts of the
other actors are lost with its local variables. ``add_collectors`` adds actors, but the dead one stays in the list of
actors for weights and rollouts, and the weight-sending scheme has only the initial actors. Ray's restarts
(``max_restarts`` in ``remote_configs``) would use the initial weights and seeds. Therefore this module has its own
actors around :class:`~torchrl_flow.training.ChunkRollouts`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.training.finite import NonFiniteError
from torchrl_flow.training.process_rollouts import ProcessRollouts
from torchrl_flow.training.rollouts import ChunkRollouts, CollectorError
from torchrl_flow.util.randomness import mix_seeds, seed_everything
from torchrl_flow.util.ray_cluster import RayError, connect_ray, disconnect_ray, require_cpus

__all__ = ["RayRollouts"]

_log = logging.getLogger(__name__)

DEATHS_IN_A_ROW = 3
"""Number of times that a worker may die without delivering a rollout; the next death ends the run."""
PATIENCE_S = 60.0
"""Seconds without a rollout after which a warning is issued."""


class _Collector:
    """Ray actor of a worker: an environment, a copy of the policy, and their rollouts."""

    def __init__(self, parts: tuple[Any, nn.Module], num_steps: int, seed: int, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        seed_everything(seed)
        make, self._policy = parts
        self._rollouts = ChunkRollouts(make(), self._policy, num_steps, seed=seed, **options)

    def collect(self, weights: TensorDictBase) -> tuple[TensorDictBase, tuple[str, int]]:
        """Return a rollout with the given weights, and its machine and process."""
        held: Any = TensorDict.from_module(self._policy)
        held.data.update_(weights)
        return self._rollouts.collect(), (platform.node(), os.getpid())


@dataclass
class _Worker:
    """A worker's actor and its running task."""

    number: int
    actor: Any
    task: Any = None
    place: tuple[str, int] | None = None
    deaths: int = 0
    """Deaths since the worker's last rollout, including those of its earlier actors."""

    @property
    def where(self) -> str:
        """Known location of the worker, for messages."""
        return f"process {self.place[1]} on {self.place[0]}" if self.place else "before its first rollout"

    def start(self, weights: Any) -> None:
        self.task = self.actor.collect.remote(weights)


class RayRollouts(ProcessRollouts):
    """Rollouts like those of :class:`ChunkRollouts`, collected in Ray workers with several environments each.

    Each worker is a Ray actor with one CPU, environments and a copy of the policy. It gets the weights and buffers of
    ``policy`` through Ray's object store before each rollout. Episodes continue from one rollout to the next. The
    workers start at the first :meth:`collect`.

    With ``wait_for_all`` a rollout is that of all workers, which collect together and wait while this process learns:
    data are as on-policy as in one process, and two runs without dead workers are bitwise equal. Without it a rollout
    is that of the first worker that is ready, which continues at once with the current weights while this process
    learns. Its data come from weights of one or more updates earlier, and the order of workers differs between runs.

    A worker whose process or machine has ended is replaced: a new worker, with other seeds and the newest weights,
    repeats its rollout, and ``replaced`` counts it. Undelivered data of the dead worker are lost; results of
    :meth:`collect` are not affected. A worker that dies four times without a rollout ends the run. An error in the
    environment or the policy also ends the run, since a new worker would raise it again.

    The state is only the numbers of rollouts and of replaced workers: a resumed run starts new episodes.

    Args:
        envs: factory of the workers' environments.
        policy: policy of the learner, on any device; workers run it on the CPU.
        num_steps: T, chunks per sub-environment.

    Keyword Args:
        wait_for_all: wait for all workers in each rollout, see above. Defaults to that of ``envs``.
        keep: root entries to keep; ``None`` for all.
        keep_next: entries below ``"next"`` to keep; ``None`` for all.
        prepare: function applied to each transition before it is stored, in this process.
        seed: seed of the first episodes and of the policy copies' draws; ``None`` for a random seed.

    Raises:
        ValueError: if ``num_steps`` is below 1.
        CollectorError: in :meth:`collect`, if Ray cannot be reached or has too few CPUs, if a worker cannot start or
            dies too often, or if its environment raises an error.
        NonFiniteError: in :meth:`collect`, if an environment returns a number that is not finite.
    """

    def __init__(self, envs: CollectorEnvs, policy: nn.Module, num_steps: int, **options: Any) -> None:
        super().__init__(envs, policy, num_steps, **options)
        self._workers: list[_Worker] = []
        self._parts: Any = None
        self._connected = False
        self.replaced = 0
        """Number of replaced workers, including those before a resumption."""

    @property
    def places(self) -> list[tuple[str, int] | None]:
        """Machine and process of each worker at its last rollout; ``None`` before its first rollout."""
        return [worker.place for worker in sorted(self._workers, key=lambda worker: worker.number)]

    def collect(self) -> TensorDictBase:
        """Return the next transitions.

        Their shape is ``[workers * N, T]`` with ``wait_for_all`` (``[workers, T]`` for unbatched environments),
        otherwise that of one worker, ``[*N, T]``.

        Raises:
            CollectorError: if a worker cannot start, dies too often or raises an error. The error names the worker.
            NonFiniteError: if a number is not finite. The error names the worker.
        """
        import ray

        self._start()
        weights = ray.put(self._weights())
        for worker in self._workers:
            if worker.task is None:
                worker.start(weights)
        try:
            data = self._all(weights) if self.wait_for_all else self._first(weights)
        except BaseException:
            self.close()
            raise
        self._collected += 1
        return data if self._prepare is None else self._stored(data)  # workers drop entries themselves

    def metrics(self) -> dict[str, Any]:
        """Return ``replaced_workers``, the number of replaced workers."""
        return {"replaced_workers": self.replaced}

    def close(self) -> None:
        """End the workers, and Ray if this object started it."""
        for worker in self._workers:
            _kill(worker.actor)
        self._workers, self._parts = [], None
        if self._connected:
            disconnect_ray()
            self._connected = False

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of completed rollouts and of replaced workers."""
        return {**super().state_dict(), "replaced": self.replaced}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the numbers of completed rollouts and of replaced workers; new workers start new episodes."""
        super().load_state_dict(state)
        self.replaced = int(state.get("replaced", 0))

    def _start(self) -> None:
        if self._workers:
            return
        import ray

        try:
            self._connected = connect_ray(self.envs.ray_address, self.envs.processes)
            require_cpus(self.envs.processes)
        except RayError as error:
            self.close()
            raise CollectorError(f"The {self.envs.processes} Ray workers cannot start. {error}") from error
        acting = copy.deepcopy(self.policy).to("cpu").requires_grad_(False)
        self._parts = ray.put((self.envs.make, acting))
        self._workers = [_Worker(number, self._actor(number)) for number in range(self.envs.processes)]

    def _actor(self, number: int) -> Any:
        """Start an actor with a seed that no other actor has, including those before a resumption."""
        import ray

        seed = mix_seeds([self._seed, self._collected, number, self.replaced]) % 2**31
        # The prepare function may need entries that are not kept.
        options = {} if self._prepare is not None else {"keep": self._keep, "keep_next": self._keep_next}
        # Ray would restart an actor with its initial weights and seed.
        remote: Any = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(_Collector)
        return remote.remote(self._parts, self.num_steps, seed, options)

    def _all(self, weights: Any) -> TensorDictBase:
        """Return the rollouts of all workers, in their order."""
        rollouts: dict[int, TensorDictBase] = {}
        while len(rollouts) < len(self._workers):
            worker = self._ready([worker for worker in self._workers if worker.number not in rollouts])
            data = self._delivered(worker, weights)
            if data is not None:
                rollouts[worker.number] = data
                worker.task = None
        parts: list[Any] = [rollouts[worker.number] for worker in self._workers]
        joined: Any = (torch.stack if self.envs.num_envs is None else torch.cat)(parts, 0)
        return joined

    def _first(self, weights: Any) -> TensorDictBase:
        """Return the first rollout that is ready; its worker continues with the newest weights."""
        while True:
            worker = self._ready(self._workers)
            data = self._delivered(worker, weights)
            if data is not None:
                # Moved to the end of the list: of several ready workers, the one that has waited longest is first.
                self._workers.remove(worker)
                self._workers.append(worker)
                worker.start(weights)
                return data

    def _ready(self, workers: Sequence[_Worker]) -> _Worker:
        import ray

        tasks, waited = {worker.task: worker for worker in workers}, 0.0
        while True:
            ready, _ = ray.wait(list(tasks), num_returns=1, timeout=PATIENCE_S, fetch_local=True)
            if ready:
                return tasks[ready[0]]
            waited += PATIENCE_S
            names = ", ".join(f"{worker.number + 1} ({worker.where})" for worker in workers)
            _log.warning("Rollout %d: no word from Ray workers %s for %.0f s.", self._collected + 1, names, waited)

    def _delivered(self, worker: _Worker, weights: Any) -> TensorDictBase | None:
        """Return a worker's rollout, or None if the worker has died and a new one repeats the rollout."""
        import ray
        from ray import exceptions

        gone = (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.NodeDiedError,
                exceptions.OutOfMemoryError)  # fmt: skip
        name = f"Rollout {self._collected + 1}, Ray worker {worker.number + 1} of {len(self._workers)}"
        kept = "Nothing of this rollout is kept: go on from the last checkpoint (--resume)."
        try:
            data, worker.place = ray.get(worker.task)
        except exceptions.RayTaskError as error:
            cause: Any = error.cause or error
            if isinstance(cause, NonFiniteError):
                raise NonFiniteError(f"{name}: {cause}") from error
            raise CollectorError(f"{name} ({worker.where}) failed ({_line(cause)}). {kept}") from error
        except gone as error:
            if getattr(error, "actor_init_failed", False):
                raise CollectorError(f"{name} could not start: {_last_line(error)}") from error
            self._replace(worker, weights, f"{name} ({worker.where})", error)
            return None
        except exceptions.RayError as error:
            raise CollectorError(f"{name}: Ray has failed ({_line(error)}). {kept}") from error
        worker.deaths = 0
        return data

    def _replace(self, worker: _Worker, weights: Any, name: str, error: Exception) -> None:
        """Replace a dead actor by a new one, which repeats the rollout with the newest weights."""
        worker.deaths += 1
        if worker.deaths > DEATHS_IN_A_ROW:
            raise CollectorError(
                f"{name} has died {worker.deaths} times without a rollout ({_line(error)}). Look at the memory of its "
                "machine and at Ray's logs, and go on from the last checkpoint (--resume)."
            ) from error
        _kill(worker.actor)
        self.replaced += 1
        _log.warning("%s has ended; a new one takes its place (%d so far).", name, self.replaced)
        worker.actor, worker.place = self._actor(worker.number), None
        worker.start(weights)


def _kill(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # the actor or Ray may already be dead
        ray.kill(actor, no_restart=True)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]


def _last_line(error: BaseException) -> str:
    """Return the last line of a traceback in a message, which is the error."""
    return str(error).strip().rsplit("\n", 1)[-1]
