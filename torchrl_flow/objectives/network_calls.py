"""Calls of a loss's networks with its parameters, without TensorDict's overhead around each call.

``params.to_module(network)`` takes 60 us for a network of three layers, and a ``TensorDictModule`` 90 us, because it
checks at each output whether pandas is installed. With two hidden layers of 256 units and 256 rows this equals the time
of the arithmetic. Inside ``torch.compile`` the overhead vanishes, and TensorDict's own functions are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn

Weights = Mapping[str, Any]
"""Parameters and buffers by name, with a nested mapping for each submodule."""
Entries = Mapping[Any, Tensor]
"""Tensors by key."""

__all__ = [
    "Entries",
    "Weights",
    "call",
    "distribution",
    "entries_of_next",
    "evaluate",
    "evaluate_members",
    "members",
    "paired_leaves",
    "plain",
    "running",
]


def running(params: Any, network: nn.Module) -> AbstractContextManager[Any]:
    """Run a network with other parameters inside a block, as ``params.to_module(network)`` does.

    Args:
        params: a TensorDict of parameters and buffers, or an item of the result of :func:`members`.
        network: the network; its own parameters are restored after the block.
    """
    if torch.compiler.is_compiling():
        return params.to_module(network, preserve_module_state=False)
    return _Running(params, network)


class _Running(AbstractContextManager[None]):
    def __init__(self, params: TensorDictBase | Weights, network: nn.Module) -> None:
        self._params, self._network = params, network
        self._own: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> None:
        _put(self._network, _by_name(self._params), self._own)

    def __exit__(self, *error: object) -> None:
        for place, name, value in reversed(self._own):
            place[name] = value
        self._own.clear()


def _by_name(params: Any) -> Weights:
    """Return the dictionary in which a TensorDict stores its entries; ``items()`` takes ten times as long."""
    if isinstance(params, TensorDictParams):
        params = params._param_td  # pyright: ignore[reportPrivateUsage]
    if isinstance(params, dict):
        return params
    kept = getattr(params, "_tensordict", None)
    return dict(params.items()) if kept is None else kept


def _put(network: nn.Module, weights: Weights, own: list[tuple[dict[str, Any], str, Any]]) -> None:
    """Put weights into a network, and record the replaced ones."""
    parameters, buffers, modules = network._parameters, network._buffers, network._modules
    for name, value in weights.items():
        if isinstance(value, Tensor):
            place: dict[str, Any] = parameters if name in parameters else buffers
            own.append((place, name, place[name]))
            place[name] = value
        else:
            child: Any = modules[name]
            _put(child, _by_name(value), own)


def plain(params: TensorDictBase | Weights) -> Weights:
    """Return the entries of a TensorDict as nested dictionaries."""
    if isinstance(params, dict):
        return params
    return {name: one if isinstance(one, Tensor) else plain(one) for name, one in _by_name(params).items()}


def paired_leaves(first: Any, second: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of tensors with the same key in two TensorDicts."""
    others, found = _by_name(second), []
    for name, value in _by_name(first).items():
        pair = value, others[name]
        found += [pair] if isinstance(value, Tensor) else paired_leaves(*pair)
    return found


def members(params: Any) -> list[Any]:
    """Return each ensemble member's parameters from a stack of batch size ``[num]``; one member if it is empty."""
    if not params.ndim:
        return [params]
    if torch.compiler.is_compiling():
        return [params[i] for i in range(params.shape[0])]
    return _split(params, params.shape[0])


def _split(params: TensorDictBase | Weights, number: int) -> list[Any]:
    parts: list[dict[str, Any]] = [{} for _ in range(number)]
    for name, value in _by_name(params).items():
        # One unbind per parameter: its backward pass stacks the members' gradients once.
        split = value.unbind(0) if isinstance(value, Tensor) else _split(value, number)
        for part, piece in zip(parts, split):
            part[name] = piece
    return parts


def distribution(network: Any, params: Any, tensordict: Any, given: Entries | None = None, repeat: int = 0) -> Any:
    """Return the distribution of a probabilistic module, run with other parameters, for a batch ``[*B]``.

    Args:
        network: sequence of modules whose last one samples, as in TorchRL's ``ProbabilisticActor``.
        params: a TensorDict of parameters and buffers.
        tensordict: the batch, which is not changed.
        given: entries that replace those of the batch.
        repeat: number of copies of each row's distribution, ``[*B, repeat]``; 0 for none.
    """
    data = _inputs(network, tensordict, given)
    batch, last = data.batch_size, network[-1]
    if len(network) == 2 and _takes_weights(network[0]):
        first = network[0]
        inputs = [data[one] for one in first.in_keys]
        found = first.module.with_weights(plain(params)["module"]["0"]["module"], *inputs)
        data = TensorDict(dict(zip(first.out_keys, found)), batch)
    else:
        with running(params, network):
            data = network.get_dist_params(data)
    if repeat:
        dim, shape = len(batch), (*batch, repeat)
        found = {one: data[one].unsqueeze(dim) for one in last.in_keys}
        found = {one: value.expand(*shape, *value.shape[dim + 1 :]) for one, value in found.items()}
        data = TensorDict(found, shape)
    return last.get_dist(data)


def evaluate(network: Any, params: Any, tensordict: Any, key: NestedKey, given: Entries | None = None) -> Tensor:
    """Return an output entry of a TensorDict module, run with other parameters, for a batch, which is not changed.

    A method ``with_weights(weights, *inputs)`` of the module, as in ``modules/actors/state_policy.py``, is used if
    present; other modules hold the parameters during the call.

    Args:
        network: the module.
        params: a TensorDict of parameters and buffers, or an item of the result of :func:`members`.
        tensordict: the batch.
        key: key of the entry.
        given: entries that replace those of the batch.
    """
    if _takes_weights(network):
        return _with_weights(network, params, tensordict, key, given)
    with running(params, network):
        return call(network, tensordict, key, given)


def evaluate_members(
    network: Any, params: Any, tensordict: Any, key: NestedKey, given: Entries | None = None
) -> Tensor:
    """Return an output entry of each ensemble member for a batch, ``[num, *B, ...]``; see :func:`evaluate`.

    Args:
        network: the module whose copies are the members.
        params: their stacked parameters.
        tensordict: the batch.
        key: key of the entry.
        given: entries that replace those of the batch.
    """
    rows, batch = tensordict.numel(), tensordict.batch_size
    if not (_takes_weights(network) and params.ndim):
        return torch.stack([evaluate(network, one, tensordict, key, given) for one in members(params)])
    if rows <= _ROWS_AT_ONCE:
        return _with_weights(network, params, tensordict, key, given)
    data = _inputs(network, tensordict, given).reshape(rows)
    pieces = data.split(_ROWS_AT_ONCE)
    values = [torch.cat([_with_weights(network, one, piece, key, None) for piece in pieces]) for one in members(params)]
    return torch.stack(values).unflatten(1, batch)


_ROWS_AT_ONCE = 1024
"""Rows whose activations fit in a core's cache; larger batches in pieces of this size take a third less time."""


def _takes_weights(network: Any) -> bool:
    alone = not torch.compiler.is_compiling() and _calls_its_module_alone(network)
    return alone and hasattr(network.module, "with_weights")


def _with_weights(network: Any, params: Any, tensordict: Any, key: NestedKey, given: Entries | None) -> Tensor:
    given = given or {}
    inputs = [given[one] if one in given else tensordict[one] for one in network.in_keys]
    found = network.module.with_weights(plain(params)["module"], *inputs)
    return found[network.out_keys.index(key)] if isinstance(found, tuple) else found


def call(network: Any, tensordict: Any, key: NestedKey, given: Entries | None = None) -> Tensor:
    """Return an output entry of a TensorDict module for a batch, which is not changed.

    Args:
        network: the module.
        tensordict: the batch.
        key: key of the entry.
        given: entries that replace those of the batch.
    """
    given = given or {}
    if _calls_its_module_alone(network):
        found = network.module(*(given[one] if one in given else tensordict[one] for one in network.in_keys))
        return found[network.out_keys.index(key)] if isinstance(found, tuple) else found
    return network(_inputs(network, tensordict, given))[key]


def _inputs(network: Any, tensordict: Any, given: Entries | None) -> Any:
    """Return a module's inputs from a batch, with the given entries in place of those of the batch."""
    return tensordict.select(*network.in_keys, strict=False).update(given or {})


def _calls_its_module_alone(network: Any) -> bool:
    """Return whether a call of the network only reads its keys, calls the wrapped module and writes its keys."""
    # A subclass that overrides forward, for example to project on a spec, is called as a whole.
    plain = isinstance(network, TensorDictModule) and type(network).forward is TensorDictModule.forward
    hooks = plain and (network._forward_hooks or network._forward_pre_hooks)
    return plain and not hooks and network._kwargs is None and network.method is None and not network.method_kwargs  # pyright: ignore


def entries_of_next(tensordict: Any, keys: list[NestedKey]) -> dict[Any, Tensor]:
    """Return the entries of the next step of a batch; a constant entry is stored at the root only."""
    following = tensordict["next"]
    found = {key: following.get(key, None) for key in keys}
    return {key: value for key, value in found.items() if value is not None}
