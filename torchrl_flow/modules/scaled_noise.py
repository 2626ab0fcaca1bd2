"""The noise that a flow policy starts from, narrower than that of its training."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from torchrl_flow.modules.flow_actor import FlowActor

__all__ = ["ScaledNoise"]


class ScaledNoise(TensorDictModuleBase):
    """Draw the noise of a flow actor from N(0, scale^2 I): below 1 its actions keep closer to their mode.

    Noise that is there already is scaled. Put it before the actor, which starts from the noise that it finds:
    ``TensorDictSequential(ScaledNoise(actor, 0.5), actor)``. Under
    ``set_exploration_type(ExplorationType.DETERMINISTIC)`` the noise is zero, as the actor's own is.

    Args:
        actor: held, for its shapes; its parameters do not become this module's.
        scale: standard deviation, at least 0.

    Writes ``[*B, H, A]`` under the actor's noise key.

    Raises:
        ValueError: if the scale is negative or not a number.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> actor = make_flow_actor(FlowActorConfig(action_dim=3, state_dim=5, pred_horizon=16))
        >>> ScaledNoise(actor, 0.5)(TensorDict({"observation": torch.zeros(7, 2, 5)}, [7]))["noise"].shape
        torch.Size([7, 16, 3])
    """

    actor: FlowActor

    def __init__(self, actor: FlowActor, scale: float) -> None:
        if not scale >= 0:
            raise ValueError(f"scale must be at least 0, got {scale}.")
        self.in_keys = list(actor.in_keys)  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [actor.noise_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        # Past nn.Module, so that a sequence of both has the actor once.
        object.__setattr__(self, "actor", actor)
        self.scale = scale

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the noise."""
        actor = self.actor
        noise = actor._noise(tensordict, actor.encoder.batch_shape(tensordict), next(actor.parameters()))
        return tensordict.set(actor.noise_key, self.scale * noise)
