"""What all losses of flows have beside their terms: keys, weights of rows, averaged networks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import Parameter
from torchrl.objectives import LossModule

from torchrl_flow.functional.checks import check_one_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchrl_flow.modules import FlowActor, QEnsemble

EncoderGrad = Literal["actor", "critic", "both"]
"""Which loss trains an encoder that actor and critic share."""
NetworkT = TypeVar("NetworkT", bound=nn.Module)

__all__ = [
    "REDUCTIONS",
    "AveragedActor",
    "AveragedCritic",
    "AveragedNetwork",
    "EncoderGrad",
    "FlowLossModule",
    "SharedEncoder",
]

REDUCTIONS = ("mean", "sum", "none")
"""What a loss may make of its rows: their mean, their sum, or nothing."""


class AveragedNetwork(Generic[NetworkT]):
    """The averaged (target) weights of one network of a loss: a copy when it is called, a state dict for checkpoints.

    Args:
        loss_module: the loss whose target parameters are the average.
        name: the network's name in the loss.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> from torchrl_flow.objectives import ShortCutFlowLoss
        >>> loss = ShortCutFlowLoss(make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5)))
        >>> loss.ema_actor.load_state_dict(loss.ema_actor.state_dict())
        >>> loss.ema_actor().training
        False
    """

    def __init__(self, loss_module: LossModule, name: str) -> None:
        self._loss_module, self._name = loss_module, name

    def _copy(self) -> Any:
        return copy.deepcopy(getattr(self._loss_module, self._name))

    @property
    def _params(self) -> TensorDictParams:
        return getattr(self._loss_module, f"target_{self._name}_params")

    def __call__(self) -> NetworkT:
        """Return a copy of the network that holds the averaged weights, in evaluation mode."""
        network = self._copy()
        network.load_state_dict(self._params.data.flatten_keys(".").to_dict())
        return network.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the averaged network."""
        return self().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the averaged weights from a state dict of the network."""
        network = self._copy()
        network.load_state_dict(state_dict)
        averaged = TensorDictParams(TensorDict.from_module(network), no_convert=True)
        self._params.data.update_(averaged.data)


class AveragedActor:
    """Gives a loss with a flow actor the average of it."""

    @property
    def ema_actor(self) -> AveragedNetwork[FlowActor]:
        """The averaged actor: ``loss.ema_actor()`` is a copy, its state dict is for checkpoints."""
        return AveragedNetwork(self, "actor_network")  # pyright: ignore[reportArgumentType]


class AveragedCritic:
    """Gives a loss with a critic its target critic."""

    @property
    def target_critic(self) -> AveragedNetwork[QEnsemble]:
        """The target critic: ``loss.target_critic()`` is a copy, its state dict is for checkpoints."""
        return AveragedNetwork(self, "critic_network")  # pyright: ignore[reportArgumentType]


class SharedEncoder:
    """Tells a loss which of its parameters the actor trains and which the critic, where both may share an encoder.

    A loss that inherits from it sets ``encoder_grad`` to ``"actor"``, ``"critic"`` or ``"both"``, and
    ``shared_encoder`` to what :meth:`shares_encoder` returns.
    """

    encoder_grad: EncoderGrad
    shared_encoder: bool

    @staticmethod
    def shares_encoder(actor: FlowActor, critic: QEnsemble) -> bool:
        """Tell whether actor and critic have parameters of their encoders in common."""
        return not {*actor.encoder.parameters()}.isdisjoint(critic.encoder.parameters())

    def actor_parameters(self) -> Iterator[Parameter]:
        """Yield the actor's parameters; with ``encoder_grad="actor"`` a shared encoder is among them."""
        return self._parameters_of("actor_network", "critic_network" if self.encoder_grad != "actor" else None)

    def critic_parameters(self) -> Iterator[Parameter]:
        """Yield the critic's parameters; unless ``encoder_grad="actor"`` a shared encoder is among them."""
        return self._parameters_of("critic_network", "actor_network" if self.encoder_grad == "actor" else None)

    def _parameters_of(self, network: str, owner: str | None) -> Iterator[Parameter]:
        """Yield the parameters of a network, without those that ``owner`` trains."""
        others = set() if owner is None else {*getattr(self, f"{owner}_params").parameters()}
        return (one for one in getattr(self, f"{network}_params").parameters() if one not in others)


class FlowLossModule(LossModule):
    """A :class:`~torchrl.objectives.LossModule` without a term: keys, and importance weights of rows.

    A subclass says what it reads in ``_make_in_keys`` and what it writes in ``_out_keys``, computes each of its terms
    in a method, and holds what several losses compute alike, such as a
    :class:`~torchrl_flow.objectives.ShortCutTerm`.

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Raises:
        ValueError: if the reduction is unknown.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts.

        Attributes:
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, reduction: str = "mean") -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] = []
        super().__init__()
        check_one_of("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def _make_in_keys(self) -> list[NestedKey]:
        raise NotImplementedError

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss needs."""
        if self._in_keys is None:
            self._in_keys = self._make_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    @property
    def out_keys(self) -> list[NestedKey]:
        """Keys that the loss writes."""
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[NestedKey]) -> None:
        self._out_keys = values

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._in_keys = None

    def _row_weights(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor | None:
        """Return the rows' importance weights, where the batch has any; nested keys included."""
        if self.use_prioritized_weights not in (True, "auto"):
            return None
        weights = tensordict.get(self.tensor_keys.priority_weight, None)
        return None if weights is None else weights.reshape(shape)

    def _reduce_rows(self, tensordict: TensorDictBase, rows: Tensor, kept: Tensor | None = None) -> Tensor:
        """Reduce the losses of rows ``[*B]`` with their importance weights; over the rows ``kept`` ``[B]`` if given."""
        row_weights = self._row_weights(tensordict, rows.shape)
        if kept is not None:
            chosen = kept.to(rows.dtype).reshape(rows.shape)
            # Where no row is kept all count, each with loss 0: a zero with a graph instead of 0 / 0.
            counted = torch.where(kept.any(), chosen, 1.0)
            row_weights = counted if row_weights is None else counted * row_weights
            rows = rows * chosen
        return self._reduce_loss(rows, tensordict, weights=row_weights)

    def _valid_rows(self, tensordict: TensorDictBase, rows: Tensor) -> Tensor | None:
        """Return which rows TorchRL's validity masks leave in the losses, flat; ``None`` where there is no mask."""
        masks = [tensordict.get(key, None) for key in self._loss_mask_keys()]
        masks = [self._expand_loss_mask(mask, rows).reshape(-1) for mask in masks if mask is not None]
        return functools.reduce(torch.Tensor.logical_and, masks) if masks else None
