"""Optimisation steps of named losses: several optimisers, delayed actors, update-to-data ratios, pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_flow.training.finite import NonFiniteError, gradient_norm, require_finite_losses, require_finite_norm
from torchrl_flow.training.guard import UpdateGuard, current_guard
from torchrl_flow.training.loss_groups import LossGroup, losses_by_name, scalar_loss, train_sources

__all__ = ["NamedLossStepper"]

Metrics = dict[str, Tensor]
Compute = Callable[..., Any]


class NamedLossStepper(OptimizationStepper):
    """Updates of named losses: each update runs the due losses, their optimisers and their target updates.

    Use it in a custom loop::

        for data in collector:
            buffer.extend(data)
            for _ in range(stepper.updates_due(buffer.write_count)):
                metrics = stepper.update(buffer.sample())

    or as ``optimization_stepper`` of TorchRL's :class:`~torchrl.trainers.Trainer`, which then needs no optimizer. An
    update first runs the groups without a method, with one forward and one backward pass over the sum of their due
    losses; then the groups with a method, one after the other, each with the weights changed by the preceding ones. A
    parameter is updated only by the group whose optimiser holds it, with all gradients accumulated up to then.

    If a loss or a gradient of a group is not finite, the group changes no weight. The groups of one pass are checked
    together: none of them changes a weight. Groups that came before have changed theirs, since a later group is
    computed with these; groups after it are left out. If the guard skips the update, ``target_updater`` is not stepped
    if it follows a network of a group that was left out.

    Gradients are clipped by group; the Trainer's ``clip_norm`` and ``optimizer`` are ignored. With ``utd_ratio`` a
    Trainer's ``optim_steps_per_batch`` must be 1: each step makes all due updates, none or several, on batches drawn
    from the trainer's replay buffer (without ``utd_ratio``, one update on the given batch). With ``pretrain_steps`` the
    Trainer trains on its replay buffer before the first collection and sends the weights to the collector.

    The constructor of a target updater copies the networks to their targets: make it before restoring a checkpoint.
    ``state_dict()`` holds the optimisers and the counts; the networks, targets included, belong to the loss module.

    Args:
        loss_module: any TorchRL loss whose outputs are scalars by name.
        groups: groups of losses, each with its optimiser.

    Keyword Args:
        target_updater: target updater stepped after every update, regardless of the due losses; see above for skipped
            updates.
        utd_ratio: updates per row written to the buffer; may be a fraction. A row of SMDP transitions is a chunk.
            Defaults to None: the caller determines the number of updates.
        start_after: number of rows written before ``utd_ratio`` starts to count.
        pretrain_steps: number of updates before the first collection, in a Trainer.
        delay_in_pretraining: apply ``every`` in pretraining too. Defaults to False: every update includes all groups.
        compute: function of a batch and the name of a method (or ``None``), called in place of the loss module, for
            example a :class:`~torchrl_flow.training.DataParallelLoss` of it.
        guard: limit on skipped non-finite updates. Defaults to the guard of the current run, which
            :meth:`Run.steps <torchrl_flow.runs.Run.steps>` makes; outside a run, no update may be skipped.

    Raises:
        ValueError: if a number is outside its allowed range, or two groups share a parameter or a loss.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import DDPGLoss
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), ["observation"], ["action"])
        >>> critic = ValueOperator(torch.nn.Bilinear(3, 2, 1), ["observation", "action"], ["state_action_value"])
        >>> loss = DDPGLoss(actor, critic)
        >>> groups = [
        ...     LossGroup("loss_value", torch.optim.Adam(loss.value_network_params.flatten_keys().values())),
        ...     LossGroup("loss_actor", torch.optim.Adam(loss.actor_network_params.flatten_keys().values()), every=8),
        ... ]
        >>> stepper = NamedLossStepper(loss, groups, utd_ratio=0.5)
        >>> stepper.updates_due(21)
        10
    """

    def __init__(
        self,
        loss_module: LossModule,
        groups: Sequence[LossGroup],
        *,
        target_updater: TargetNetUpdater | None = None,
        utd_ratio: float | None = None,
        start_after: int = 0,
        pretrain_steps: int = 0,
        delay_in_pretraining: bool = False,
        compute: Compute | None = None,
        guard: UpdateGuard | None = None,
    ) -> None:
        self.loss_module, self.groups, self.compute, self.guard = loss_module, list(groups), compute, guard
        self.target_updater, self.utd_ratio, self.start_after = target_updater, utd_ratio, start_after
        self.pretrain_steps, self.delay_in_pretraining = pretrain_steps, delay_in_pretraining
        self.num_updates = 0
        """Number of updates, including pretraining."""
        self.num_pretrain_updates = 0
        self._latest: Metrics = {}
        self._reported: tuple[str, ...] | None = None
        self._check()

    def _check(self) -> None:
        if not self.groups:
            raise ValueError("groups must hold at least one LossGroup, got none.")
        if self.utd_ratio is not None and not 0 < self.utd_ratio < math.inf:
            raise ValueError(f"utd_ratio must be positive, or None for no schedule, got {self.utd_ratio}.")
        for name in ("start_after", "pretrain_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        losses = [loss for group in self.groups for loss in group.losses]
        if len(set(losses)) < len(losses):
            raise ValueError(f"groups must have no loss in common, got {losses}.")
        owners: dict[int, str] = {}
        for group in self.groups:
            for parameter in group.parameters:
                if owners.setdefault(id(parameter), group.name) != group.name:
                    raise ValueError(
                        f"the groups {owners[id(parameter)]!r} and {group.name!r} train the same parameter, of shape "
                        f"{list(parameter.shape)}: give it to one optimizer, or put both losses into one group."
                    )
            if group.method is not None and not callable(getattr(self.loss_module, group.method, None)):
                raise ValueError(f"{type(self.loss_module).__name__} has no method {group.method!r}.")

    def update(self, batch: TensorDictBase) -> Metrics:
        """Make one update.

        Args:
            batch: input of the loss module.

        Returns:
            Detached scalars: the outputs of the loss module, and ``grad_norm_<group>`` of groups with clipping.

        Raises:
            ValueError: if the loss module does not return a loss of a group, or the loss is not a scalar.
            NonFiniteError: if a loss or a gradient is NaN or infinite and the guard does not skip the update. The error
                names it, the update and the batch's non-finite entries. The optimisers of that loss and of later
                groups have then made no step.
        """
        return self._update(batch, self._compute)

    def pretrain(self, sample: Callable[[], TensorDictBase], num_updates: int) -> Iterator[Metrics]:
        """Make updates that ``utd_ratio`` does not count, for example on demonstrations before the first collection.

        Args:
            sample: function that returns a batch, such as ``buffer.sample``.
            num_updates: total number of pretraining updates, including earlier ones and those before a restart.

        Yields:
            The metrics of each update.
        """
        while self.num_pretrain_updates < num_updates:
            yield self._update(sample(), self._compute, pretraining=True)

    def updates_due(self, write_count: int) -> int:
        """Return the number of due updates according to ``utd_ratio``.

        Args:
            write_count: number of written rows, a replay buffer's ``write_count``.

        Raises:
            RuntimeError: if there is no ``utd_ratio``.
        """
        if self.utd_ratio is None:
            raise RuntimeError("updates_due needs a utd_ratio: make the stepper with one.")
        rows = max(0, write_count - self.start_after)
        # The small constant prevents a product such as 10 * 0.3 from falling below the intended whole number by
        # rounding.
        return max(0, math.floor(self.utd_ratio * rows + 1e-9) - self.num_updates + self.num_pretrain_updates)

    def _compute(self, batch: TensorDictBase, method: str | None = None) -> Any:
        if self.compute is not None:
            return self.compute(batch, method)
        return self.loss_module(batch) if method is None else getattr(self.loss_module, method)(batch)

    def _update(self, batch: TensorDictBase, compute: Compute, *, pretraining: bool = False) -> Metrics:
        number = self.num_updates + 1
        undelayed = pretraining and not self.delay_in_pretraining
        due = [group for group in self.groups if number > group.warmup and (undelayed or number % group.every == 0)]
        for group in self.groups:
            group.optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        guard = current_guard() if self.guard is None else self.guard
        guard.see(batch)
        together = [group for group in due if group.method is None]
        waiting = [[group] for group in due if group.method is not None]
        waiting = [together, *waiting] if together else waiting
        try:
            while waiting:
                method = waiting[0][0].method
                result = compute(batch) if method is None else compute(batch, method)
                self._minimise(waiting[0], result, metrics, number, batch)
                waiting.pop(0)
        except NonFiniteError as error:
            guard.skip(error)
            for group in self.groups:
                group.optimizer.zero_grad(set_to_none=True)
        skipped = [group for groups in waiting for group in groups]
        if self.target_updater is not None and not (skipped and train_sources(skipped, self.target_updater)):
            self.target_updater.step()
        self.num_updates = number
        self.num_pretrain_updates += pretraining
        self._latest |= metrics
        return metrics

    def _minimise(
        self, groups: Sequence[LossGroup], result: Any, metrics: Metrics, number: int, batch: TensorDictBase
    ) -> None:
        outputs = losses_by_name(result, groups[0].losses)
        due = {loss: scalar_loss(outputs, loss) for group in groups for loss in group.losses}
        require_finite_losses(due, step=number, batch=batch)
        torch.stack(list(due.values())).sum().backward()
        metrics.update({key: value.detach() for key, value in outputs.items() if value.numel() == 1})
        for group in groups:
            norm = gradient_norm(group.parameters, group.max_grad_norm).detach()
            require_finite_norm(norm, group.name, step=number, batch=batch)
            if group.max_grad_norm is not None:
                metrics[f"grad_norm_{group.name}"] = norm
        for group in groups:
            group.optimizer.step()
            if group.target_updater is not None:
                group.target_updater.step()

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDict:
        """Make the due updates in an optimisation step of a Trainer; see the class.

        Returns:
            The same entries in all steps after one collection, as the Trainer's averages require; entries that were not
            computed in this step have their last values.
        """
        count = 1 if self.utd_ratio is None else self.updates_due(_buffer(trainer).write_count)
        sums: dict[str, list[Tensor]] = {}
        for i in range(count):
            batch = sub_batch if i == 0 else _buffer(trainer).sample()
            for key, value in self._update(batch, trainer.compute_loss).items():
                sums.setdefault(key, []).append(value)
        latest = {**self._latest, **{key: _mean_or_last(values) for key, values in sums.items()}}
        if self._reported is None:
            self._reported = tuple(latest)
        return TensorDict({key: latest[key] for key in self._reported}, batch_size=[])

    def register(self, trainer: Trainer, name: str = "optimization_stepper") -> None:
        """Register with a trainer; the trainer calls this method.

        Raises:
            ValueError: if the trainer has another loss module, or lacks a required replay buffer.
        """
        if trainer.loss_module is not self.loss_module:
            raise ValueError("the trainer's loss_module must be the one that the stepper was made with.")
        if (self.utd_ratio is not None or self.pretrain_steps) and trainer.replay_buffer is None:
            raise ValueError("utd_ratio and pretrain_steps need Trainer(replay_buffer=...), to draw batches from.")
        if self.utd_ratio is not None and trainer.optim_steps_per_batch != 1:
            raise ValueError(
                f"utd_ratio={self.utd_ratio} sets the number of updates: optim_steps_per_batch must be 1, got "
                f"{trainer.optim_steps_per_batch}."
            )
        super().register(trainer, name)
        trainer.register_op("pre_optim_steps", self._begin)
        if self.pretrain_steps:
            trainer.register_op("setup", self._pretrain_in_trainer)

    def _begin(self) -> None:
        self._reported = tuple(self._latest) or None

    def _pretrain_in_trainer(self) -> None:
        trainer = self._trainer
        while self.num_pretrain_updates < self.pretrain_steps:
            self._update(_buffer(trainer).sample(), trainer.compute_loss, pretraining=True)
        collector: Any = trainer.collector
        collector.update_policy_weights_()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimisers' states and the counts."""
        updaters = [*(group.target_updater for group in self.groups), self.target_updater]
        return {
            "optimizers": {group.name: group.optimizer.state_dict() for group in self.groups},
            "target_updaters": {str(i): updater.state_dict() for i, updater in enumerate(updaters) if updater},
            "num_updates": self.num_updates,
            "num_pretrain_updates": self.num_pretrain_updates,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`.

        Raises:
            ValueError: if the state belongs to other groups.
        """
        names = [group.name for group in self.groups]
        if sorted(state_dict["optimizers"]) != sorted(names):
            raise ValueError(
                f"the checkpoint has the groups {sorted(state_dict['optimizers'])}, and there are {names}."
            )
        for group in self.groups:
            group.optimizer.load_state_dict(state_dict["optimizers"][group.name])
        updaters = [*(group.target_updater for group in self.groups), self.target_updater]
        for i, updater in enumerate(updaters):
            if updater is not None and str(i) in state_dict["target_updaters"]:
                updater.load_state_dict(state_dict["target_updaters"][str(i)])
        self.num_updates = int(state_dict["num_updates"])
        self.num_pretrain_updates = int(state_dict["num_pretrain_updates"])

    def __repr__(self) -> str:
        groups = ", ".join(f"{'+'.join(group.losses)} every {group.every}" for group in self.groups)
        return f"{type(self).__name__}({groups}; utd_ratio={self.utd_ratio}, {self.num_updates} updates)"


def _mean_or_last(values: list[Tensor]) -> Tensor:
    """Return the mean of each measured metric, and the last value of each count."""
    return torch.stack(values).mean(0) if values[-1].is_floating_point() else values[-1]


def _buffer(trainer: Any) -> Any:
    return trainer.replay_buffer
