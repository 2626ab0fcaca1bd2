"""Initial noise of a flow policy with a scaled standard deviation."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_flow.modules.actors.exploration import draws_noise
from torchrl_flow.modules.actors.flow import FlowActor

__all__ = ["ScaledNoise"]


class ScaledNoise(TensorDictModuleBase):
    """Module that draws a flow actor's noise from N(0, scale^2 I); a scale below 1 keeps actions closer to their mode.

    Noise in the input is scaled. Put the module before the actor, which starts from this noise:
    ``TensorDictSequential(ScaledNoise(actor, 0.5), actor)``. Missing noise is zero if
    :func:`~torchrl_flow.modules.draws_noise` returns False, as in the actor.

    Args:
        actor: flow actor, which gives keys and shapes; it does not become a submodule.
        scale: standard deviation, at least 0.

    Writes ``[*B, H, A]`` under the actor's noise key.

    Raises:
        ValueError: if the scale is negative or not a number; in a call, if the given noise has another shape.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=16))
        >>> ScaledNoise(actor, 0.5)(TensorDict({"observation": torch.zeros(7, 2, 5)}, [7]))["noise"].shape
        torch.Size([7, 16, 3])
    """

    scale: Tensor

    def __init__(self, actor: FlowActor, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"scale must be at least 0, got {scale}.")
        self.in_keys = list(actor.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [actor.noise_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.noise_key, self.noise_shape = actor.noise_key, actor.noise_shape
        encoder = actor.encoder
        by_state = encoder.state_shape is not None
        self._observation = (encoder.state_key, 2) if by_state else (encoder.pixels_key, 4)
        # A buffer, so that the noise has the dtype and device to which this module, like the actor, is moved.
        dtype = next(actor.parameters()).dtype
        self.register_buffer("scale", torch.tensor(float(scale), dtype=dtype), persistent=False)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the noise."""
        key, dims = self._observation
        observation = tensordict[key]
        shape = torch.Size([*observation.shape[:-dims], *self.noise_shape])
        options = {"device": observation.device, "dtype": self.scale.dtype}
        noise = tensordict.get(self.noise_key, None)
        if noise is None:
            noise = torch.randn(shape, **options) if draws_noise() else torch.zeros(shape, **options)
        elif noise.shape != shape:
            raise ValueError(f"{self.noise_key!r} must have shape {list(shape)}, got {list(noise.shape)}.")
        return tensordict.set(self.noise_key, self.scale * noise.to(self.scale.dtype))
