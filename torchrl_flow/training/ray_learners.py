"""Data-parallel updates of several learners: this process and Ray actors, each with its share of a batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDictBase

from torchrl_flow.training.data_parallel import DataParallelLoss
from torchrl_flow.training.finite import NonFiniteError
from torchrl_flow.training.steppers import Metrics, NamedLossStepper
from torchrl_flow.util.randomness import mix_seeds, seed_everything
from torchrl_flow.util.ray_cluster import RayError, connect_ray, disconnect_ray, require_cpus

__all__ = ["LearnerError", "RayLearners"]

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
TIMEOUT = timedelta(seconds=300)
"""Timeout of a learner's wait for the others, at the start and in a reduction."""


class LearnerError(RuntimeError):
    """Error if a learner cannot start or has ended."""


class _Learner:
    """Ray actor: a copy of the stepper with its loss, in the process group of all learners."""

    def __init__(self, stepper: NamedLossStepper, port: int, rank: int, learners: int, seed: int) -> None:
        torch.set_num_threads(1)
        seed_everything(seed)
        _join(port, rank, learners)
        self._stepper = stepper
        stepper.compute = DataParallelLoss(stepper.loss_module)

    def update(self, batch: TensorDictBase) -> None:
        try:
            self._stepper.update(batch)
        except Exception:
            # The other learners would wait for the gradients of this one.
            dist.destroy_process_group()
            raise

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self._stepper.loss_module.state_dict().items()}


class RayLearners:
    """Data-parallel updates of a stepper on this machine by this process and Ray actors with one CPU each.

    A batch is distributed row by row, so that each learner gets its share of demonstrations and of online chunks, and
    :class:`DataParallelLoss` averages the gradients over gloo. The learners' weights are bitwise equal. The gradient is
    that of the whole batch, except that quantities normalised over a batch, such as advantage weights, are normalised
    over each learner's share. The loss's random draws differ from those of a single learner.

    The other learners start at the first update as copies of the current stepper: restore a checkpoint before. With a
    Ray cluster, this process must run on one of its machines. State, metrics and checkpoints are those of this process.
    The death of a learner ends the run, which ``--resume`` continues.

    Args:
        stepper: stepper of this process; its loss is on the CPU.
        learners: number of learners, including this process.

    Keyword Args:
        seed: seed of the other learners' random draws.

    Raises:
        ValueError: if there are fewer than two learners, or the loss is not on the CPU; in :meth:`update`, if a batch
            cannot be split evenly.
        LearnerError: in :meth:`update`, if a learner cannot start, fails or has ended.
        NonFiniteError: in :meth:`update`, if a loss or gradient of this process's share is not finite.
    """

    def __init__(self, stepper: NamedLossStepper, learners: int, *, seed: int = 0) -> None:
        if learners < 2:
            raise ValueError(f"learners must be at least 2, got {learners}: one learner is the stepper itself.")
        devices = {parameter.device.type for parameter in stepper.loss_module.parameters()}
        if devices != {"cpu"}:
            raise ValueError(f"learners share a loss on the CPU, got one on {sorted(devices)}: move it to the CPU.")
        self.stepper, self.learners, self._seed = stepper, learners, seed
        self._actors: list[Any] = []
        self._connected = False

    def update(self, batch: TensorDictBase) -> Metrics:
        """Make one update of all learners, and return the metrics of this process's share.

        Args:
            batch: rows ``[B]``, a multiple of the number of learners.

        Raises:
            ValueError: if B is not a multiple of the number of learners.
            LearnerError: if a learner cannot start or has ended.
        """
        if batch.shape[0] % self.learners:
            raise ValueError(f"{self.learners} learners cannot share {batch.shape[0]} rows: make them a multiple.")
        self._start()
        import ray
        from ray.exceptions import RayError as RayTaskFailed

        shares: list[Any] = [batch[rank :: self.learners] for rank in range(self.learners)]
        tasks = [actor.update.remote(share) for actor, share in zip(self._actors, shares[1:], strict=True)]
        try:
            metrics = self.stepper.update(shares[0])
            ray.get(tasks)
        except NonFiniteError:
            raise
        except (RayTaskFailed, RuntimeError) as error:
            raise self._ended(tasks, error) from error
        return metrics

    def updates_due(self, write_count: int) -> int:
        """Return the result of :meth:`NamedLossStepper.updates_due`."""
        return self.stepper.updates_due(write_count)

    def weights(self) -> list[dict[str, torch.Tensor]]:
        """Return the state dict of the loss of each started learner, that of this process first."""
        import ray

        own = {name: value.detach() for name, value in self.stepper.loss_module.state_dict().items()}
        return [own, *ray.get([actor.weights.remote() for actor in self._actors])]

    def close(self) -> None:
        """End the other learners, and Ray if this object started it; the stepper continues alone."""
        import ray

        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._actors:
            self.stepper.compute = None
            dist.destroy_process_group()
        self._actors = []
        if self._connected:
            disconnect_ray()
            self._connected = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stepper, which is equal in all learners."""
        return self.stepper.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state; the other learners restart from it."""
        self.close()
        self.stepper.load_state_dict(state_dict)

    def _start(self) -> None:
        if self._actors:
            return
        if dist.is_initialized():
            raise LearnerError("torch.distributed has a process group already: RayLearners makes its own.")
        import ray

        try:
            self._connected = connect_ray(None, self.learners - 1)
            require_cpus(self.learners - 1)
        except RayError as error:
            raise LearnerError(f"The {self.learners} learners cannot start. {error}") from error
        store = dist.TCPStore(HOST, 0, self.learners, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        # Gradients and batch data stored in the loss are not sent to new learners.
        self.stepper.loss_module.zero_grad(set_to_none=True)
        parts, node = ray.put(self.stepper), ray.get_runtime_context().get_node_id()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here: Any = NodeAffinitySchedulingStrategy(node, soft=False)
        remote: Any = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy=here)(_Learner)
        for rank in range(1, self.learners):
            seed = mix_seeds([self._seed, self.stepper.num_updates, rank]) % 2**31
            self._actors.append(remote.remote(parts, store.port, rank, self.learners, seed))
        try:
            _join(store.port, 0, self.learners, store)
            self.stepper.compute = DataParallelLoss(self.stepper.loss_module)
        except RuntimeError as error:
            raise self._ended([actor.weights.remote() for actor in self._actors], error) from error

    def _ended(self, tasks: list[Any], error: Exception) -> LearnerError:
        """Return the error that names the ended or failed learner."""
        import ray
        from ray import exceptions

        reason = f"the learners have lost each other ({_line(error)})"
        for rank, task in enumerate(tasks, 2):
            try:
                ray.get(task, timeout=10)
            except exceptions.RayActorError as ended:
                last = str(ended).strip().rsplit("\n", 1)[-1]
                reason = f"learner {rank} of {self.learners} has ended ({last})"
                break
            except exceptions.RayTaskError as failed:
                # The failure may be caused by another learner's end, which is then named.
                reason = f"learner {rank} of {self.learners} has failed ({_line(failed.cause or failed)})"
            except exceptions.RayError:
                continue
        return LearnerError(
            f"Update {self.stepper.num_updates + 1}: {reason}. Go on from the last checkpoint (--resume)."
        )


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]


def _join(port: int, rank: int, learners: int, store: Any = None) -> None:
    """Join the process group of the learners."""
    if store is None:
        store = dist.TCPStore(HOST, port, learners, is_master=False, timeout=TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=learners, timeout=TIMEOUT)
