"""Groups of losses, each minimised by one optimiser, and their values in the output of a loss module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer
from torchrl.objectives.utils import TargetNetUpdater

__all__ = ["LossGroup", "losses_by_name", "scalar_loss", "train_sources"]


@dataclass
class LossGroup:
    """Losses minimised by one optimiser, and the interval of its updates.

    Args:
        losses: key or keys of the loss module's output; several are summed.
        optimizer: optimiser of the parameters trained by these losses.
        every: number of updates of the stepper per update of this group, such as 8 for one actor update per 8 critic
            updates.
        warmup: number of updates of the stepper before the first update of this group, including pretraining; it delays
            an actor until its critic is trained.
        method: method of the loss module that computes only these losses from a batch, as a tensor, a pair of a tensor
            and metrics, or a TensorDict. These losses are then computed only when they are due. Defaults to the loss
            module's ``forward``, shared by all groups without a method.
        max_grad_norm: clip the gradient of the optimiser's parameters to this norm.
        target_updater: target updater stepped after the optimiser.

    Raises:
        ValueError: if a number is outside its allowed range or no loss is named.
    """

    losses: str | Sequence[str]
    optimizer: Optimizer
    every: int = 1
    warmup: int = 0
    method: str | None = None
    max_grad_norm: float | None = None
    target_updater: TargetNetUpdater | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        self.losses = (self.losses,) if isinstance(self.losses, str) else tuple(self.losses)
        if not self.losses:
            raise ValueError("losses must name at least one output of the loss module, got none.")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}.")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}.")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be positive, or None for no clipping, got {self.max_grad_norm}.")

    @property
    def name(self) -> str:
        """Name of the first loss, without ``loss_``."""
        return self.losses[0].removeprefix("loss_")

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters of the optimiser."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def losses_by_name(result: Any, losses: Sequence[str]) -> dict[str, Tensor]:
    """Return the output of a loss module or of one of its methods as tensors by name.

    Args:
        result: output of the loss module or of one of its methods.
        losses: names of the losses; a single tensor is the value of the only loss.

    Raises:
        ValueError: if the result has another type.
    """
    if isinstance(result, Tensor):
        result = (result, {})
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor) and len(losses) == 1:
        metrics = {} if result[1] is None else dict(result[1].items())
        result = {**metrics, losses[0]: result[0]}
    items = dict(result.items()) if isinstance(result, (Mapping, TensorDictBase)) else None
    if items is None:
        raise ValueError(
            f"a loss must be a TensorDict, a tensor, or a tensor and metrics, got {type(result).__name__}."
        )
    return {key: value for key, value in items.items() if isinstance(value, Tensor)}


def scalar_loss(outputs: Mapping[str, Tensor], loss: str) -> Tensor:
    """Return the loss with the given name.

    Raises:
        ValueError: if there is no such loss, or it is not a scalar.
    """
    if loss not in outputs:
        raise ValueError(f"the loss module gives no {loss!r}; it gives {sorted(outputs)}.")
    if outputs[loss].numel() != 1:
        shape = list(outputs[loss].shape)
        raise ValueError(f"{loss!r} has shape {shape} and must be a scalar: make the loss with reduction='mean'.")
    return outputs[loss].reshape(())


def train_sources(groups: Sequence[LossGroup], updater: TargetNetUpdater) -> bool:
    """Return whether any of the groups trains a network that the targets of an updater follow."""
    sources: Any = updater._sources
    storages = {source.untyped_storage().data_ptr() for source in sources.values(True, True)}
    return any(value.untyped_storage().data_ptr() in storages for group in groups for value in group.parameters)
