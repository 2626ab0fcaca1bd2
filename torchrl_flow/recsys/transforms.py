"""TorchRL transforms of the slate env: belief states as observations, and latents of a ranker as actions."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.envs import EnvBase, Transform, TransformedEnv

__all__ = ["BeliefState", "LatentSlate", "latent_slate_env"]


class BeliefModel(Protocol):
    """Protocol of the encoder of :class:`BeliefState`: a recurrent update from a slate and its clicks."""

    @property
    def belief_dim(self) -> int:
        """Length D of a belief."""
        ...

    def step(self, belief: Tensor, slate: Tensor, clicks: Tensor) -> Tensor:
        """Return the belief ``[*B, D]`` after a slate ``[*B, L]`` and its clicks."""
        ...


class RankerModel(Protocol):
    """Protocol of the ranker of :class:`LatentSlate`: slates of latent actions in a box."""

    @property
    def action_low(self) -> Tensor:
        """Lower bound of latents ``[A]``."""
        ...

    @property
    def action_high(self) -> Tensor:
        """Upper bound of latents ``[A]``."""
        ...

    def rank(self, latent: Tensor) -> Tensor:
        """Return the slate ``[*B, L]`` of a latent action ``[*B, A]``."""
        ...


class BeliefState(Transform):
    """Transform that adds the belief: ``observation`` is the state of the frozen encoder after all slates and clicks.

    The belief is the recurrent state, so the transform is stateless: a step reads the belief from the root and writes
    the next one.

    Args:
        encoder: module with ``belief_dim`` and ``step(belief, slate, clicks)``; it is used without gradients.
        slate_key: key of the slate shown last.
        clicks_key: key of the clicks of that slate.
        belief_key: key of the belief.
    """

    def __init__(
        self,
        encoder: BeliefModel,
        *,
        slate_key: NestedKey = "slate",
        clicks_key: NestedKey = "clicks",
        belief_key: NestedKey = "observation",
    ) -> None:
        super().__init__(in_keys=[slate_key, clicks_key], out_keys=[belief_key])
        self.encoder, self.belief_key = encoder, belief_key
        self.slate_key, self.clicks_key = slate_key, clicks_key

    @torch.no_grad()
    def _after(self, belief: Tensor, tensordict: TensorDictBase) -> Tensor:
        return self.encoder.step(belief, tensordict[self.slate_key], tensordict[self.clicks_key])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        belief = tensordict[self.belief_key]
        following = self._after(belief, next_tensordict)
        mask = tensordict.get("_step", None)
        if mask is not None:
            following = torch.where(mask.reshape(*belief.shape[:-1], 1), following, belief)
        return next_tensordict.set(self.belief_key, following)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        slate = tensordict_reset[self.slate_key]
        empty = torch.zeros(*slate.shape[:-1], self.encoder.belief_dim, device=slate.device)
        belief = self._after(empty, tensordict_reset)
        mask = tensordict.get("_reset", None)
        before = tensordict.get(self.belief_key, None)
        if mask is not None and before is not None:
            belief = torch.where(mask.reshape(*belief.shape[:-1], 1), belief, before)
        return tensordict_reset.set(self.belief_key, belief)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Add the belief."""
        shape = torch.Size([*observation_spec.shape, self.encoder.belief_dim])
        spec: Any = observation_spec.clone()
        spec[self.belief_key] = Unbounded(shape, observation_spec.device, torch.float32)
        return spec


class LatentSlate(Transform):
    """Transform that replaces the action by a latent, which the ranker decodes to a slate.

    Actions of the transformed env lie in ``[-1, 1]``; they are mapped to the ranker's box, ``centre + scale * action``,
    so that a policy's ``tanh`` covers the box.

    Args:
        ranker: module with ``rank(latent)`` and the bounds ``action_low`` and ``action_high`` ``[A]`` of its box.
        action_key: key of the action: a latent in the transformed env, a slate in the base env.
    """

    def __init__(self, ranker: RankerModel, *, action_key: NestedKey = "action") -> None:
        super().__init__(in_keys=[], out_keys=[], in_keys_inv=[action_key], out_keys_inv=[action_key])
        self.ranker = ranker

    @torch.no_grad()
    def _inv_apply_transform(self, action: Tensor) -> Tensor:
        low, high = self.ranker.action_low, self.ranker.action_high
        return self.ranker.rank(0.5 * (high + low) + 0.5 * (high - low) * action.clamp(-1.0, 1.0))

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        """Replace the slate by a latent in the action spec."""
        spec: Any = input_spec.clone()
        action = spec["full_action_spec", self.in_keys_inv[0]]
        shape = torch.Size([*action.shape[:-1], *self.ranker.action_low.shape])
        spec["full_action_spec", self.in_keys_inv[0]] = Bounded(-1.0, 1.0, shape, action.device, torch.float32)
        return spec


def latent_slate_env(env: EnvBase, encoder: BeliefModel, ranker: RankerModel) -> TransformedEnv:
    """Transform a slate env so that observations are beliefs and actions are latents.

    Args:
        env: the slate env.
        encoder: the frozen belief encoder.
        ranker: the frozen ranker.
    """
    latent = TransformedEnv(env)
    latent.append_transform(BeliefState(encoder))
    latent.append_transform(LatentSlate(ranker))
    return latent
