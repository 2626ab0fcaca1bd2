"""An ensemble of action-value networks of a state and an action chunk."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_flow.functional.activation import mish
from torchrl_flow.functional.ensemble import EnsembleReduction, reduce_ensemble
from torchrl_flow.modules.observation.encoders import ObservationEncoder
from torchrl_flow.modules.observation.normalizer import Normalizer

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.flow import FlowActor

EnsembleCompute = Literal["auto", "loop", "batched"]
"""How an ensemble's members are computed: in a loop, batched, or by the faster method of the device."""
EnsembleInit = Literal["orthogonal", "default"]
"""Initial weights of an ensemble: orthogonal, or those of ``torch.nn.Linear``."""
EnsembleActivation = Literal["mish", "tanh", "relu"]
"""Activation after each hidden layer of an ensemble."""
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"mish": mish, "tanh": torch.tanh, "relu": torch.relu}

__all__ = ["EnsembleActivation", "EnsembleCompute", "EnsembleInit", "QEnsemble"]


class _StackedLinear(nn.Module):
    """N linear layers whose parameters are stacked; each member is initialised independently."""

    def __init__(self, num: int, size_in: int, size_out: int, *, init: EnsembleInit, gain: float) -> None:
        super().__init__()
        self.init, self.gain = init, gain
        self.weight = nn.Parameter(torch.empty(num, size_out, size_in))
        self.bias = nn.Parameter(torch.empty(num, size_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Redraw the weights of all members."""
        bound = self.weight.shape[-1] ** -0.5
        with torch.no_grad():
            for weight, bias in zip(self.weight, self.bias):
                if self.init == "orthogonal":
                    nn.init.orthogonal_(weight, self.gain)
                    bias.zero_()
                else:
                    weight.uniform_(-bound, bound)
                    bias.uniform_(-bound, bound)


class _StackedLayerNorm(nn.Module):
    """N layer normalisations whose parameters are stacked."""

    def __init__(self, num: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num, size))
        self.bias = nn.Parameter(torch.zeros(num, size))

    def reset_parameters(self) -> None:
        """Set weights to 1 and biases to 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map ``[num, B, in]`` to ``[num, B, out]`` by each member's layer."""
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class QEnsemble(TensorDictModuleBase):
    """Values ``[num_qs, *B, 1]`` of executed action chunks by an ensemble of MLPs (Linear, LayerNorm, activation).

    The members share only the encoded observation; their initial weights are independent. Their parameters are stacked,
    ``[num_qs, ...]``, and the state dict does not depend on ``compute``.

    Reads the encoder's observations ``[*B, T, ...]`` and ``action`` ``[*B, H_a, A]`` in the environment's units, which
    are normalised inside. Returns a TensorDict of batch size ``[num_qs, *B]`` with ``state_action_value``, whose other
    entries are views of the input's; with a ``reduction`` it instead writes ``state_action_value`` ``[*B, 1]`` into the
    input.

    Args:
        encoder: observation encoder; pass the actor's own encoder to share it.

    Keyword Args:
        action_dim: A.
        act_horizon: H_a, the executed steps of a chunk.
        num_qs: number of members.
        hidden_sizes: widths of the hidden layers.
        activation: ``"mish"``, ``"tanh"`` or ``"relu"``.
        action_normalizer: normaliser of size A. Defaults to the identity.
        init: ``"orthogonal"`` (gain sqrt(2), 1 in the last layer, biases 0) or ``"default"`` (that of
            ``nn.Linear``).
        compute: ``"loop"``, one member after the other; ``"batched"``, batched matrix products; ``"auto"``, the loop
            on a CPU, where it is faster, batched elsewhere.
        reduction: reduction of the output, see :func:`~torchrl_flow.functional.reduce_ensemble`; ``None`` returns all
            members.
        num_min_qs: size of the random subset of members for ``"min"``; a new subset is drawn at each call.
        kappa: weight of the standard deviation of ``"ucb"``, mean + kappa std: a negative weight is pessimistic, a
            positive one optimistic.
        action_key: key of the chunk.
        value_key: key of the output.

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import ObservationEncoder
        >>> critic = QEnsemble(ObservationEncoder(state_shape=(2, 5)), action_dim=3, act_horizon=4)
        >>> data = TensorDict(observation=torch.zeros(6, 2, 5), action=torch.zeros(6, 4, 3), batch_size=[6])
        >>> critic(data)["state_action_value"].shape
        torch.Size([10, 6, 1])
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        *,
        action_dim: int,
        act_horizon: int,
        num_qs: int = 10,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        activation: EnsembleActivation = "mish",
        action_normalizer: Normalizer | None = None,
        init: EnsembleInit = "orthogonal",
        compute: EnsembleCompute = "auto",
        reduction: EnsembleReduction | None = None,
        num_min_qs: int = 2,
        kappa: float = -1.0,
        action_key: NestedKey = "action",
        value_key: NestedKey = "state_action_value",
    ) -> None:
        self.action_key, self.value_key = action_key, value_key
        self.in_keys = [*encoder.in_keys, action_key]  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [value_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        sizes = {"action_dim": action_dim, "act_horizon": act_horizon, "num_qs": num_qs}
        sizes |= {f"hidden_sizes[{i}]": size for i, size in enumerate(hidden_sizes)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if not 1 <= num_min_qs <= num_qs:
            raise ValueError(f"num_min_qs must lie between 1 and num_qs={num_qs}, got {num_min_qs}.")
        for name, value, allowed in (
            ("init", init, ("orthogonal", "default")),
            ("activation", activation, tuple(_ACTIVATIONS)),
            ("compute", compute, ("auto", "loop", "batched")),
            ("reduction", reduction, (None, "min", "mean", "ucb")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
        self.action_dim, self.act_horizon, self.num_qs = action_dim, act_horizon, num_qs
        self.hidden_sizes, self.init, self.compute = tuple(hidden_sizes), init, compute
        self.activation: EnsembleActivation = activation
        self.reduction: EnsembleReduction | None = reduction
        self.num_min_qs, self.kappa = num_min_qs, kappa
        self.encoder = encoder
        self.action_normalizer = action_normalizer or Normalizer(action_dim)
        if self.action_normalizer.loc.shape != (action_dim,):
            size = self.action_normalizer.loc.shape[0]
            raise ValueError(f"action_normalizer must be of size action_dim={action_dim}, got {size}.")
        widths = [encoder.out_features + act_horizon * action_dim, *hidden_sizes]
        self.linears = nn.ModuleList(
            _StackedLinear(num_qs, a, b, init=init, gain=2**0.5) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(_StackedLayerNorm(num_qs, width) for width in hidden_sizes)
        self.head = _StackedLinear(num_qs, widths[-1], 1, init=init, gain=1.0)

    def start_near_zero(self) -> QEnsemble:
        """Scale the weights of the last layer by 0.01, and return the ensemble.

        With sparse rewards true values are near 0, but the values of a new network have a magnitude of about 1. A
        policy would follow these random differences, and the TD targets would retain them.
        """
        self.head.weight.data.mul_(0.01)
        return self

    @classmethod
    def for_actor(
        cls,
        actor: FlowActor,
        *,
        share_encoder: bool = False,
        num_qs: int = 10,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        activation: EnsembleActivation = "mish",
        init: EnsembleInit = "orthogonal",
        compute: EnsembleCompute = "auto",
    ) -> QEnsemble:
        """Build the critic of an actor's executed chunks, with the actor's normalisers.

        Args:
            actor: flow actor.
            share_encoder: use the actor's encoder itself; False uses a copy, including the weights.
            num_qs: see the class.
            hidden_sizes: see the class.
            activation: see the class.
            init: see the class.
            compute: see the class.
        """
        return cls(
            actor.encoder if share_encoder else copy.deepcopy(actor.encoder),
            action_dim=actor.action_dim,
            act_horizon=actor.act_horizon,
            num_qs=num_qs,
            hidden_sizes=hidden_sizes,
            activation=activation,
            action_normalizer=copy.deepcopy(actor.action_normalizer),
            init=init,
            compute=compute,
            action_key=actor.action_key,
        )

    def q_values(self, features: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Return the values of all or selected members.

        Args:
            features: encoded observations ``[B, C]``.
            action: executed chunks ``[B, H_a, A]``, or several for each observation, ``[B, S, H_a, A]``.
            members: indices of the members to compute, ``[M]``; ``None`` for all.

        Returns:
            ``[num_qs, B, 1]`` or ``[num_qs, B, S, 1]``, with M in place of ``num_qs`` if members are given.

        Raises:
            ValueError: if a shape does not fit.
        """
        chunk = (self.act_horizon, self.action_dim)
        if action.ndim not in (3, 4) or action.shape[0] != features.shape[0] or tuple(action.shape[-2:]) != chunk:
            raise ValueError(
                f"the action must have shape [*B, act_horizon, action_dim] = [{features.shape[0]}, {chunk[0]}, "
                f"{chunk[1]}], or [B, S, H_a, A] for S candidates a row, got {list(action.shape)}."
            )
        lead = action.shape[:-2]
        if action.ndim == 4:
            features = features.unsqueeze(1).expand(*lead, -1)
        x = torch.cat([features, self.action_normalizer(action).flatten(-2)], -1).flatten(0, -2)
        loop = self.compute == "loop" or (self.compute == "auto" and x.device.type == "cpu")
        params: list[tuple[Tensor, Tensor]] = [
            (layer.weight, layer.bias)  # pyright: ignore[reportAssignmentType]
            for layer in (*self.linears, *self.norms, self.head)
        ]
        if members is not None:
            params = [(weight.index_select(0, members), bias.index_select(0, members)) for weight, bias in params]
        return (self._loop if loop else self._batched)(x, params).unflatten(1, lead)

    def _batched(self, x: Tensor, params: list[tuple[Tensor, Tensor]]) -> Tensor:
        depth = len(self.norms)
        activation = _ACTIVATIONS[self.activation]
        x = x.expand(params[0][0].shape[0], *x.shape)
        for linear, (scale, shift) in zip(params[:depth], params[depth:-1]):
            x = F.layer_norm(_linear(x, *linear), scale.shape[-1:])
            x = activation(torch.addcmul(shift.unsqueeze(1), x, scale.unsqueeze(1)))
        return _linear(x, *params[-1])

    def _loop(self, x: Tensor, stacked: list[tuple[Tensor, Tensor]]) -> Tensor:
        # One unbind per parameter: its backward pass stacks the members' gradients once.
        params = [(weight.unbind(0), bias.unbind(0)) for weight, bias in stacked]
        depth = len(self.norms)
        activation = _ACTIVATIONS[self.activation]
        values = []
        for member in range(len(params[0][0])):
            hidden = x
            for (weight, bias), (scale, shift) in zip(params[:depth], params[depth:-1]):
                hidden = F.linear(hidden, weight[member], bias[member])
                hidden = activation(F.layer_norm(hidden, hidden.shape[-1:], scale[member], shift[member]))
            values.append(F.linear(hidden, params[-1][0][member], params[-1][1][member]))
        return torch.stack(values)

    def reduce(self, q: Tensor) -> Tensor:
        """Reduce the members' values ``[num_qs, *B]`` to ``[*B]`` by the ensemble's ``reduction``."""
        if self.reduction is None:
            raise RuntimeError("this ensemble has no reduction: construct it with reduction='min', 'mean' or 'ucb'.")
        # Drawn only for the random subset: vmap raises an error for random draws.
        draws = torch.rand(self.num_qs, device=q.device) if self.reduction == "min" else None
        return reduce_ensemble(q, self.reduction, draws=draws, num_min_qs=self.num_min_qs, kappa=self.kappa)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute ``state_action_value``; see the class for the output.

        Raises:
            ValueError: if a shape does not fit.
        """
        batch = self.encoder.batch_shape(tensordict)
        action = tensordict[self.action_key]
        if action.shape[:-2] != batch:
            raise ValueError(
                f"{self.action_key!r} must have shape [*B, act_horizon, action_dim] = "
                f"{[*batch, self.act_horizon, self.action_dim]}, got {list(action.shape)}."
            )
        features = self.encoder(*self.encoder.preprocess(tensordict))
        q = self.q_values(features, action.reshape(-1, *action.shape[-2:])).reshape(self.num_qs, *batch, 1)
        if self.reduction is not None:
            return tensordict.set(self.value_key, self.reduce(q))
        lead = (self.num_qs, *tensordict.batch_size)
        out = TensorDict(batch_size=lead).update(tensordict.expand(*lead))
        return out.set(self.value_key, q)
