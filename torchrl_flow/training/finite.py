"""Refuse numbers that are not finite: in a loss, a gradient, a batch or the weights of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "NonFiniteError",
    "gradient_step",
    "require_finite_losses",
    "require_finite_modules",
    "require_finite_norm",
]


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a weight is NaN or infinite; nothing was changed or saved after it was seen."""


def non_finite_entries(data: TensorDictBase) -> list[str]:
    """Name the entries of a batch that are not finite, each with the first row where.

    Examples:
        >>> from tensordict import TensorDict
        >>> non_finite_entries(TensorDict(x=torch.tensor([0.0, float("nan")]), batch_size=[2]))
        ["'x' (row 1: nan)"]
    """
    found = []
    for key, value in data.items(True, True):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        bad = ~value.isfinite()
        if bad.any():
            first = bad.reshape(bad.shape[0], -1).any(1).nonzero()[0].item() if bad.ndim else 0
            name = key if isinstance(key, str) else ".".join(key)
            found.append(f"{name!r} (row {first}: {value[bad].reshape(-1)[0].item()})")
    return found


def _cause(batch: TensorDictBase | None) -> str:
    if batch is None:
        return "Look at the data, the learning rate and the loss's inputs."
    # The TD error is what a loss of TorchRL writes into its batch, for priorities: an effect and no cause.
    entries = [entry for entry in non_finite_entries(batch) if not entry.startswith("'td_error'")]
    if entries:
        return f"The batch holds {', '.join(entries)}: correct or remove these rows of the data or the environment."
    return "The batch is finite: the networks have diverged. Lower the learning rate, or clip gradients harder."


def require_finite_losses(losses: Mapping[str, Tensor], *, step: int, batch: TensorDictBase | None = None) -> None:
    """Refuse losses that are NaN or infinite, before their gradient is computed.

    Args:
        losses: scalars by name.
        step: number of the update, for the message.
        batch: what they were computed from, searched for the cause.

    Raises:
        NonFiniteError: naming the losses, the step, and the keys and rows of the batch.
    """
    # One number to look at: the sum is finite unless a term is not, and an overflow of the sum is no less an error.
    if torch.stack([loss.detach().reshape(()).float() for loss in losses.values()]).sum().isfinite():
        return
    named = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items() if not loss.isfinite().all())
    raise NonFiniteError(f"Update {step}: {named or 'the sum of the losses'} is not finite. {_cause(batch)}")


def require_finite_norm(norm: Tensor, name: str, *, step: int, batch: TensorDictBase | None = None) -> None:
    """Refuse a gradient whose norm is NaN or infinite, before the optimiser uses it.

    Args:
        norm: of the gradient.
        name: of the optimiser or loss, for the message.
        step: number of the update, for the message.
        batch: what the gradient was computed from, searched for the cause.

    Raises:
        NonFiniteError: naming the gradient, the step, and the keys and rows of the batch.
    """
    if not norm.isfinite():
        raise NonFiniteError(f"Update {step}: the gradient of {name} has norm {norm.item():g}. {_cause(batch)}")


def gradient_norm(parameters: Iterable[Tensor], max_norm: float | None = None) -> Tensor:
    """Return the norm of the gradient of all parameters together, and clip the gradient to ``max_norm``."""
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
) -> dict[str, Tensor]:
    """Minimise the sum of some losses by one step of each optimiser; change nothing if a number is not finite.

    Args:
        losses: scalars by name.
        optimizers: by name.
        step: number of the update, for messages.
        batch: what the losses were computed from; searched for the cause of a non-finite loss.
        max_grad_norm: clip the gradient of each optimiser's parameters to this norm.

    Returns:
        ``gradient_norm_<name>`` of each optimiser, before clipping.

    Raises:
        NonFiniteError: if a loss or a gradient is NaN or infinite; no optimiser has made a step then.

    Examples:
        >>> net = nn.Linear(1, 1)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> list(gradient_step({"loss": net(torch.ones(1, 1)).square().sum()}, {"net": sgd}, step=1))
        ['gradient_norm_net']
    """
    require_finite_losses(losses, step=step, batch=batch)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    torch.stack([loss.reshape(()) for loss in losses.values()]).sum().backward()
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
    """Refuse networks with a parameter that is NaN or infinite, or a buffer that is NaN (bounds may be infinite).

    Args:
        modules: by role; what has no ``state_dict`` of tensors is passed over.
        doing: what is refused, for the message, such as ``"the checkpoint of step 10 is not written"``.

    Raises:
        NonFiniteError: naming role and entry.
    """
    for role, module in modules.items():
        if not isinstance(module, nn.Module):
            continue
        bad = [name for name, value in module.named_parameters() if not value.detach().isfinite().all()]
        bad += [name for name, value in module.named_buffers() if value.detach().isnan().any()]
        if bad:
            raise NonFiniteError(f"{role}: {bad[0]} holds NaN or infinite numbers, so {doing}.")
