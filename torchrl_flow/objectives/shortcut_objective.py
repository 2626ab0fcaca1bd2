"""What all losses that train a flow actor by the ShortCut equations have in common."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.utils import NestedKey
from torch import Tensor, nn
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

__all__ = ["AveragedNetwork", "ShortCutObjective"]


class AveragedNetwork:
    """Reads and writes the averaged (target) weights of one network of a loss as if it were a module of its own.

    Args:
        loss_module: the loss whose target parameters are the average.
        name: the network's name in the loss.
    """

    def __init__(self, loss_module: ShortCutObjective, name: str) -> None:
        self._loss_module, self._name = loss_module, name

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the averaged network."""
        return self._loss_module._averaged(self._name).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the averaged network."""
        self._loss_module._load_averaged(self._name, state_dict)


class ShortCutObjective(LossModule):
    """Base of losses with a flow actor, its averaged copy, and the per-row ShortCut error.

    A subclass calls :meth:`row_errors`, and adds what else it reads to the accepted keys.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor` to train. Its weights are shared, not copied.

    Keyword Args:
        consistency_fraction: share of the rows that train self-consistency.
        target_clip: bound on each component of the consistency target; ``None`` for none.
        augment: let encoders augment observations.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts.

        Attributes:
            action_chunk: the chunk to clone ``[*B, H, A]``, in the environment's units.
            action_mask: ``[*B, H]`` bool, True where a step of it is real; optional.
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
        consistency_fraction: float,
        target_clip: float | None,
        augment: bool,
        reduction: str,
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] = []
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

    # Keys

    def _make_in_keys(self) -> list[NestedKey]:
        raise NotImplementedError

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss needs."""
        if self._in_keys is None:
            self._in_keys = self._make_in_keys()
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

    def _priority(self, tensordict: TensorDictBase, shape: torch.Size) -> Tensor | None:
        """Return the rows' importance weights, where the batch has any; nested keys included."""
        if self.use_prioritized_weights not in (True, "auto"):
            return None
        weights = tensordict.get(self.tensor_keys.priority_weight, None)
        return None if weights is None else weights.reshape(shape)

    # The averaged networks

    def _averaged(self, name: str) -> nn.Module:
        network = copy.deepcopy(getattr(self, name))
        network.load_state_dict(getattr(self, f"target_{name}_params").data.flatten_keys(".").to_dict())
        return network.eval().requires_grad_(False)

    def _load_averaged(self, name: str, state_dict: Mapping[str, Tensor]) -> None:
        probe = copy.deepcopy(getattr(self, name))
        probe.load_state_dict(state_dict)
        averaged = TensorDictParams(TensorDict.from_module(probe), no_convert=True)
        getattr(self, f"target_{name}_params").data.update_(averaged.data)

    def ema_actor(self) -> FlowActor:
        """Return a copy of the actor that holds the averaged weights, in evaluation mode."""
        return self._averaged("actor_network")  # pyright: ignore[reportReturnType]

    @property
    def ema_policy(self) -> AveragedNetwork:
        """The actor's averaged weights as an object with a state dict, for checkpoints."""
        return AveragedNetwork(self, "actor_network")

    def load_ema_actor(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the averaged weights from the state dict of an :meth:`ema_actor`."""
        self._load_averaged("actor_network", state_dict)

    # The ShortCut error

    def row_errors(self, tensordict: TensorDictBase, *, detach_features: bool = False) -> tuple[Tensor, Tensor]:
        """Return each row's squared velocity error, and which rows were of the consistency part.

        Args:
            tensordict: a batch ``[*B]``.
            detach_features: keep the gradient from the encoder.

        Returns:
            errors ``[*B]``, and the indices of the latter in the flattened batch.
        """
        actor = self.actor_network
        # All of it on the loss's own parameters and buffers, normalisers too, also after the loss was moved or cast.
        with self.actor_network_params.to_module(actor, preserve_module_state=False):
            x_1, mask, states, pixels = self._clean_sample(tensordict)
            x_0 = torch.randn_like(x_1)
            rows = consistency_rows(x_1.shape[0], self.consistency_fraction, device=x_1.device)
            x_t, t, d, target = self._targets(x_0, x_1, states, pixels, rows)
            features = actor.encoder(states, pixels)
            velocity = actor.velocity(features.detach() if detach_features else features, x_t, t, d)
        errors = masked_mean_square(velocity - target, mask)
        return errors.reshape(actor.encoder.batch_shape(tensordict)), rows

    @staticmethod
    def _error_metrics(errors: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Return the mean errors of the flow-matching and the consistency rows; NaN for a part without rows."""
        flat = errors.detach().reshape(-1)
        consistency = flat[rows]
        flow = (flat.sum() - consistency.sum()) / (flat.numel() - rows.numel())
        return {"flow_error": flow, "consistency_error": consistency.mean()}

    def _clean_sample(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Read the normalised chunk, its mask and the augmented observations of the flattened batch."""
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
        return x_1, mask, states, pixels

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
