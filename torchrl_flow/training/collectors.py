"""Rollouts of several processes by TorchRL's collectors, with the learner in this process."""

from __future__ import annotations

import copy
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase

from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.training.finite import require_finite_rollout
from torchrl_flow.training.process_rollouts import ProcessRollouts
from torchrl_flow.training.ray_rollouts import RayRollouts
from torchrl_flow.training.rollouts import ChunkRollouts, CollectorError
from torchrl_flow.util.processes import exit_codes, first_ended
from torchrl_flow.util.randomness import mix_seeds

__all__ = ["CollectorRollouts", "make_rollouts"]

Collector = MultiSyncCollector | MultiAsyncCollector


class _QueueOfAll(MultiAsyncCollector):
    """Asynchronous collector whose queue has a place for each process.

    TorchRL's has one place. A process that finds the queue full for a second discards its rollout and collects another
    one, so that steps of the environment would be neither stored nor counted while the learner is busy.
    """

    @property
    def _queue_len(self) -> int:
        return self.num_workers or 1


class CollectorRollouts(ProcessRollouts):
    """Rollouts like those of :class:`ChunkRollouts`, collected in several processes with several environments each.

    The processes are those of TorchRL's ``MultiSyncCollector`` or ``MultiAsyncCollector``. Each has environments and a
    copy of the policy on the CPU. Every :meth:`collect` first sends the weights and buffers of ``policy``, such as the
    bound of its noise. Episodes continue from one rollout to the next. The processes start at the first
    :meth:`collect`.

    With ``wait_for_all`` a rollout is that of all processes, which collect together and wait while this process learns:
    data are as on-policy as in one process, and two uninterrupted runs are bitwise equal. Without it a rollout is that
    of the first process that is ready, which continues at once while this process learns; the order of the processes
    differs between runs. Weights that are sent apply at once: the chunks of a rollout come from several versions of one
    or more updates earlier, and a chunk drawn during the copy from a mixture of two. No finished rollout is discarded,
    except those that are not collected before :meth:`close`.

    The state is only the number of rollouts. A resumed run continues with its weights, optimisers and data, but its
    processes start new episodes with other seeds: it is not bitwise equal to an uninterrupted run.

    Args:
        envs: factory of the environments of the processes; see :class:`~torchrl_flow.envs.CollectorEnvs`.
        policy: trained policy, on any device.
        num_steps: T, chunks per sub-environment.

    Keyword Args:
        keep: root entries to keep. Defaults to all.
        keep_next: entries below ``"next"`` to keep. Defaults to all.
        prepare: function applied to each transition before it is stored, in this process.
        seed: seed of the first episodes and of the policy copies' draws. Defaults to a random seed.
        wait_for_all: wait for all processes in each rollout, see above. Defaults to that of ``envs``.

    Raises:
        ValueError: if ``num_steps`` is below 1.
        CollectorError: in :meth:`collect`, if a process cannot start or has ended.
        NonFiniteError: in :meth:`collect`, if an environment returns a number that is not finite.
    """

    def __init__(self, envs: CollectorEnvs, policy: nn.Module, num_steps: int, **options: Any) -> None:
        super().__init__(envs, policy, num_steps, **options)
        self._collector: Collector | None = None
        self._batches: Iterator[Any] = iter(())
        self._stop: weakref.finalize | None = None

    @property
    def collector(self) -> Collector | None:
        """TorchRL's collector; ``None`` before the first :meth:`collect` and after :meth:`close`."""
        return self._collector

    def collect(self) -> TensorDictBase:
        """Return the next transitions.

        Their shape is ``[processes * N, T]`` with ``wait_for_all``, otherwise that of one process, ``[N, T]``; N is 1
        for unbatched environments.

        Raises:
            CollectorError: if a process cannot start or has ended. The error names the process.
            NonFiniteError: if a number is not finite. The error names its key and the sub-environment, counted over all
                processes.
        """
        collector = self._started()
        try:
            self._send_weights(collector)
            data = next(self._batches)
        except Exception as error:
            raise self._ended(collector, error) from error
        data = data.exclude("collector")
        data = data.unsqueeze(0) if data.ndim == 1 else data.flatten(0, -2)
        data.names = None
        self._require_finite(data)
        self._collected += 1
        return self._stored(data)

    def close(self) -> None:
        """End the processes; they also end with this object and with the program."""
        self._collector, self._batches = None, iter(())
        if self._stop is not None:
            self._stop()

    def _send_weights(self, collector: Collector) -> None:
        """Send the current weights and buffers of the learner's policy to the processes.

        TorchRL waits for a confirmation from each process, forever if a process has died; the call therefore runs in a
        thread.
        """
        weights = self._weights()
        errors: list[Exception] = []

        def send() -> None:
            try:
                collector.update_policy_weights_(weights)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(1.0)
            if thread.is_alive() and exit_codes(collector.procs):
                raise RuntimeError("a process has ended")
        if errors:
            raise errors[0]

    def _started(self) -> Collector:
        if self._collector is not None:
            return self._collector
        acting = copy.deepcopy(self.policy).to("cpu").requires_grad_(False)
        threads = torch.get_num_threads()
        try:
            collector = (MultiSyncCollector if self.wait_for_all else _QueueOfAll)(
                [self.envs.make] * self.envs.processes,
                acting,
                frames_per_batch=self.chunks,  # of all processes, or of each one that does not wait
                total_frames=-1,
                policy_device="cpu",
                env_device="cpu",
                storing_device="cpu",
                cat_results="stack",
                init_fn=_ignore_interrupts,
                auto_register_policy_transforms=False,  # not needed by policies of this library
                num_threads=threads,  # the default would reduce the threads of this process
            )
        except Exception as error:
            cause = str(error).split("\n\nWorker traceback")[0]
            raise CollectorError(
                f"The {self.envs.processes} collector processes could not start: {type(error).__name__}: {cause}"
            ) from error
        finally:
            torch.set_num_threads(threads)
        self._stop = weakref.finalize(self, _shut_down, collector)
        # After a resumption the episodes differ from the first ones.
        collector.set_seed(mix_seeds([self._seed, self._collected]) % 2**31)
        collector.reset()
        self._collector, self._batches = collector, iter(collector)
        return collector

    def _ended(self, collector: Collector, error: Exception) -> CollectorError:
        """End the remaining processes, and return the error that names the one that ended."""
        codes = exit_codes(collector.procs)
        self.close()
        what = f"the collectors failed ({type(error).__name__}: {error})"
        if codes:
            number, how = first_ended(codes)
            what = f"collector process {number + 1} of {self.envs.processes} has ended ({how})"
        return CollectorError(
            f"Rollout {self._collected + 1}: {what}. Nothing of this rollout is kept: go on from the last checkpoint "
            "(--resume)."
        )

    def _require_finite(self, data: TensorDictBase) -> None:
        row = f"the sub-environment, {self.envs.batch_size.numel()} of each collector process"
        require_finite_rollout(data, f"Rollout {self._collected + 1}", row=row)


def make_rollouts(
    env: EnvBase | CollectorEnvs,
    policy: Any,
    num_steps: int,
    *,
    seed: int | None = None,
    policy_device: torch.device | str | None = None,
    **options: Any,
) -> ChunkRollouts | CollectorRollouts | RayRollouts:
    """Make the rollouts of an environment in this process, of collector processes, or of Ray workers.

    Args:
        env: chunk env, or :class:`~torchrl_flow.envs.CollectorEnvs` for several processes.
        policy: policy that maps the observation TensorDict to one with the action; collector processes require a
            module.
        num_steps: chunks per sub-environment and rollout.
        seed: seed of the first episodes.
        policy_device: device of the policy, if it is not that of the environment; collector processes run it on the
            CPU.
        **options: ``keep``, ``keep_next`` and ``prepare`` of :class:`ChunkRollouts` and :class:`CollectorRollouts`; for
            processes and Ray workers also ``wait_for_all``.
    """
    if isinstance(env, CollectorEnvs):
        return (RayRollouts if env.on_ray else CollectorRollouts)(env, policy, num_steps, seed=seed, **options)
    return ChunkRollouts(env, policy, num_steps, seed=seed, policy_device=policy_device, **options)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all processes of a terminal: the learner completes its step with them and then ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shut_down(collector: Collector) -> None:
    threads = torch.get_num_threads()
    collector.shutdown(raise_on_error=False)
    torch.set_num_threads(threads)  # shutdown resets the number of threads
