"""The ShortCut error of a flow actor, for losses to hold."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor

from torchrl_flow.functional.checks import check_fraction, check_positive, check_shape
from torchrl_flow.functional.flow import (
    consistency_rows,
    interpolate,
    masked_mean_square,
    part_means,
    shortcut_target,
    shortcut_times,
    velocity_target,
)
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["ShortCutTerm"]


# Kept, since a CUDA graph of an update cannot copy them to the device.
_kept_rows = functools.lru_cache(maxsize=64)(consistency_rows)


@dataclass(frozen=True)
class ShortCutTerm:
    """Squared velocity error of each row, ``|| v(x_t, t, d) - u ||^2``: of flow matching, or of self-consistency.

    A row of flow matching draws ``t ~ U(0, 1)``, asks for ``d = 0`` and has ``u = x_1 - x_0``. A row of consistency
    draws a dyadic ``d`` and a ``t`` on its grid; its ``u`` is the mean velocity of two half steps of the averaged
    network.

    The term owns no network: a loss that holds it passes its actor and the parameters to run it with.

    Args:
        consistency_fraction: share of the rows that train self-consistency.
        target_clip: bound on each component of the consistency target; ``None`` for none.
        augment: let the encoder augment observations.

    Raises:
        ValueError: if an argument is outside what is allowed.
    """

    consistency_fraction: float = 0.25
    target_clip: float | None = 4.0
    augment: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_fraction("consistency_fraction", self.consistency_fraction)
        if self.target_clip is not None:
            check_positive("target_clip", self.target_clip, none="no bound")

    def __call__(
        self,
        actor: FlowActor,
        params: TensorDictParams,
        averaged_params: TensorDictParams,
        tensordict: TensorDictBase,
        chunk: Tensor,
        mask: Tensor | None = None,
        *,
        detach_features: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw noise and times, and return each row's error.

        Args:
            actor: the flow actor.
            params: its parameters, which the error trains.
            averaged_params: those of the teacher.
            tensordict: the observations ``[*B]``.
            chunk: x_1 in the environment's units ``[*B, H, A]``.
            mask: ``[*B, H]`` bool, True where a step of it is real.
            detach_features: keep the gradient from the encoder.

        Returns:
            errors ``[*B]``, and the detached means ``flow_error`` and ``consistency_error`` of the two parts (NaN for a
            part with no rows).

        Raises:
            ValueError: if a shape does not fit.
        """
        # All of it on the loss's own parameters and buffers, normalisers too, also after the loss was moved or cast.
        with running(params, actor):
            batch = actor.encoder.batch_shape(tensordict)
            check_shape("action_chunk", chunk, (*batch, *actor.noise_shape), "[*B, pred_horizon, action_dim]")
            mask = None if mask is None else mask.reshape(-1, actor.pred_horizon)
            states, pixels = actor.encoder.preprocess(tensordict, augment=self.augment)
            x_1 = actor.action_normalizer(chunk.reshape(-1, *actor.noise_shape))
            if mask is not None:
                # What lies past the end must not reach the network either, whatever it is.
                x_1 = torch.where(mask.unsqueeze(-1), x_1, torch.zeros_like(x_1))
            x_0 = torch.randn_like(x_1)
            rows_of = consistency_rows if torch.compiler.is_compiling() else _kept_rows
            rows = rows_of(x_1.shape[0], self.consistency_fraction, device=x_1.device)
            u_time, u_step = torch.rand(2, x_1.shape[0], device=x_1.device, dtype=x_1.dtype)
            t, d = shortcut_times(u_time, u_step, rows, max_steps=actor.max_steps)
            x_t, u = interpolate(x_0, x_1, t), velocity_target(x_0, x_1)
            if rows.numel() > 0:
                observed = [None if part is None else part[rows] for part in (states, pixels)]
                with torch.no_grad(), running(averaged_params, actor):
                    teacher = functools.partial(actor.velocity, actor.encoder(*observed))
                    options: dict[str, Any] = {"max_steps": actor.max_steps, "clip": self.target_clip}
                    taught = shortcut_target(teacher, x_t[rows], t[rows], d[rows], **options)
                u = u.index_copy(0, rows, taught.to(u.dtype))  # autocast: bfloat16
            features = actor.encoder(states, pixels)
            velocity = actor.velocity(features.detach() if detach_features else features, x_t, t, d)
        errors = masked_mean_square(velocity - u, mask)
        flow, consistency = part_means(errors.detach(), rows)
        return errors.reshape(batch), {"flow_error": flow, "consistency_error": consistency}
