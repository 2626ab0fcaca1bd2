"""Base class and mixins of the losses of flows: keys, weights of rows, averaged networks."""

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
from torchrl_flow.functional.flow import dyadic_step_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torchrl_flow.modules import FlowActor, QEnsemble

EncoderGrad = Literal["actor", "critic", "both"]
"""The loss that trains an encoder shared by actor and critic."""
NetworkT = TypeVar("NetworkT", bound=nn.Module)

__all__ = [
    "REDUCTIONS",
    "AveragedActor",
    "AveragedCritic",
    "AveragedNetwork",
    "EncoderGrad",
    "FlowLossModule",
    "SharedEncoder",
    "check_flow_actor",
]

_WRITERS = {
    "action_chunk": "DemoReplayBuffer and MixedReplayBuffer write it",
    "is_demo": "MixedReplayBuffer writes it; without it, leave filter_policy_data out",
    "steps_to_next_obs": "make_chunk_env and the replay buffers of torchrl_flow write it; for single actions it is 1",
}
"""What writes the entries that a batch of another library lacks."""
REDUCTIONS = ("mean", "sum", "none")
"""Reductions of a loss over its rows: mean, sum, or none."""


def check_flow_actor(actor: FlowActor) -> None:
    """Validate that the actor is a flow that ShortCut training fits.

    Raises:
        ValueError: if it is another module, or its ``max_steps`` is no power of two.
    """
    if not hasattr(actor, "max_steps"):
        raise ValueError(
            f"actor_network must be a FlowActor, got a {type(actor).__name__}: build one with make_flow_actor(config)."
        )
    dyadic_step_sizes(actor.max_steps)


class AveragedNetwork(Generic[NetworkT]):
    """Averaged (target) weights of one network of a loss: a call returns a copy; a state dict serves checkpoints.

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
    """Mixin of losses with a flow actor: the averaged actor."""

    @property
    def ema_actor(self) -> AveragedNetwork[FlowActor]:
        """The averaged actor: ``loss.ema_actor()`` returns a copy; its state dict serves checkpoints."""
        return AveragedNetwork(self, "actor_network")  # pyright: ignore[reportArgumentType]


class AveragedCritic:
    """Mixin of losses with a critic: the target critic."""

    @property
    def target_critic(self) -> AveragedNetwork[QEnsemble]:
        """The target critic: ``loss.target_critic()`` returns a copy; its state dict serves checkpoints."""
        return AveragedNetwork(self, "critic_network")  # pyright: ignore[reportArgumentType]


class SharedEncoder:
    """Mixin of losses whose actor and critic may share an encoder: assigns its parameters to one or both.

    A subclass sets ``encoder_grad`` to ``"actor"``, ``"critic"`` or ``"both"``, and ``shared_encoder`` to the result of
    :meth:`shares_encoder`.
    """

    encoder_grad: EncoderGrad
    shared_encoder: bool

    @staticmethod
    def shares_encoder(actor: FlowActor, critic: QEnsemble) -> bool:
        """Return whether the encoders of actor and critic have parameters in common."""
        return not {*actor.encoder.parameters()}.isdisjoint(critic.encoder.parameters())

    def actor_parameters(self) -> Iterator[Parameter]:
        """Yield the actor's parameters; those of a shared encoder are included if ``encoder_grad="actor"``."""
        return self._parameters_of("actor_network", "critic_network" if self.encoder_grad != "actor" else None)

    def critic_parameters(self) -> Iterator[Parameter]:
        """Yield the critic's parameters; those of a shared encoder are included unless ``encoder_grad="actor"``."""
        return self._parameters_of("critic_network", "actor_network" if self.encoder_grad == "actor" else None)

    def _parameters_of(self, network: str, owner: str | None) -> Iterator[Parameter]:
        """Yield the parameters of a network, without those that ``owner`` trains."""
        others = set() if owner is None else {*getattr(self, f"{owner}_params").parameters()}
        return (one for one in getattr(self, f"{network}_params").parameters() if one not in others)


class FlowLossModule(LossModule):
    """Base :class:`~torchrl.objectives.LossModule` of the losses of flows: keys, and importance weights of rows.

    A subclass lists its inputs in ``_make_in_keys`` and its outputs in ``_out_keys``, and computes each of its terms in
    a method. Computations that several losses share are objects that it holds, such as a
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

    def _entry(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """Read an entry that the loss needs.

        Raises:
            KeyError: if the batch has none. The error names what writes it.
        """
        value = tensordict.get(key, None)
        if value is None:
            last: Any = key if isinstance(key, str) else key[-1]
            writer = _WRITERS.get(last, "a batch of transitions has it")
            raise KeyError(
                f"the batch has no {key!r}, which {type(self).__name__} reads; it has "
                f"{sorted(map(str, tensordict.keys(True, True)))}. {writer}. If it has another name, use set_keys."
            )
        return value

    def _row_weights(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor | None:
        """Return the rows' importance weights if the batch has any; the key may be nested."""
        if self.use_prioritized_weights not in (True, "auto"):
            return None
        weights = tensordict.get(self.tensor_keys.priority_weight, None)
        return None if weights is None else weights.reshape(shape)

    def _reduce_rows(self, tensordict: TensorDictBase, rows: Tensor, kept: Tensor | None = None) -> Tensor:
        """Reduce the losses of rows ``[*B]`` with their importance weights, over the rows ``kept`` ``[B]`` if given."""
        row_weights = self._row_weights(tensordict, rows.shape)
        if kept is not None:
            chosen = kept.to(rows.dtype).reshape(rows.shape)
            # If no row is kept, all count with loss 0: the result is a zero with a graph instead of 0 / 0.
            counted = torch.where(kept.any(), chosen, 1.0)
            row_weights = counted if row_weights is None else counted * row_weights
            rows = rows * chosen
        return self._reduce_loss(rows, tensordict, weights=row_weights)

    def _valid_rows(self, tensordict: TensorDictBase, rows: Tensor) -> Tensor | None:
        """Return the flat mask of the rows that TorchRL's validity masks keep; ``None`` without such masks."""
        masks = [tensordict.get(key, None) for key in self._loss_mask_keys()]
        masks = [self._expand_loss_mask(mask, rows).reshape(-1) for mask in masks if mask is not None]
        return functools.reduce(torch.Tensor.logical_and, masks) if masks else None
