"""Episodes that end when success has been held, in place of at the first success."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torchrl.data import Composite, TensorSpec, Unbounded
from torchrl.envs import Transform

__all__ = ["HoldSuccess"]


class HoldSuccess(Transform):
    """Ends an episode as ``terminated`` once ``success`` has held for a number of consecutive environment steps.

    An environment that ends at the first success never asks its policy to stay at the goal. Put this transform on an
    environment with sparse rewards that ignores terminations. The rewards of successful steps are withheld, up to the
    step that ends the episode. A reward at every successful step would be largest for a policy that leaves the goal in
    time, so that the episode does not end. Place it before :class:`SMDPChunk`, so that it counts environment steps.

    Args:
        steps: environment steps of success in a row that end an episode, at least 1.
        success_key: bool entry ``[*B, 1]`` of each step.
        count_key: entry that the transform adds, int64 ``[*B, 1]``: steps of success in a row, 0 after a reset.

    Raises:
        ValueError: if ``steps`` is below 1, or the environment has no such ``success_key``.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_flow.envs import PlanarPickPlaceEnv
        >>> env = TransformedEnv(PlanarPickPlaceEnv(2, ignore_terminations=True), HoldSuccess(5))
        >>> env.reset()["held_steps"].tolist()
        [[0], [0]]
    """

    def __init__(self, steps: int, *, success_key: NestedKey = "success", count_key: NestedKey = "held_steps") -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        super().__init__(in_keys=[success_key], out_keys=[count_key])
        self.steps, self.success_key, self.count_key = steps, success_key, count_key

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        success = next_tensordict.get(self.success_key)
        before = tensordict.get(self.count_key)
        held = torch.where(success, before + 1, torch.zeros_like(before))
        reached = held >= self.steps
        next_tensordict.set(self.count_key, held)
        reward = next_tensordict.get("reward")
        next_tensordict.set("reward", torch.where(success & ~reached, torch.zeros_like(reward), reward))
        for name in ("terminated", "done"):
            next_tensordict.set(name, next_tensordict.get(name) | reached)
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        zeros = torch.zeros_like(tensordict_reset.get(self.success_key), dtype=torch.int64)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        before = None if mask is None else tensordict.get(self.count_key, None)
        held = zeros if mask is None or before is None else torch.where(mask, zeros, before)
        return tensordict_reset.set(self.count_key, held)

    def transform_observation_spec(self, observation_spec: Composite) -> TensorSpec:
        """Add the count to the specs."""
        if self.success_key not in observation_spec.keys(True, True):
            names = sorted(map(str, observation_spec.keys(True, True)))
            raise ValueError(f"success_key={self.success_key!r} is not an entry of the environment, which has {names}.")
        shape = observation_spec[self.success_key].shape
        observation_spec[self.count_key] = Unbounded(shape, dtype=torch.int64, device=observation_spec.device)
        return observation_spec
