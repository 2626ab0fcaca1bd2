"""Advantages of executed chunks: their value, or what came of them, against the chunks of the averaged actor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_flow.functional.ensemble import EnsembleReduction
from torchrl_flow.objectives.flow_loss import SharedEncoder
from torchrl_flow.objectives.weight_term import AdvantageSource, Baseline

if TYPE_CHECKING:
    from torchrl_flow.objectives.smdp_loss import SMDPLossModule

    _Base = SMDPLossModule
else:
    # No loss of its own, as in held_networks.py.
    _Base = object

__all__ = ["ChunkAdvantages"]


class ChunkAdvantages(SharedEncoder, _Base):
    """Mixin of losses of chunks whose rows are weighed by advantages; :class:`AWFlowLoss` says what these are."""

    baseline: Baseline
    advantage: AdvantageSource
    advantage_reduction: EnsembleReduction
    num_baseline_samples: int

    @torch.no_grad()
    def advantages(self, tensordict: TensorDictBase) -> Tensor:
        """Return the advantages ``[B]`` before ``advantage_norm``, for inspection."""
        value = self.td.reduce(self._relative_values(tensordict, None), self.advantage_reduction)
        return value - value.mean() if self.baseline == "batch" else value

    @torch.no_grad()
    def _relative_values(self, tensordict: TensorDictBase, q: Tensor | None, chunks: Tensor | None = None) -> Tensor:
        """Return each member's values ``[num_qs, B]`` of the rows' chunks, less its baseline."""
        if self.advantage == "td":
            following: Any = tensordict["next"]
            batch = self.actor_network.encoder.batch_shape(tensordict)
            values = self._policy_values(following, *(() if chunks is None else (chunks,)))
            q = self.discounted(tensordict, values.reshape(-1, *batch, 1)).reshape(values.shape)
        elif q is None:
            q = self._chunk_values(tensordict)
        return q if self.baseline == "batch" else q - self._policy_values(tensordict)

    @torch.no_grad()
    def _policy_values(self, tensordict: TensorDictBase, chunks: Tensor | None = None) -> Tensor:
        """Return each member's mean value ``[num_qs, B]`` of the averaged actor's chunks in the rows' states."""
        chunks = self._averaged_chunks(tensordict, self.num_baseline_samples) if chunks is None else chunks
        return self.td.values(self.critic_network, self.critic_network_params, tensordict, chunks).mean(-1)

    def _chunk_values(self, tensordict: TensorDictBase) -> Tensor:
        """Return the critic's values ``[num_qs, B]`` of the chunks that were sent."""
        action = tensordict[self.tensor_keys.action]
        data = (tensordict, action.reshape(-1, *action.shape[-2:]))
        detach = self.shared_encoder and self.encoder_grad == "actor"
        return self.td.values(self.critic_network, self.critic_network_params, *data, detach_features=detach)

    def _averaged_chunks(self, tensordict: Any, num: int) -> Tensor:
        """Return executed chunks ``[B, num, H_a, A]`` of the averaged actor."""
        return self.td.chunks(self.actor_network, self.target_actor_network_params, tensordict, num)
