"""Behaviour cloning of action chunks by a ShortCut flow."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from torchrl_flow.functional.flow import (
    consistency_rows,
    dyadic_step_sizes,
    interpolate,
    masked_mean_square,
    select_dyadic_steps,
    shortcut_target,
    velocity_target,
)

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["ShortCutFlowLoss"]


class AveragedPolicy:
    """Reads and writes a loss's averaged actor as if it were a module of its own.

    Args:
        loss_module: the loss whose target parameters are the average.
    """

    def __init__(self, loss_module: ShortCutFlowLoss) -> None:
        self._loss_module = loss_module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the averaged actor."""
        return self._loss_module.ema_actor().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the averaged actor."""
        self._loss_module.load_ema_actor(state_dict)


class ShortCutFlowLoss(LossModule):
    """Flow matching on a part of each batch, ShortCut self-consistency on the rest.

    A row of the flow-matching part draws ``t ~ U(0, 1)`` and regresses the instantaneous velocity (``d = 0``) on
    ``x_1 - x_0``. A row of the consistency part draws a dyadic ``d`` and a ``t`` on its grid, and regresses
    ``v(x_t, t, d)`` on the mean of two half steps of the averaged (target) network. Steps past an episode's end,
    where ``action_mask`` is False, count in neither.

    The target parameters are the exponential moving average that both the teacher and evaluation use: attach
    TorchRL's :class:`~torchrl.objectives.SoftUpdate` and call its ``step()`` after each optimiser step.
    :meth:`ema_actor` gives the averaged policy.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor` to train. Its weights are shared, not copied.

    Keyword Args:
        consistency_fraction: share of the rows that train self-consistency.
        target_clip: bound on each component of the consistency target; ``None`` for none.
        augment: let the encoder augment observations.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_flow``, and the detached means ``flow_error`` and ``consistency_error`` of the two parts (NaN for
    a part with no rows).

    Raises:
        ValueError: if an argument is outside what is allowed.

    References:
        Frans et al., "One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> config = FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=8, act_horizon=4)
        >>> loss = ShortCutFlowLoss(make_flow_actor(config))
        >>> observation, chunk = torch.zeros(6, 2, 5), torch.zeros(6, 8, 3)
        >>> data = TensorDict(observation=observation, action_chunk=chunk, batch_size=[6])
        >>> loss(data)["loss_flow"].backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts.

        Attributes:
            action_chunk: the demonstrated chunk ``[*B, H, A]``, in the environment's units.
            action_mask: ``[*B, H]`` bool, True where a step is real; optional.
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        action_chunk: NestedKey = "action_chunk"
        action_mask: NestedKey = "action_mask"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    actor_network: FlowActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: FlowActor,
        *,
        consistency_fraction: float = 0.25,
        target_clip: float | None = 4.0,
        augment: bool = True,
        reduction: str = "mean",
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] = ["loss_flow", "flow_error", "consistency_error"]
        super().__init__()
        if not 0 <= consistency_fraction <= 1:
            raise ValueError(f"consistency_fraction must lie in [0, 1], got {consistency_fraction}.")
        if target_clip is not None and target_clip <= 0:
            raise ValueError(f"target_clip must be above 0 or None, got {target_clip}.")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        dyadic_step_sizes(actor_network.max_steps)
        self.consistency_fraction, self.target_clip = consistency_fraction, target_clip
        self.augment, self.reduction = augment, reduction
        self.convert_to_functional(
            actor_network,  # pyright: ignore[reportArgumentType]
            "actor_network",
            create_target_params=True,
        )

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss needs: the actor's observations and the chunk."""
        if self._in_keys is None:
            self._in_keys = [*self.actor_network.in_keys, self.tensor_keys.action_chunk]
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

    def ema_actor(self) -> FlowActor:
        """Return a copy of the actor that holds the averaged weights, in evaluation mode."""
        actor = copy.deepcopy(self.actor_network)
        actor.load_state_dict(self.target_actor_network_params.data.flatten_keys(".").to_dict())
        return actor.eval().requires_grad_(False)

    @property
    def ema_policy(self) -> AveragedPolicy:
        """The averaged weights as an object with a state dict, for checkpoints."""
        return AveragedPolicy(self)

    def load_ema_actor(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the averaged weights from the state dict of an :meth:`ema_actor`."""
        probe = copy.deepcopy(self.actor_network)
        probe.load_state_dict(state_dict)
        averaged = TensorDictParams(TensorDict.from_module(probe), no_convert=True)
        self.target_actor_network_params.data.update_(averaged.data)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if the chunk's shape is not the actor's ``[*B, H, A]``.
        """
        errors, rows = self.row_errors(tensordict)
        weights = self._maybe_get_priority_weight(tensordict)
        if weights is not None:
            weights = weights.reshape(errors.shape)
        flat = errors.detach().reshape(-1)
        consistency = flat[rows]
        out = TensorDict(
            {
                "loss_flow": self._reduce_loss(errors, tensordict, weights=weights),
                "flow_error": (flat.sum() - consistency.sum()) / (flat.numel() - rows.numel()),
                "consistency_error": consistency.mean(),
            }
        )
        self._clear_weakrefs(tensordict, "actor_network_params", "target_actor_network_params")
        return out

    def row_errors(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return each row's squared velocity error, and which rows were of the consistency part.

        Args:
            tensordict: a batch ``[*B]``.

        Returns:
            errors ``[*B]``, and the indices of the latter in the flattened batch.
        """
        actor = self.actor_network
        chunk = tensordict[self.tensor_keys.action_chunk]
        batch = actor.encoder.batch_shape(tensordict)
        if tuple(chunk.shape) != (*batch, *actor.noise_shape):
            raise ValueError(
                f"{self.tensor_keys.action_chunk!r} must have shape [*B, pred_horizon, action_dim] = "
                f"{[*batch, *actor.noise_shape]}, got {list(chunk.shape)}."
            )
        mask = tensordict.get(self.tensor_keys.action_mask, None)
        mask = None if mask is None else mask.reshape(-1, actor.pred_horizon)
        states, pixels = actor.encoder.preprocess(tensordict, augment=self.augment)
        x_1 = actor.action_normalizer(chunk.reshape(-1, *actor.noise_shape))
        if mask is not None:
            # What lies past the end must not reach the network either, whatever it is.
            x_1 = torch.where(mask.unsqueeze(-1), x_1, torch.zeros_like(x_1))
        x_0 = torch.randn_like(x_1)
        rows = consistency_rows(x_1.shape[0], self.consistency_fraction, device=x_1.device)
        x_t, t, d, target = self._targets(x_0, x_1, states, pixels, rows)
        with self.actor_network_params.to_module(actor, preserve_module_state=False):
            velocity = actor.velocity(actor.encoder(states, pixels), x_t, t, d)
        return masked_mean_square(velocity - target, mask).reshape(batch), rows

    @torch.no_grad()
    def _targets(
        self, x_0: Tensor, x_1: Tensor, states: Tensor | None, pixels: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw times and step sizes, and compute what the velocity at ``x_t`` should be."""
        actor = self.actor_network
        u_time, u_step = torch.rand(2, x_1.shape[0], device=x_1.device, dtype=x_1.dtype)
        d, t = select_dyadic_steps(u_step, u_time, max_steps=actor.max_steps)
        d = torch.zeros_like(d).index_copy(0, rows, d[rows])
        t = u_time.index_copy(0, rows, t[rows])
        x_t, target = interpolate(x_0, x_1, t), velocity_target(x_0, x_1)
        if rows.numel() == 0:
            return x_t, t, d, target
        states, pixels = (None if part is None else part[rows] for part in (states, pixels))
        with self.target_actor_network_params.to_module(actor, preserve_module_state=False):
            features = actor.encoder(states, pixels)
            taught = shortcut_target(
                lambda x, time, step: actor.velocity(features, x, time, step),
                x_t[rows],
                t[rows],
                d[rows],
                max_steps=actor.max_steps,
                clip=self.target_clip,
            )
        return x_t, t, d, target.index_copy(0, rows, taught)
