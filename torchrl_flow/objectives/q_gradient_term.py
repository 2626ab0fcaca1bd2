"""The gradient of a critic through a flow's sampler, anchored to a reference flow, as a term of losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor

from torchrl_flow.functional.chain import chunk_transport_cost
from torchrl_flow.functional.checks import check_at_least
from torchrl_flow.objectives.network_calls import running

if TYPE_CHECKING:
    from torchrl_flow.modules import FlowActor

Extraction = Literal["weights", "q_gradient"]
"""How the actor learns from the critic: by weights of the cloned rows, or by the critic's gradient."""
Anchor = Literal["start", "average"]
"""Reference flow of the term: the actor's initial weights when the loss was built, or the averaged actor."""

__all__ = ["Anchor", "Extraction", "QGradientTerm"]


@dataclass(frozen=True)
class QGradientTerm:
    """Each row's ``-Q(s, a) / mean |Q| + anchor_coeff |a - a_ref|^2``, of chunks to which a flow maps noise.

    ``a = flow(s, z)`` takes ``num_steps`` Euler steps, one by default: the one-step map of a ShortCut flow replaces the
    one-step policy that FQL distils. ``a_ref`` is the chunk to which a reference flow maps the same z in as many steps.
    The distance is the mean square over the components of the whole chunk ``[H, A]``, in normalised actions and without
    clipping, so that its gradient vanishes nowhere. Q reads the executed steps, clipped to the bounds of the actions:
    its gradient is 0 for the other steps and outside the bounds.

    The term owns no network: the loss passes its flows and the critic's values.

    Args:
        anchor_coeff: weight of the distance.
        num_steps: sampling steps K of both flows.
        augment: let the encoders augment observations.

    Raises:
        ValueError: if an argument is outside its allowed range.

    References:
        Park et al., "Flow Q-Learning", https://arxiv.org/abs/2502.02538
    """

    anchor_coeff: float = 1.0
    num_steps: int = 1
    augment: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_at_least("anchor_coeff", self.anchor_coeff, 0)
        check_at_least("num_steps", self.num_steps, 1)

    def __call__(
        self, value: Tensor, distance: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Combine the critic's values of the chunks with their distance to the reference.

        Args:
            value: values of the executed chunks ``[B]``, with a gradient.
            distance: distances ``[B]``, see :meth:`chunks`.
            valid: ``[B]`` bool, True where a row counts in the mean absolute value. Defaults to all rows.

        Returns:
            rows ``[B]``, and the detached means ``q_policy`` of the values and ``anchor_distance``.
        """
        counted = torch.ones_like(value, dtype=torch.bool) if valid is None else valid

        def mean(rows: Tensor) -> Tensor:
            return torch.where(counted, rows.detach(), 0.0).sum() / counted.sum()

        size = mean(value.abs()).clamp(min=1e-6)
        rows = self.anchor_coeff * distance - value / size
        return rows, {"q_policy": mean(value), "anchor_distance": mean(distance)}

    def chunks(
        self,
        actor: FlowActor,
        params: TensorDictParams,
        reference: FlowActor | TensorDictParams,
        tensordict: TensorDictBase,
        *,
        detach_features: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw noise and map it to chunks by both flows.

        Args:
            actor: the flow actor.
            params: parameters of the actor; the chunks have a gradient for them.
            reference: the untrained reference: another flow, or other parameters of the actor.
            tensordict: batch ``[*B]`` with the observations.
            detach_features: stop the gradient before the actor's encoder.

        Returns:
            executed chunks ``[B, H_a, A]`` in the environment's units and within its bounds, and distances ``[B]``.
        """
        with running(params, actor):
            features = actor.features(tensordict, augment=self.augment)
            features = features.detach() if detach_features else features
            noise = torch.randn((features.shape[0], *actor.noise_shape), device=features.device, dtype=features.dtype)
            chunk = actor.sample_normalised(features, noise, num_steps=self.num_steps)
            executed = actor.clamp(actor.action_normalizer.inverse(chunk))[..., actor.executed_slice, :]
        with torch.no_grad():
            # Not augmented: the reference acts on the true observation.
            if isinstance(reference, TensorDictParams):
                with running(reference, actor):
                    target = actor.sample_normalised(actor.features(tensordict), noise, num_steps=self.num_steps)
            else:
                target = reference.sample_normalised(reference.features(tensordict), noise, num_steps=self.num_steps)
        return executed, chunk_transport_cost(chunk, target) / chunk.shape[-2:].numel()
