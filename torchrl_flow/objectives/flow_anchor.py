"""An anchor of a fine-tuned flow to where it came from: the transport cost between their action chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from torchrl_flow.functional.chain import chunk_transport_cost

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["FlowAnchorLoss"]


class FlowAnchorLoss(LossModule):
    """Mean squared distance between the chunks that a flow and its start carry the same noise to.

    A bound on the squared 2-Wasserstein distance between the two policies, in units of normalised actions and without
    the environment's bounds, so that its gradient vanishes nowhere. The start is the actor's weights when this loss is
    built; they are the target parameters, which nothing need update.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor`. Its weights are shared, not copied.

    Keyword Args:
        num_steps: K; the actor's own by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_anchor``. Reads the observations and, where present, ``noise`` ``[*B, H, A]``; draws it otherwise.

    Raises:
        ValueError: if the reduction is unknown.

    References:
        Zhang et al., "ReinFlow", https://arxiv.org/abs/2505.22094

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> loss = FlowAnchorLoss(make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5)))
        >>> loss(TensorDict(observation=torch.randn(4, 2, 5), batch_size=[4]))["loss_anchor"]
        tensor(0., grad_fn=<...>)
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts.

        Attributes:
            noise: what both flows start from, ``[*B, H, A]``; optional.
        """

        noise: NestedKey = "noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    actor_network: FlowActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: FlowActor, *, num_steps: int | None = None, reduction: str = "mean") -> None:
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] = ["loss_anchor"]
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}.")
        self.num_steps, self.reduction = num_steps, reduction
        self.convert_to_functional(
            actor_network,  # pyright: ignore[reportArgumentType]
            "actor_network",
            create_target_params=True,
        )

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss needs."""
        return list(self.actor_network.in_keys) if self._in_keys is None else self._in_keys

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

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if the noise's shape is not ``[*B, H, A]``.
        """
        batch = self.actor_network.encoder.batch_shape(tensordict)
        noise = self._noise(tensordict, batch)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            chunk = self._chunk(tensordict, noise)
        with (
            torch.no_grad(),
            self.target_actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            reference = self._chunk(tensordict, noise)
        loss = self._reduce_loss(chunk_transport_cost(chunk, reference).reshape(batch), tensordict)
        out = TensorDict({"loss_anchor": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params", "target_actor_network_params")
        return out

    def _noise(self, tensordict: TensorDictBase, batch: torch.Size) -> Tensor:
        shape = (*batch, *self.actor_network.noise_shape)
        noise = tensordict.get(self.tensor_keys.noise, None)
        if noise is None:
            parameter = next(iter(self.actor_network_params.values(True, True)))
            noise = torch.randn(shape, device=parameter.device, dtype=parameter.dtype)
        if tuple(noise.shape) != shape:
            raise ValueError(f"{self.tensor_keys.noise!r} must have shape {list(shape)}, got {list(noise.shape)}.")
        return noise.reshape(-1, *self.actor_network.noise_shape)

    def _chunk(self, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        actor = self.actor_network
        return actor.sample_normalised(actor.features(tensordict), noise, num_steps=self.num_steps)
