"""A state-value network on the features of a flow actor's encoder, and its configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torchrl.modules import MLP

from torchrl_flow.modules.activation import Mish
from torchrl_flow.modules.config import Config, dense_weights
from torchrl_flow.modules.observation.encoders import ObservationEncoder

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.flow import FlowActor

__all__ = ["StateValue", "StateValueConfig", "make_state_value"]


class StateValue(TensorDictModuleBase):
    """Value ``[*B, 1]`` of observations by an MLP (Linear, Mish) on the features of an encoder.

    This module never trains the encoder: if an actor owns it, the critic's loss does not change the actor.

    Reads the encoder's observations ``[*B, T, ...]``, writes ``state_value`` ``[*B, 1]``.

    Args:
        encoder: observation encoder, usually the actor's own.

    Keyword Args:
        hidden_sizes: widths of the hidden layers.
        value_key: key of the output.

    Raises:
        ValueError: if a width is below 1.

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
        hidden_sizes: Sequence[int] = (256, 256, 256),
        value_key: NestedKey = "state_value",
    ) -> None:
        self.value_key = value_key
        self.in_keys = list(encoder.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [value_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        if min(hidden_sizes, default=1) < 1:
            raise ValueError(f"hidden_sizes must be at least 1, got {tuple(hidden_sizes)}.")
        self.encoder = encoder
        self.head = MLP(encoder.out_features, 1, num_cells=list(hidden_sizes), activation_class=Mish)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the value of each observation."""
        batch = self.encoder.batch_shape(tensordict)
        with torch.no_grad():
            features = self.encoder(*self.encoder.preprocess(tensordict))
        return tensordict.set(self.value_key, self.head(features).reshape(*batch, 1))


@dataclasses.dataclass(frozen=True)
class StateValueConfig(Config):
    """Configuration of a :class:`StateValue`, as plain values, without the actor and the weights."""

    hidden_sizes: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers."""

    def _weights(self) -> int:
        return dense_weights([1, *self.hidden_sizes, 1])


def make_state_value(config: StateValueConfig, actor: FlowActor) -> StateValue:
    """Build the state-value network on an actor's encoder.

    Args:
        config: the configuration.
        actor: flow actor; the network is made on its device.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> make_state_value(StateValueConfig(), make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5))).in_keys
        ['observation']
    """
    return StateValue(actor.encoder, hidden_sizes=config.hidden_sizes).to(next(actor.parameters()).device)
