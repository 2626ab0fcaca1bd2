"""The features of a frozen encoder as an entry of the data, in place of the observations they were made from."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey

from torchrl_flow.modules.encoders import ObservationEncoder

__all__ = ["ObservationFeatures"]


class ObservationFeatures(TensorDictModuleBase):
    """Write an encoder's features ``[*B, C]`` of the observations, without a gradient.

    An image history of two frames of 64 x 64 is 24,576 bytes a row, its features are 128 numbers. Where the encoder is
    frozen, nothing else need be kept: append this to an environment by TorchRL's ``ModuleTransform``, and let
    :class:`NoisyFlowActor` and :class:`StateValue` read ``features_key``. Each observation is then encoded once.

    Args:
        encoder: the frozen encoder. Held, not copied.

    Keyword Args:
        features_key: where the features go.

    Examples:
        >>> from tensordict import TensorDict
        >>> encoder = ObservationEncoder(state_shape=(2, 3))
        >>> data = ObservationFeatures(encoder)(TensorDict(observation=torch.zeros(5, 2, 3), batch_size=[5]))
        >>> data["features"].shape
        torch.Size([5, 6])
    """

    def __init__(self, encoder: ObservationEncoder, *, features_key: NestedKey = "features") -> None:
        self.in_keys = list(encoder.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [features_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.encoder, self.features_key = encoder, features_key

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the features, on the device of the observations whatever the encoder's is."""
        encoder = self.encoder
        observation = tensordict.select(*encoder.in_keys)
        device = next((value.device for value in [*encoder.parameters(), *encoder.buffers()]), None)
        home = tensordict[encoder.in_keys[0]].device
        features = encoder(*encoder.preprocess(observation if device in (None, home) else observation.to(device)))
        return tensordict.set(self.features_key, features.to(home).reshape(*encoder.batch_shape(tensordict), -1))
