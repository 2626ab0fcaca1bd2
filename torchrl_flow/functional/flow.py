"""Straight-line flows between noise and action chunks: interpolation, targets and Euler sampling.

Symbols follow the papers: ``x_0`` noise, ``x_1`` data, ``x_t = (1 - t) x_0 + t x_1``, velocity ``x_1 - x_0``, ``d`` the
size of a sampling step. No function draws random numbers: noise and times are arguments.

References:
    Lipman et al., "Flow Matching for Generative Modeling", https://arxiv.org/abs/2210.02747
    Frans et al., "One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_flow.functional.checks import check_at_least, check_fraction, check_same_shape, check_shape

VelocityFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_t [B, *E], t [B], d [B]) -> velocity [B, *E]``."""

__all__ = [
    "VelocityFn",
    "consistency_rows",
    "dyadic_step_sizes",
    "euler_step",
    "integrate",
    "interpolate",
    "is_power_of_two",
    "masked_mean_square",
    "part_means",
    "select_dyadic_steps",
    "shortcut_target",
    "shortcut_times",
    "velocity_target",
]


def is_power_of_two(value: int) -> bool:
    """Return whether ``value`` is 1, 2, 4, 8, ...

    Examples:
        >>> [n for n in range(10) if is_power_of_two(n)]
        [1, 2, 4, 8]
    """
    return value >= 1 and value & (value - 1) == 0


def _per_row(name: str, value: Tensor, x: Tensor) -> Tensor:
    """View per-row scalars ``[B]`` in a shape that broadcasts with ``x [B, *E]``."""
    if value.shape != x.shape[:1]:
        raise ValueError(f"{name} must hold one value per row, shape {tuple(x.shape[:1])}, got {tuple(value.shape)}.")
    return value.reshape(-1, *([1] * (x.ndim - 1)))


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """Return the point ``x_t = (1 - t) x_0 + t x_1`` of the straight path from noise to data.

    Args:
        x_0: noise ``[B, *E]``.
        x_1: data ``[B, *E]``.
        t: time in [0, 1], ``[B]``.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> interpolate(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.25, 1.0]))[:, 0]
        tensor([0.2500, 1.0000])
    """
    check_same_shape("[B, *E]", x_0=x_0, x_1=x_1)
    t = _per_row("t", t, x_0)
    return (1 - t) * x_0 + t * x_1


def velocity_target(x_0: Tensor, x_1: Tensor) -> Tensor:
    """Return the velocity ``x_1 - x_0`` of the straight path, which does not depend on time.

    Args:
        x_0: noise ``[B, *E]``.
        x_1: data ``[B, *E]``.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape("[B, *E]", x_0=x_0, x_1=x_1)
    return x_1 - x_0


def euler_step(x: Tensor, velocity: Tensor, dt: Tensor | float) -> Tensor:
    """Return ``x + dt * velocity``.

    Args:
        x: point ``[B, *E]``.
        velocity: velocity at the point ``[B, *E]``.
        dt: step, a number or one per row ``[B]``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    check_same_shape("[B, *E]", x=x, velocity=velocity)
    if isinstance(dt, Tensor):
        dt = _per_row("dt", dt, x)
    return x + dt * velocity


def dyadic_step_sizes(max_steps: int) -> list[float]:
    """Return the step sizes ``[1, 1/2, ..., 2/M]`` on which ShortCut self-consistency is trained.

    A step of size ``d`` is trained to equal two steps of size ``d / 2``, hence the smallest one is ``2/M``.

    Args:
        max_steps: M, the number of steps of the finest sampler; a power of two, at least 2.

    Raises:
        ValueError: if ``max_steps`` is not a power of two of at least 2.

    Examples:
        >>> dyadic_step_sizes(8)
        [1.0, 0.5, 0.25]
    """
    if max_steps < 2 or not is_power_of_two(max_steps):
        raise ValueError(
            f"max_steps must be a power of two and at least 2 (2, 4, 8, 16, ...), got {max_steps}: a step is "
            "defined by two half steps, down to steps of 1 / max_steps."
        )
    return [2.0**-i for i in range(max_steps.bit_length() - 1)]


def select_dyadic_steps(u_step: Tensor, u_time: Tensor, *, max_steps: int) -> tuple[Tensor, Tensor]:
    """Map uniform draws to step sizes ``d`` and times ``t``, multiples of ``d`` in ``[0, 1 - d]``.

    Args:
        u_step: uniform draws in [0, 1), ``[B]``, that choose ``d`` among :func:`dyadic_step_sizes`.
        u_time: uniform draws in [0, 1), ``[B]``, that choose ``t`` on the grid of ``d``.
        max_steps: M, a power of two.

    Returns:
        ``(d, t)``, both ``[B]``.

    Examples:
        >>> import torch
        >>> d, t = select_dyadic_steps(torch.tensor([0.0, 0.9]), torch.tensor([0.9, 0.6]), max_steps=8)
        >>> d.tolist(), t.tolist()
        ([1.0, 0.25], [0.0, 0.5])
    """
    check_same_shape("[B]", u_step=u_step, u_time=u_time)
    levels = len(dyadic_step_sizes(max_steps))
    level = (u_step * levels).floor().clamp(max=levels - 1)
    d = torch.exp2(-level)
    cells = torch.exp2(level)
    t = (u_time * cells).floor().clamp(max=cells - 1) * d
    return d, t


def shortcut_times(u_time: Tensor, u_step: Tensor, rows: Tensor, *, max_steps: int) -> tuple[Tensor, Tensor]:
    """Return times and step sizes of a batch whose rows train self-consistency or flow matching.

    Args:
        u_time: uniform draws in [0, 1), ``[B]``: the time itself, or its position on the grid of ``d``.
        u_step: uniform draws in [0, 1), ``[B]``, that choose ``d``.
        rows: indices of the self-consistency rows, see :func:`consistency_rows`.
        max_steps: M, a power of two.

    Returns:
        ``(t, d)``, both ``[B]``: those of :func:`select_dyadic_steps` in ``rows``, and ``u_time`` and 0 in the other
        rows.

    Raises:
        ValueError: if the shapes differ, or M is not a power of two.

    Examples:
        >>> import torch
        >>> u_time, u_step = torch.tensor([0.6, 0.6]), torch.tensor([0.9, 0.9])
        >>> shortcut_times(u_time, u_step, torch.tensor([1]), max_steps=8)
        (tensor([0.6000, 0.5000]), tensor([0.0000, 0.2500]))
    """
    d, t = select_dyadic_steps(u_step, u_time, max_steps=max_steps)
    return u_time.index_copy(0, rows, t[rows]), torch.zeros_like(d).index_copy(0, rows, d[rows])


def shortcut_target(
    velocity_fn: VelocityFn,
    x_t: Tensor,
    t: Tensor,
    d: Tensor,
    *,
    max_steps: int,
    clip: float | None = None,
) -> Tensor:
    """Return the mean velocity of two half steps, the self-consistency target of a ShortCut flow.

    ``v_1 = v(x_t, t, d/2)``, ``x' = x_t + (d/2) v_1``, ``v_2 = v(x', t + d/2, d/2)``; the target is
    ``(v_1 + v_2) / 2``. Half steps of the finest size ``1/M`` use the instantaneous velocity (``d = 0``).

    Args:
        velocity_fn: velocity of the teacher; call it under ``no_grad`` and with the averaged weights.
        x_t: points ``[B, *E]``.
        t: times ``[B]``.
        d: step sizes ``[B]``, dyadic.
        max_steps: M, a power of two.
        clip: bound on the magnitude of each component; ``None`` for no bound.

    Returns:
        the target velocity ``[B, *E]``.

    Examples:
        >>> import torch
        >>> field = lambda x, t, d: torch.ones_like(x)
        >>> x, t, d = torch.zeros(2, 3), torch.zeros(2), torch.ones(2)
        >>> bool((shortcut_target(field, x, t, d, max_steps=8) == 1).all())
        True
    """
    half = d / 2
    half_arg = torch.where(half <= 1.0 / max_steps, torch.zeros_like(half), half)
    v_1 = velocity_fn(x_t, t, half_arg)
    v_2 = velocity_fn(euler_step(x_t, v_1, half), t + half, half_arg)
    target = (v_1 + v_2) / 2
    return target if clip is None else target.clamp(-clip, clip)


def integrate(velocity_fn: VelocityFn, x_0: Tensor, *, num_steps: int, shortcut: bool = True) -> Tensor:
    """Map noise to data by K Euler steps ``x <- x + (1/K) v(x, i/K, 1/K)``, i = 0 .. K-1.

    Args:
        velocity_fn: the velocity field.
        x_0: noise ``[B, *E]``.
        num_steps: K, at least 1.
        shortcut: give the network the step size ``1/K``; ``False`` for the instantaneous velocity (``d = 0``), for a K
            without a trained step size.

    Returns:
        the point at time 1, ``[B, *E]``.

    Raises:
        ValueError: if ``num_steps`` is below 1.

    Examples:
        >>> import torch
        >>> growth = lambda x, t, d: x
        >>> integrate(growth, torch.ones(1, 1), num_steps=2)
        tensor([[2.2500]])
    """
    check_at_least("num_steps", num_steps, 1)
    dt = 1.0 / num_steps
    d = x_0.new_full(x_0.shape[:1], dt if shortcut else 0.0)
    x = x_0
    for i in range(num_steps):
        x = euler_step(x, velocity_fn(x, x_0.new_full(x_0.shape[:1], i * dt), d), dt)
    return x


def masked_mean_square(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return, per row, the mean squared error over the unmasked chunk steps and all action dimensions.

    Args:
        error: ``[B, H, A]``.
        mask: ``[B, H]`` bool, True where a step counts. A row with no such step gives 0.

    Returns:
        ``[B]``. The entries of masked steps, NaN included, affect neither the value nor the gradient.

    Raises:
        ValueError: if the shapes do not fit.

    Examples:
        >>> import torch
        >>> error = torch.tensor([[[1.0], [3.0]]])
        >>> masked_mean_square(error), masked_mean_square(error, torch.tensor([[True, False]]))
        (tensor([5.]), tensor([1.]))
    """
    if error.ndim != 3:
        raise ValueError(f"error must have shape [B, H, A], got {tuple(error.shape)}.")
    if mask is None:
        return error.square().mean((-2, -1))
    check_shape("mask", mask, error.shape[:-1], "[B, H]")
    kept = torch.where(mask.unsqueeze(-1), error, torch.zeros_like(error))
    return kept.square().sum((-2, -1)) / (mask.sum(-1).clamp(min=1) * error.shape[-1])


def part_means(errors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean errors of the flow-matching rows and of the self-consistency rows.

    Args:
        errors: errors of all rows, ``[B]``.
        rows: indices of the self-consistency rows.

    Returns:
        two scalars; NaN for a part with no rows.

    Examples:
        >>> import torch
        >>> part_means(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([2]))
        (tensor(2.), tensor(8.))
    """
    consistency = errors[rows]
    return (errors.sum() - consistency.sum()) / (errors.numel() - rows.numel()), consistency.mean()


def consistency_rows(batch_size: int, fraction: float, *, device: torch.device | None = None) -> Tensor:
    """Return the rows of a batch that train self-consistency: an evenly spread share.

    Even spreading keeps the share equal in every part of a batch from several sources.

    Args:
        batch_size: B.
        fraction: the share, in [0, 1].
        device: device of the result.

    Returns:
        indices ``[floor(B * fraction)]``, ascending.

    Raises:
        ValueError: if ``fraction`` is outside [0, 1].

    Examples:
        >>> consistency_rows(8, 0.25)
        tensor([3, 7])
    """
    check_fraction("fraction", fraction)
    # The small constant prevents a product such as 10 * 0.3 from falling below the intended whole number by rounding.
    edges = [int(i * fraction + 1e-9) for i in range(batch_size + 1)]
    rows = [i for i in range(batch_size) if edges[i + 1] > edges[i]]
    return torch.tensor(rows, dtype=torch.int64, device=device)
