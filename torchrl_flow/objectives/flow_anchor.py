"""The transport cost between the action chunks of a fine-tuned flow and those of its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.functional.chain import chunk_transport_cost
from torchrl_flow.functional.checks import check_shape
from torchrl_flow.objectives.flow_loss import FlowLossModule
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

__all__ = ["FlowAnchorLoss"]


class FlowAnchorLoss(FlowLossModule):
    """Mean squared distance between the chunks of a flow and those of its initial weights, from the same noise.

    It is an upper bound on the squared 2-Wasserstein distance between the two policies. Actions are normalised and not
    clipped to the environment's bounds, so that the gradient vanishes nowhere. The initial weights are the actor's
    weights when this loss is built; they are the target parameters, which need no updater.

    Args:
        actor_network: the :class:`~torchrl_flow.modules.FlowActor`. It is shared, not copied.

    Keyword Args:
        num_steps: sampling steps K. Defaults to those of the actor.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (one loss per row).

    Output: ``loss_anchor``. Reads the observations and ``noise`` ``[*B, H, A]``, which is drawn if absent.

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
    class _AcceptedKeys(FlowLossModule._AcceptedKeys):
        """Keys that ``set_keys`` accepts.

        Attributes:
            noise: initial noise of both flows, ``[*B, H, A]``; optional.
            priority_weight: importance weight of a row, ``[*B]`` or ``[*B, 1]``; optional.
        """

        noise: NestedKey = "noise"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    actor_network: FlowActor
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(self, actor_network: FlowActor, *, num_steps: int | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.num_steps = num_steps
        self.convert_to_functional(
            actor_network,  # pyright: ignore[reportArgumentType]
            "actor_network",
            create_target_params=True,
        )
        self._out_keys = ["loss_anchor"]

    def _make_in_keys(self) -> list[NestedKey]:
        return list(self.actor_network.in_keys)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss of a batch of any shape.

        Raises:
            ValueError: if the noise's shape is not ``[*B, H, A]``.
        """
        batch = self.actor_network.encoder.batch_shape(tensordict)
        noise = self._noise(tensordict, batch)
        chunk = self._chunk(self.actor_network_params, tensordict, noise)
        with torch.no_grad():
            reference = self._chunk(self.target_actor_network_params, tensordict, noise)
        rows = chunk_transport_cost(chunk, reference).reshape(batch)
        loss = self._reduce_loss(rows, tensordict, weights=self._row_weights(tensordict, batch))
        out = TensorDict({"loss_anchor": loss})
        self._clear_weakrefs(tensordict, out, "actor_network_params", "target_actor_network_params")
        return out

    def _noise(self, tensordict: TensorDictBase, batch: torch.Size) -> Tensor:
        shape = (*batch, *self.actor_network.noise_shape)
        noise = tensordict.get(self.tensor_keys.noise, None)
        if noise is None:
            parameter = next(iter(self.actor_network_params.values(True, True)))
            noise = torch.randn(shape, device=parameter.device, dtype=parameter.dtype)
        check_shape(repr(self.tensor_keys.noise), noise, shape, "[*B, pred_horizon, action_dim]")
        return noise.reshape(-1, *self.actor_network.noise_shape)

    def _chunk(self, params: TensorDictParams, tensordict: TensorDictBase, noise: Tensor) -> Tensor:
        actor = self.actor_network
        with running(params, actor):
            return actor.sample_normalised(actor.features(tensordict), noise, num_steps=self.num_steps)
