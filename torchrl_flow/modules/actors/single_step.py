"""An adapter of a chunk policy of horizon 1 to an environment without chunks and history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey

if TYPE_CHECKING:
    from torchrl_flow.modules.actors.best_of_n import BestOfN
    from torchrl_flow.modules.actors.flow import FlowActor

__all__ = ["SingleStepActor"]


class SingleStepActor(TensorDictModuleBase):
    """Flow actor of one frame and one action for an environment without dimensions of history and chunk.

    Args:
        actor: flow actor with ``obs_horizon`` and ``act_horizon`` 1, whose encoder reads ``observation_key``; or a
            :class:`~torchrl_flow.modules.BestOfN` of such an actor.

    Keyword Args:
        observation_key: key of the states ``[*B, D]``.
        action_key: key of the action ``[*B, A]``.

    Raises:
        ValueError: if a horizon is not 1.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> config = FlowActorConfig(action_dim=3, state_dim=5, obs_horizon=1, pred_horizon=1, act_horizon=1)
        >>> actor = SingleStepActor(make_flow_actor(config))
        >>> actor(TensorDict(observation=torch.zeros(4, 5), batch_size=[4]))["action"].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        actor: FlowActor | BestOfN,
        *,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
    ) -> None:
        flow: Any = getattr(actor, "actor", actor)
        if flow.obs_horizon != 1 or flow.act_horizon != 1:
            raise ValueError(
                f"obs_horizon and act_horizon must be 1, got {flow.obs_horizon} and {flow.act_horizon}; use the "
                "SMDPChunk and history transforms for others."
            )
        self.in_keys = [observation_key]  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [action_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.actor, self.observation_key, self.action_key = actor, observation_key, action_key
        self._state_key, self._chunk_key = flow.encoder.state_key, flow.action_key

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action."""
        observation = tensordict[self.observation_key].unsqueeze(-2)
        batch, device = observation.shape[:-2], observation.device
        inputs = TensorDict({self._state_key: observation}, batch_size=batch, device=device)
        action: torch.Tensor = self.actor(inputs)[self._chunk_key]
        return tensordict.set(self.action_key, action.squeeze(-2))
