"""Hooks and checked updates of TorchRL's trainers for chunk policies, and a collector for steered flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.objectives import LossModule
from torchrl.trainers import Trainer

from torchrl_flow.modules import SteeredFlowActor
from torchrl_flow.training.finite import require_finite_rollout
from torchrl_flow.training.loss_groups import LossGroup
from torchrl_flow.training.rollouts import finished_success
from torchrl_flow.training.steppers import NamedLossStepper

__all__ = ["ChunkHooks", "SteeredCollector", "with_finite_steps"]

Evaluate = Callable[[], Mapping[str, float]]
TrainerT = TypeVar("TrainerT", bound=Trainer)


class ChunkHooks:
    """Hooks of a trainer: counts of environment steps, schedules, success rates, and evaluations.

    A frame of the trainer is a chunk. The hooks count the executed steps, log them with the success of the finished
    episodes, and call the schedules after the updates of a rollout. An evaluation is a function with a separate
    environment and seeds, so that its data do not enter the replay buffer.

    Args:
        schedules: functions of the number of environment steps, called before the first rollout and after the updates
            of each rollout, such as ``ReinFlowPPOLoss.set_env_steps``.
        evaluate: function that returns metrics by name, such as ``lambda: evaluate(env, policy, range(20)).metrics()``.
        eval_every: rollouts between evaluations; 0 for none.

    Raises:
        ValueError: if ``eval_every`` is negative, or above 0 without ``evaluate``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> noise = {}
        >>> hooks = ChunkHooks([lambda steps: noise.update(sigma=1 / (1 + steps))])
        >>> rollout = TensorDict({"next": {"steps_to_next_obs": torch.tensor([[4], [3]])}}, batch_size=[2])
        >>> _ = hooks.count(rollout)
        >>> hooks.schedule()
        >>> hooks.env_steps, noise
        (7, {'sigma': 0.125})
    """

    def __init__(
        self,
        schedules: Sequence[Callable[[int], Any]] = (),
        evaluate: Evaluate | None = None,
        *,
        eval_every: int = 0,
    ) -> None:
        if eval_every < 0:
            raise ValueError(f"eval_every must be at least 0, got {eval_every}.")
        if eval_every and evaluate is None:
            raise ValueError(f"eval_every={eval_every} needs a function to call: give evaluate, or eval_every=0.")
        self.schedules, self.evaluate, self.eval_every = tuple(schedules), evaluate, eval_every
        self.env_steps = 0
        """Number of environment steps."""
        self.rollouts = 0
        """Number of rollouts."""
        self._success: dict[str, Any] = {}

    def count(self, batch: TensorDictBase) -> TensorDictBase:
        """Count the executed steps of a rollout ``[*N]``, and the successes of its finished episodes.

        Raises:
            NonFiniteError: if a number of the rollout is not finite or above 1e9 in absolute value. The error names its
                key and its row, which is the sub-environment of a rollout ``[N, T]``.
        """
        row = "the sub-environment" if batch.ndim > 1 else "the chunk"
        require_finite_rollout(batch, f"Rollout {self.rollouts + 1}", row=row, resumable=False)
        self.rollouts += 1
        self.env_steps += int(batch["next", "steps_to_next_obs"].sum())
        success = finished_success(batch) if ("next", "done") in batch else {}
        self._success = {name: value.item() for name, value in success.items()}
        return batch

    def log(self, batch: TensorDictBase | None = None) -> dict[str, Any]:
        """Return the logged values of the last counted rollout, stored because other hooks may drop its entries."""
        return {"env_steps": self.env_steps, **self._success}

    def schedule(self) -> None:
        """Call the schedules."""
        for schedule in self.schedules:
            schedule(self.env_steps)

    def evaluated(self, batch: TensorDictBase | None = None) -> dict[str, float] | None:
        """Return the metrics of an evaluation if one is due, otherwise None."""
        if self.evaluate is None or not self.eval_every or self.rollouts % self.eval_every:
            return None
        return {f"eval/{name.removeprefix('eval/')}": float(value) for name, value in self.evaluate().items()}

    def register(self, trainer: Trainer, name: str = "chunk_hooks") -> None:
        """Add the hooks to the trainer, and the counts to its saved state.

        Register it before other hooks of ``batch_process`` that drop entries.
        """
        trainer.register_op("setup", self.schedule)
        trainer.register_op("batch_process", self.count)
        trainer.register_op("pre_steps_log", self.log)
        trainer.register_op("post_steps", self.schedule)
        trainer.register_op("post_steps_log", self.evaluated)
        trainer.register_module(name, self)

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"env_steps": self.env_steps, "rollouts": self.rollouts}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Restore the counts, and call the schedules."""
        self.env_steps, self.rollouts = int(state_dict["env_steps"]), int(state_dict["rollouts"])
        self.schedule()


def with_finite_steps(trainer: TrainerT) -> TrainerT:
    """Let a :class:`NamedLossStepper` make the updates of a trainer, which change no weight if a number is not finite.

    An update is that of TorchRL: a step of the trainer's optimiser on the sum of all losses, with its ``clip_norm``.
    TorchRL does not check that the losses and the gradient are finite. Trainers such as ``PPOTrainer`` and
    ``SACTrainer`` take no ``optimization_stepper``, so that this function sets it afterwards.

    Args:
        trainer: trainer with an optimiser and a loss module that lists its losses in ``out_keys``.

    Returns:
        The same trainer.

    Raises:
        ValueError: if the trainer has a stepper or no optimiser, or clips the values of the gradient.
    """
    optimizer, loss_module = trainer.optimizer, cast(LossModule, trainer.loss_module)
    if trainer.optimization_stepper is not None or optimizer is None:
        raise ValueError(
            "the trainer must have an optimizer and no optimization_stepper, got "
            f"optimizer={type(optimizer).__name__} and "
            f"optimization_stepper={type(trainer.optimization_stepper).__name__}: a NamedLossStepper already checks."
        )
    if trainer.clip_norm is not None and not trainer.clip_grad_norm:
        raise ValueError("clip_grad_norm must be True, got False: the stepper clips the norm of the gradient.")
    losses = [key for key in loss_module.out_keys if isinstance(key, str) and key.startswith("loss")]
    stepper = NamedLossStepper(loss_module, [LossGroup(losses, optimizer, max_grad_norm=trainer.clip_norm)])
    trainer.optimization_stepper = stepper
    stepper.register(trainer)
    return trainer


class SteeredCollector(Collector):
    """A :class:`~torchrl.collectors.Collector` that refuses every policy other than a steered flow.

    The weights of the latent policy alone, which ``SACTrainer`` and ``PPOTrainer`` send, are accepted by every
    collector of a :class:`~torchrl_flow.modules.SteeredFlowActor`.

    Args:
        create_env_fn: environment, or function that makes it, as in TorchRL's collector.
        policy: the steered flow.
        **kwargs: further options of TorchRL's collector.

    Raises:
        ValueError: if the policy is not a steered flow.
    """

    def __init__(self, create_env_fn: Any, policy: SteeredFlowActor, **kwargs: Any) -> None:
        if not isinstance(policy, SteeredFlowActor):
            raise ValueError(f"policy must be a SteeredFlowActor, got a {type(policy).__name__}: use Collector.")
        super().__init__(create_env_fn, policy, **kwargs)
