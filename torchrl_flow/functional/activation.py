"""The Mish activation, by the fastest form on each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mish"]

_LINEAR_ABOVE = 20.0
"""Above this value, Mish equals the identity bit for bit; the limit also prevents overflow of the exponential."""


def _gate(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``tanh(softplus(x))`` and ``exp(x)``, from one exponential."""
    e = torch.exp(x.clamp(max=_LINEAR_ABOVE))
    n = e * (e + 2)
    return n / (n + 2), e


def _gate_alone(x: Tensor) -> Tensor:
    """Return the gate without a gradient, with as few new tensors as possible."""
    e = x.clamp(max=_LINEAR_ABOVE).exp_()
    n = (e + 2).mul_(e)
    return n.div_(n + 2)


def _value(x: Tensor) -> Tensor:
    """Return Mish without a gradient."""
    return _gate_alone(x).mul_(x)


class _Mish(torch.autograd.Function):
    """Mish that saves its gate for the backward pass, which then needs one exponential and two new tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = _gate_alone(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *kept = ctx.saved_tensors
        if kept and not torch.is_grad_enabled():
            (gate,) = kept
            slope = torch.sigmoid(x).mul_(x).mul_((gate * gate).neg_().add_(1))
            return slope.add_(gate).mul_(grad)
        # Differentiable, for second derivatives.
        gate, e = _gate(x)
        return grad * (gate + x * (1 - gate * gate) * (e / (1 + e)))


_SMALL = 4096
"""Up to this number of elements PyTorch's single kernel is faster than several kernels."""


class _TransformedMish(_Mish):
    """The same function for the transforms of ``torch.func``; signature inspection costs 60 us per call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x * _gate(x)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


def _is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` is active; PyTorch has only a private function for this."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)  # pyright: ignore[reportPrivateUsage]
    return active is None or active()


def mish(x: Tensor) -> Tensor:
    """Compute ``x tanh(softplus(x))`` elementwise.

    On a CPU, PyTorch's kernel computes a logarithm, an exponential and a hyperbolic tangent per element and takes as
    long as the preceding matrix product. This function needs one exponential: a third to a half of the time, equal
    within 1e-6. PyTorch's kernel is used on other devices, for few elements, in half precision and inside
    ``torch.compile``.

    Args:
        x: any shape.

    References:
        Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", https://arxiv.org/abs/1908.08681

    Examples:
        >>> import torch
        >>> mish(torch.tensor([-1.0, 0.0, 1.0, 50.0]))
        tensor([-0.3034,  0.0000,  0.8651, 50.0000])
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.mish(x)
    transformed = _is_transformed()
    if not transformed and x.numel() <= _SMALL:
        return F.mish(x)
    if not transformed and not (x.requires_grad and torch.is_grad_enabled()):
        return _value(x)
    function = _TransformedMish if transformed else _Mish
    return cast("Callable[[Tensor], Tensor]", function.apply)(x)  # pyright: ignore[reportUnknownMemberType]
