"""Checks for non-finite numbers in losses, gradients, batches, networks' weights and state dicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.checkpoint import CheckpointError

from torchrl_flow.training.guard import UpdateGuard, current_guard
from torchrl_flow.util.numbers import NonFiniteError, first_implausible

__all__ = [
    "NonFiniteError",
    "buffers_of",
    "gradient_step",
    "non_finite_entry",
    "require_finite",
    "require_finite_losses",
    "require_finite_modules",
    "require_finite_norm",
    "require_finite_rollout",
]


def non_finite_entries(data: TensorDictBase) -> list[str]:
    """List the entries of a batch that are not finite or above 1e9 in absolute value, each with its first such row.

    Examples:
        >>> from tensordict import TensorDict
        >>> non_finite_entries(TensorDict(x=torch.tensor([0.0, float("nan")]), batch_size=[2]))
        ["'x' (row 1: nan)"]
    """
    found = []
    for key, value in data.items(True, True):
        wrong = first_implausible(value) if isinstance(value, Tensor) else None
        if wrong is not None:
            place, _ = wrong
            name = key if isinstance(key, str) else ".".join(key)
            found.append(f"{name!r} (row {place[0] if place else 0}: {value[place].item()})")
    return found


def require_finite_rollout(
    data: TensorDictBase, what: str, *, row: str = "the sub-environment", resumable: bool = True
) -> None:
    """Raise an error for collected data that are not finite, before a network learns from them or a buffer stores them.

    Args:
        data: transitions, whose first dimension the rows of the error count.
        what: name of the data in the error, such as ``"Rollout 3"``.
        row: meaning of a row.
        resumable: advise to continue from the last checkpoint.

    Raises:
        NonFiniteError: if an entry is not finite or above 1e9 in absolute value. The error names its key and its row.
    """
    entries = non_finite_entries(data)
    if entries:
        raise NonFiniteError(
            f"{what}: {', '.join(entries)} is not finite or above 1e9 in size, where the row is {row}. This rollout is "
            "discarded: correct the environment, or the policy if 'action' is among them"
            + (", and continue from the last checkpoint (--resume)." if resumable else ".")
        )


def _cause(batch: TensorDictBase | None) -> str:
    if batch is None:
        return "Look at the data, the learning rate and the loss's inputs."
    # Losses of TorchRL write the TD error into their batch for priorities: it is an effect, not a cause.
    entries = [entry for entry in non_finite_entries(batch) if not entry.startswith("'td_error'")]
    if entries:
        return f"The batch holds {', '.join(entries)}: correct or remove these rows of the data or the environment."
    return "The batch is finite: the networks have diverged. Lower the learning rate, or clip gradients harder."


def total_of(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of losses as a scalar with their graph."""
    if len(losses) == 1:
        return next(iter(losses.values())).reshape(())
    return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()


def require_finite_losses(losses: Mapping[str, Tensor], *, step: int, batch: TensorDictBase | None = None) -> None:
    """Raise an error for losses that are NaN or infinite, before their gradient is computed.

    Args:
        losses: scalars by name.
        step: update number, for the message.
        batch: batch of the losses, which is searched for the cause.

    Raises:
        NonFiniteError: if the check fails. The error names the losses, the step, and the keys and rows of the batch.
    """
    # A single check: the sum is finite only if all terms are, and an overflow of the sum is an error too.
    if math.isfinite(total_of(losses).item()):
        return
    named = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items() if not loss.isfinite().all())
    raise NonFiniteError(f"Update {step}: {named or 'the sum of the losses'} is not finite. {_cause(batch)}")


def require_finite_norm(norm: Tensor, name: str, *, step: int, batch: TensorDictBase | None = None) -> None:
    """Raise an error for a gradient whose norm is NaN or infinite, before the optimiser uses it.

    Args:
        norm: norm of the gradient.
        name: name of the optimiser or loss, for the message.
        step: update number, for the message.
        batch: batch of the gradient, which is searched for the cause.

    Raises:
        NonFiniteError: if the check fails. The error names the gradient, the step, and the keys and rows of the batch.
    """
    if not math.isfinite(norm.item()):
        raise NonFiniteError(f"Update {step}: the gradient of {name} has norm {norm.item():g}. {_cause(batch)}")


def gradient_norm(parameters: Iterable[Tensor], max_norm: float | None = None) -> Tensor:
    """Return the norm of the joint gradient of all parameters, and clip the gradient to ``max_norm``."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


def gradient_step(
    losses: Mapping[str, Tensor],
    optimizers: Mapping[str, Optimizer],
    *,
    step: int,
    batch: TensorDictBase | None = None,
    max_grad_norm: float | None = None,
    guard: UpdateGuard | None = None,
) -> dict[str, Tensor]:
    """Minimise the sum of losses by one step of each optimiser; nothing changes if a number is not finite.

    Args:
        losses: scalars by name.
        optimizers: optimisers by name.
        step: update number, for messages.
        batch: batch of the losses, which is searched for the cause of a non-finite loss.
        max_grad_norm: clip the gradient of each optimiser's parameters to this norm.
        guard: limit on skipped updates. Defaults to the guard of the current run; outside a run, no update may be
            skipped.

    Returns:
        ``gradient_norm_<name>`` of each optimiser, before clipping; NaN for a skipped update.

    Raises:
        NonFiniteError: if a loss or a gradient is NaN or infinite and the guard does not skip the update; no optimiser
            has then made a step.

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> list(gradient_step({"loss": net(torch.ones(1, 1)).square().sum()}, {"net": sgd}, step=1))
        ['gradient_norm_net']
    """
    guard = current_guard() if guard is None else guard
    guard.see(batch)
    try:
        return _step(losses, optimizers, step=step, batch=batch, max_grad_norm=max_grad_norm)
    except NonFiniteError as error:
        guard.skip(error)
        for optimizer in optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return {f"gradient_norm_{name}": torch.tensor(torch.nan) for name in optimizers}


def _step(
    losses: Mapping[str, Tensor],
    optimizers: Mapping[str, Optimizer],
    *,
    step: int,
    batch: TensorDictBase | None,
    max_grad_norm: float | None,
) -> dict[str, Tensor]:
    total = total_of(losses)
    if not math.isfinite(total.item()):
        require_finite_losses(losses, step=step, batch=batch)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    total.backward()
    metrics: dict[str, Tensor] = {}
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm(parameters, max_grad_norm)
        require_finite_norm(norm, name, step=step, batch=batch)
        metrics[f"gradient_norm_{name}"] = norm.detach()
    for optimizer in optimizers.values():
        optimizer.step()
    return metrics


def require_finite_modules(modules: Mapping[str, Any], *, doing: str) -> None:
    """Raise an error for a parameter that is NaN or infinite, or a buffer that is NaN (bounds may be infinite).

    Args:
        modules: modules by role. An object whose ``state_dict`` has no tensors is ignored.
        doing: consequence of the error, for the message, such as ``"the checkpoint of step 10 is not written"``.

    Raises:
        NonFiniteError: if the check fails. The error names role and entry.
    """
    for role, module in modules.items():
        if not isinstance(module, nn.Module):
            continue
        entry = non_finite_entry(
            dict(module.named_parameters()) | dict(module.named_buffers()), unbounded=buffers_of(module)
        )
        if entry is not None:
            raise NonFiniteError(f"{role}: {entry} holds NaN or infinite numbers, so {doing}.")


def buffers_of(module: Any) -> set[str]:
    """Return the names of a module's buffers, which may be infinite (bounds, masks); empty for other objects."""
    return {name for name, _ in module.named_buffers()} if isinstance(module, nn.Module) else set()


def non_finite_entry(state: Any, *, unbounded: Collection[str] = (), prefix: str = "") -> str | None:
    """Return the name of the first entry of a state dict that contains NaN or an infinity, or None.

    Args:
        state: tensors in nested mappings and sequences.
        unbounded: names of entries that may contain infinities. The bounds of actions (``action_low``, ``action_high``)
            are infinite on unbounded sides, and are always allowed.
        prefix: prefix of the names.

    Examples:
        >>> layer = torch.nn.Linear(1, 1)
        >>> non_finite_entry(layer.state_dict()) is None
        True
        >>> _ = layer.bias.data.fill_(torch.nan)
        >>> non_finite_entry(layer.state_dict())
        'bias'
    """
    if isinstance(state, Tensor):
        return None if _is_sound(state, prefix, prefix in unbounded) else prefix
    if isinstance(state, Mapping):
        items = ((str(key), value) for key, value in state.items())
    elif isinstance(state, (list, tuple)):
        items = ((str(key), value) for key, value in enumerate(state))
    else:
        return prefix if isinstance(state, float) and state != state else None
    names = ((f"{prefix}.{key}" if prefix else key, value) for key, value in items)
    found = (non_finite_entry(value, unbounded=unbounded, prefix=name) for name, value in names)
    return next((name for name in found if name is not None), None)


def _is_sound(value: Tensor, name: str, unbounded: bool) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return True
    if value.is_meta:
        return False
    if value.layout == torch.strided:
        # One element of an expanded dimension is enough: a small file may declare a huge tensor.
        for dim, stride in enumerate(value.stride()):
            if stride == 0 and value.shape[dim] > 1:
                value = value.narrow(dim, 0, 1)
        if value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 1):
            return False
    if unbounded:
        return not bool(value.isnan().any())
    last = name.rsplit(".", 1)[-1]
    if last in ("action_low", "action_high"):
        wrong = torch.inf if last == "action_low" else -torch.inf
        return not bool((value.isnan() | (value == wrong)).any())
    return bool(value.isfinite().all())


def require_finite(state: Any, what: str, path: Path, *, unbounded: Collection[str] = ()) -> None:
    """Raise an error for a state dict that contains NaN or an infinity.

    Args:
        state: the state dict.
        what: name of the state dict in the error, such as ``role 'policy'``.
        path: file of the state dict.
        unbounded: names of entries that may contain infinities.

    Raises:
        CheckpointError: if the check fails. The error names role, entry and file.
    """
    entry = non_finite_entry(state, unbounded=unbounded)
    if entry is not None:
        raise CheckpointError(
            f"{path}: {what} holds values that are not finite in {entry!r}: the training that wrote it had failed. "
            "Take an earlier checkpoint."
        )
