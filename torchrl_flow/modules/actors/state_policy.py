"""Policies and critics of state vectors for the offline baselines, with normalisers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, TanhNormal, ValueOperator

from torchrl_flow.modules.config import Config, dense_weights
from torchrl_flow.modules.observation.normalizer import Normalizer

Weights = Mapping[str, Any]
PolicyKind = Literal["deterministic", "gaussian", "normal"]

__all__ = ["PolicyKind", "StatePolicyConfig", "make_observation_value", "make_state_policy", "make_state_values"]


@dataclasses.dataclass(frozen=True)
class StatePolicyConfig(Config):
    """Configuration of the networks of an offline baseline, without their weights.

    Raises:
        ValueError: if the kind is unknown, or a size is below 1 or above its limit
            (:class:`~torchrl_flow.modules.config.Config`).
    """

    state_dim: int
    """D, size of a state."""
    action_dim: int
    """A, size of an action in [-1, 1]."""
    kind: PolicyKind = "deterministic"
    """Kind of the policy: ``deterministic``; ``gaussian``, a tanh-normal distribution; ``normal``, a normal
    distribution around ``tanh`` of the network, whose standard deviation does not depend on the state."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Hidden layers of policy and values."""
    layer_norm: bool = True
    """Apply LayerNorm in critics, which prevents divergence of values for actions outside the data."""
    obs_horizon: int | None = None
    """T, frames of history in an observation ``[*B, T, D]``; None if it has no such dimension."""
    act_horizon: int | None = None
    """H_a, steps of a chunk ``[*B, H_a, A]``; None if an action is ``[*B, A]``."""
    observation_key: str | tuple[str, ...] = "observation"
    """Entry of the states; a tuple if nested."""
    state_bound: float | None = None
    """Bound on the size of normalised states, in standard deviations; None for no bound."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.kind not in (kinds := get_args(PolicyKind)):
            raise ValueError(f"kind must be one of {', '.join(map(repr, kinds))}, got {self.kind!r}.")
        if self.state_bound is not None and not self.state_bound > 0:
            raise ValueError(f"state_bound must be above 0 or None, got {self.state_bound}.")
        if min(self.state_dim, self.action_dim, self.obs_horizon or 1, self.act_horizon or 1, *self.hidden_sizes) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}.")

    @property
    def observation_size(self) -> int:
        """Number of values in an observation."""
        return self.state_dim * (self.obs_horizon or 1)

    @property
    def action_size(self) -> int:
        """Number of values in an action or a chunk."""
        return self.action_dim * (self.act_horizon or 1)

    def _weights(self) -> int:
        return dense_weights([self.observation_size, *self.hidden_sizes, self.action_size])


def _normalizer(config: StatePolicyConfig, statistics: Mapping[str, Tensor] | None) -> Normalizer:
    if statistics is None:
        return Normalizer(config.state_dim, bound=config.state_bound)
    return Normalizer.from_statistics(statistics, mode="meanstd", min_scale=1e-3, bound=config.state_bound)


class _StateMLP(nn.Module):
    """A multi-layer perceptron of normalised states and, if given, actions."""

    def __init__(
        self, config: StatePolicyConfig, normalizer: Normalizer, inputs: int, outputs: int, *, norm: bool = False
    ) -> None:
        super().__init__()
        self.normalizer, self.observation_key = normalizer, config.observation_key
        self.history, self.chunks = config.obs_horizon is not None, config.act_horizon is not None
        hidden, options = list(config.hidden_sizes), {}
        if norm:
            options = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": size} for size in hidden]}
        self.layers = MLP(inputs, outputs, num_cells=hidden, activation_class=nn.ReLU, **options)

    def forward(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        return self.layers(self._inputs(self.normalizer(observation, repr(self.observation_key)), action))

    def _inputs(self, state: Tensor, action: Tensor | None) -> Tensor:
        state = state.flatten(-2) if self.history else state
        if action is None:
            return state
        return torch.cat([state, action.flatten(-2) if self.chunks else action], -1)

    def with_weights(self, weights: Weights, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """Compute :meth:`forward` with other parameters and buffers, without a module call for each layer.

        Args:
            weights: by name, as in the state dict, with a nested mapping for each submodule; or of N networks, if all
                have a leading dimension ``[N]``.
            observation: states.
            action: actions, for critics.

        Returns:
            the output ``[*B, out]``, or ``[N, *B, out]`` of N networks.
        """
        loc, scale = weights["normalizer"]["loc"], weights["normalizer"]["scale"]
        normalise, name = self.normalizer.with_statistics, repr(self.observation_key)
        if loc.ndim == 1:
            return self._layers_with(weights["layers"], self._inputs(normalise(observation, loc, scale, name), action))
        num, ends = loc.shape[0], 2 if self.history else 1
        batch = observation.shape[:-ends]
        states = observation.reshape(-1, *observation.shape[-ends:])
        shape = (num, *([1] * ends), loc.shape[-1])
        states = normalise(states, loc.view(shape), scale.view(shape), name)
        if action is not None:
            action = action.reshape(-1, *action.shape[len(batch) :])
            action = action.expand(num, *action.shape)
        return self._layers_with(weights["layers"], self._inputs(states, action)).unflatten(1, batch)

    def _layers_with(self, weights: Weights, hidden: Tensor) -> Tensor:
        layers: dict[str, Any] = self.layers._modules  # pyright: ignore[reportAssignmentType]
        for name, layer in layers.items():
            own, kind = weights.get(name), type(layer)
            if kind is nn.Linear:
                weight, bias = own["weight"], own["bias"]  # pyright: ignore[reportOptionalSubscript]
                single = weight.ndim == 2
                hidden = F.linear(hidden, weight, bias) if single else torch.baddbmm(bias[:, None], hidden, weight.mT)
            elif kind is nn.LayerNorm:
                weight, bias = own["weight"], own["bias"]  # pyright: ignore[reportOptionalSubscript]
                size = hidden.shape[-1:]
                if weight.ndim == 1:
                    hidden = F.layer_norm(hidden, size, weight, bias, layer.eps)
                else:
                    hidden = torch.addcmul(bias[:, None], F.layer_norm(hidden, size, eps=layer.eps), weight[:, None])
            else:
                # In place: the preceding layers need their inputs for the backward pass, but not this output.
                hidden = F.relu_(hidden)
        return hidden


class _GaussianHead(nn.Module):
    """Location and scale of a tanh-normal distribution; the logarithm of the scale is kept within bounds."""

    def __init__(
        self, net: _StateMLP, chunk: tuple[int, int] | None = None, low: float = -5.0, high: float = 2.0
    ) -> None:
        super().__init__()
        self.net, self.chunk, self.low, self.high = net, chunk, low, high

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.net(observation))

    def with_weights(self, weights: Weights, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Compute :meth:`forward` with other parameters, see :meth:`_StateMLP.with_weights`."""
        return self._split(self.net.with_weights(weights["net"], observation))

    def _split(self, out: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = out.chunk(2, -1)
        if self.chunk is not None:
            loc, log_scale = loc.unflatten(-1, self.chunk), log_scale.unflatten(-1, self.chunk)
        return loc, log_scale.clamp(self.low, self.high).exp()


class _NormalHead(nn.Module):
    """Location ``tanh(net)`` and a scale that is a parameter, whose logarithm is kept within bounds."""

    def __init__(self, net: _BoundedMLP, shape: tuple[int, ...], low: float = -5.0, high: float = 2.0) -> None:
        super().__init__()
        self.net, self.low, self.high = net, low, high
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return self._with_scale(self.net(observation), self.log_scale)

    def with_weights(self, weights: Weights, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Compute :meth:`forward` with other parameters, see :meth:`_StateMLP.with_weights`."""
        return self._with_scale(self.net.with_weights(weights["net"], observation), weights["log_scale"])

    def _with_scale(self, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        return loc, log_scale.clamp(self.low, self.high).exp().expand_as(loc)


class _BoundedMLP(nn.Sequential):
    """A multi-layer perceptron followed by a hyperbolic tangent, whose output is reshaped to a chunk if needed."""

    def with_weights(self, weights: Weights, observation: Tensor) -> Tensor:
        """Compute :meth:`forward` with other parameters, see :meth:`_StateMLP.with_weights`."""
        net: Any = self[0]
        out = net.with_weights(weights["0"], observation)
        for layer in list(self)[1:]:
            out = layer(out)
        return out


def make_state_policy(
    config: StatePolicyConfig, statistics: Mapping[str, Tensor] | None = None
) -> TensorDictModule | ProbabilisticActor:
    """Build a policy from ``observation`` ``[*B, D]`` to ``action`` ``[*B, A]``, whose mode is in [-1, 1].

    Args:
        config: sizes and kind. ``gaussian`` is a tanh-normal distribution whose deterministic action is ``tanh(loc)``.
            ``normal`` is the policy of IQL: its deterministic action ``loc`` is in [-1, 1], its samples are unbounded.
            With ``act_horizon`` an action is a chunk ``[*B, H_a, A]``, and its log-probability is that of the whole
            chunk.
        statistics: ``mean`` and ``std`` of the states, which are stored in the state dict.

    Examples:
        >>> from tensordict import TensorDict
        >>> policy = make_state_policy(StatePolicyConfig(5, 3))
        >>> policy(TensorDict(observation=torch.zeros(4, 5), batch_size=[4]))["action"].shape
        torch.Size([4, 3])
    """
    outputs = 2 * config.action_size if config.kind == "gaussian" else config.action_size
    chunk = None if config.act_horizon is None else (config.act_horizon, config.action_dim)
    net = _StateMLP(config, _normalizer(config, statistics), config.observation_size, outputs)
    event_dims = 1 if chunk is None else 2
    if config.kind == "gaussian":
        head: nn.Module = _GaussianHead(net, chunk)
        # float32's tanh reaches 1, whose inverse is infinite
        options: dict[str, Any] = {"low": -1.0, "high": 1.0, "safe_tanh": True, "event_dims": event_dims}
    else:
        bounded = _BoundedMLP(net, nn.Tanh(), *([] if chunk is None else [nn.Unflatten(-1, chunk)]))
        if config.kind == "deterministic":
            return TensorDictModule(bounded, in_keys=[config.observation_key], out_keys=["action"])
        head, options = _NormalHead(bounded, chunk or (config.action_dim,)), {"event_dim": event_dims}
    return ProbabilisticActor(
        TensorDictModule(head, in_keys=[config.observation_key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal if config.kind == "gaussian" else IndependentNormal,
        distribution_kwargs=options,
        default_interaction_type=InteractionType.DETERMINISTIC,
    )


def make_state_values(
    config: StatePolicyConfig, statistics: Mapping[str, Tensor] | None = None, *, number: int = 2
) -> list[ValueOperator]:
    """Build critics of ``observation`` and ``action`` as a list for TorchRL's losses.

    Args:
        config: sizes of the networks.
        statistics: ``mean`` and ``std`` of the states.
        number: number of critics. The result is a list, because TorchRL copies a single critic and draws new weights
            for it.
    """
    inputs = config.observation_size + config.action_size
    return [
        ValueOperator(
            _StateMLP(config, _normalizer(config, statistics), inputs, 1, norm=config.layer_norm),
            in_keys=[config.observation_key, "action"],
            out_keys=["state_action_value"],
        )
        for _ in range(number)
    ]


def make_observation_value(config: StatePolicyConfig, statistics: Mapping[str, Tensor] | None = None) -> ValueOperator:
    """Build a value network of ``observation``, which writes ``state_value`` ``[*B, 1]``."""
    net = _StateMLP(config, _normalizer(config, statistics), config.observation_size, 1, norm=config.layer_norm)
    return ValueOperator(net, in_keys=[config.observation_key], out_keys=["state_value"])
