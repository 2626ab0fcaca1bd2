"""Search for noise from which a flow reproduces a given action: inversion, retrieval and reversal.

No function draws random numbers: starting points and candidates are arguments. ``decode`` maps noise ``[N, H, A]`` to
the actions that are compared with the target, ``[N, H', A]`` (for example the head of a chunk).

References:
    Wagenmaker et al., "Steering Your Diffusion Policy with Latent Space Reinforcement Learning",
    https://arxiv.org/abs/2506.15799
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_flow.functional.ensemble import take_best
from torchrl_flow.functional.flow import VelocityFn

DecodeFn = Callable[[Tensor], Tensor]
"""``noise [N, H, A] -> action [N, H', A]``."""

__all__ = ["DecodeFn", "alias_residual", "best_alias", "invert_noise", "reverse_flow"]


def alias_residual(decoded: Tensor, target: Tensor) -> Tensor:
    """Return the root mean square distance between decoded actions and target actions.

    Args:
        decoded: ``[*B, H', A]``.
        target: target actions, of a shape that broadcasts to that of ``decoded``.

    Returns:
        ``[*B]``.

    Examples:
        >>> import torch
        >>> alias_residual(torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
        tensor([1.])
    """
    return (decoded - target).square().mean((-2, -1)).sqrt()


def best_alias(candidates: Tensor, decoded: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each row, the candidate whose decoded action is nearest to the target, and its residual.

    Args:
        candidates: noise ``[B, S, H, A]``.
        decoded: decoded actions of the candidates, ``[B, S, H', A]``.
        target: target actions ``[B, H', A]``.

    Returns:
        noise ``[B, H, A]`` and residual ``[B]``.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> candidates = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
        >>> noise, residual = best_alias(candidates, 2 * candidates, torch.full((1, 1, 1), 1.5))
        >>> noise.item(), residual.item()
        (1.0, 0.5)
    """
    if decoded.shape[:1] != target.shape[:1] or decoded.shape[2:] != target.shape[1:]:
        raise ValueError(f"decoded {list(decoded.shape)} must be [B, S, *{list(target.shape[1:])}] for the target.")
    residual = alias_residual(decoded, target.unsqueeze(1))
    return take_best(-residual, candidates), residual.amin(1)


def invert_noise(
    decode: DecodeFn,
    target: Tensor,
    start: Tensor,
    *,
    num_steps: int = 30,
    lr: float = 0.1,
    final_lr: float = 0.01,
    prior_coef: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Minimise ``|| decode(w) - a ||^2`` over ``w`` by Adam, for all rows and starts in one batch.

    For each row the best point of all iterations and starts is returned, so that more steps never increase the
    residual.

    Args:
        decode: differentiable function from ``[B, S, H, A]`` to ``[B, S, H', A]``.
        target: target actions ``[B, H', A]``.
        start: starting points ``[B, S, H, A]``.
        num_steps: Adam steps.
        lr: learning rate at the start; it falls geometrically to ``final_lr``.
        final_lr: learning rate at the end.
        prior_coef: weight of ``|| w ||^2 / (H A)``, a penalty that keeps ``w`` in the region of high prior density.

    Returns:
        noise ``[B, H, A]`` and residual ``[B]`` (root mean square).

    Raises:
        ValueError: if a number or shape does not fit.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[[3.0]]])
        >>> noise, residual = invert_noise(lambda w: 2 * w, target, torch.zeros(1, 2, 1, 1), num_steps=60)
        >>> bool((noise - 1.5).abs() < 0.05)
        True
    """
    if num_steps < 1 or not 0 < final_lr <= lr:
        raise ValueError(f"num_steps >= 1 and 0 < final_lr <= lr are needed, got {num_steps}, {final_lr}, {lr}.")
    if start.ndim != 4 or start.shape[0] != target.shape[0]:
        raise ValueError(f"start must have shape [B, S, H, A] with B = {target.shape[0]}, got {list(start.shape)}.")
    w = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    best, lowest = start.detach().clone(), start.new_full(start.shape[:2], math.inf)
    for i in range(num_steps + 1):
        with torch.enable_grad():
            error = (decode(w) - target.unsqueeze(1)).square().mean((-2, -1))
            loss = (error + prior_coef * w.square().mean((-2, -1))).sum()
        better = error.detach() < lowest
        best = torch.where(better[..., None, None], w.detach(), best)
        lowest = torch.where(better, error.detach(), lowest)
        if i == num_steps:
            break
        optimizer.param_groups[0]["lr"] = lr * (final_lr / lr) ** (i / max(1, num_steps - 1))
        (w.grad,) = torch.autograd.grad(loss, [w])
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    noise = take_best(-lowest, best)
    return noise, lowest.amin(1).sqrt()


def reverse_flow(
    velocity_fn: VelocityFn, x_1: Tensor, *, num_steps: int, iterations: int = 3, shortcut: bool = False
) -> Tensor:
    """Invert the K Euler steps of :func:`~torchrl_flow.functional.integrate`: map data back to noise.

    Each step solves ``x_{i+1} = x_i + (1/K) v(x_i, i/K)`` for ``x_i`` by fixed-point iterations, each of which
    multiplies the error by the field's Lipschitz constant divided by K. Plain backward Euler integration would recover
    the start of the forward steps only up to an error of order 1/K.

    Args:
        velocity_fn: the velocity field.
        x_1: data ``[B, *E]``.
        num_steps: K, at least 1.
        iterations: fixed-point iterations per step, at least 1.
        shortcut: give the network the step size ``1/K``; ``False`` for the instantaneous velocity.

    Returns:
        the point at time 0, ``[B, *E]``.

    Raises:
        ValueError: if a number is below 1.

    Examples:
        >>> import torch
        >>> growth = lambda x, t, d: x
        >>> reverse_flow(growth, torch.full((1, 1), 2.25), num_steps=2, iterations=30)  # 1.5 ** -2
        tensor([[1.]])
    """
    if num_steps < 1 or iterations < 1:
        raise ValueError(f"num_steps and iterations must be at least 1, got {num_steps} and {iterations}.")
    dt = 1.0 / num_steps
    d = x_1.new_full(x_1.shape[:1], dt if shortcut else 0.0)
    x = x_1
    for i in reversed(range(num_steps)):
        t, end = x_1.new_full(x_1.shape[:1], i * dt), x
        for _ in range(iterations):
            x = end - dt * velocity_fn(x, t, d)
    return x
