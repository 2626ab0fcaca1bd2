"""The value of an observation, for on-policy losses."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn

from torchrl_flow.modules.encoders import ObservationEncoder
from torchrl_flow.modules.flow_actor import FlowActor

__all__ = ["StateValue"]


class StateValue(TensorDictModuleBase):
    """Value ``[*B, 1]`` of an observation by an MLP (Linear, LayerNorm, Mish).

    Args:
        encoder: observation encoder of its own.

    Keyword Args:
        hidden_sizes: widths of the hidden layers.
        value_key: key of the output.

    Raises:
        ValueError: if a size is below 1.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import ObservationEncoder
        >>> value = StateValue(ObservationEncoder(state_shape=(2, 5)))
        >>> value(TensorDict(observation=torch.zeros(6, 2, 5), batch_size=[6]))["state_value"].shape
        torch.Size([6, 1])
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        value_key: NestedKey = "state_value",
    ) -> None:
        self.in_keys = list(encoder.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [value_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        if min(hidden_sizes, default=1) < 1:
            raise ValueError(f"hidden_sizes must be at least 1, got {tuple(hidden_sizes)}.")
        self.encoder, self.value_key = encoder, value_key
        layers: list[nn.Module] = []
        width = encoder.out_features
        for size in hidden_sizes:
            layers += [nn.Linear(width, size), nn.LayerNorm(size), nn.Mish()]
            width = size
        self.network = nn.Sequential(*layers, nn.Linear(width, 1))

    @classmethod
    def for_actor(cls, actor: FlowActor, *, hidden_sizes: Sequence[int] = (256, 256)) -> StateValue:
        """Build the value network of an actor's observations, with a copy of the actor's encoder."""
        value = cls(copy.deepcopy(actor.encoder).requires_grad_(True), hidden_sizes=hidden_sizes)
        return value.to(next(actor.parameters()).device)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the value."""
        batch = self.encoder.batch_shape(tensordict)
        features = self.encoder(*self.encoder.preprocess(tensordict))
        return tensordict.set(self.value_key, self.network(features).reshape(*batch, 1))
