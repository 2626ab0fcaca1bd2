"""Deterministic environments whose every outcome can be counted by hand."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class CountdownEnv(EnvBase):
    """The position starts at ``seed % 5`` and grows by the action; it is the reward; 6 and 7 are success.

    The episode ends after ``4 + seed % 3`` steps. Seeds rule everything, so that with action 1 all is known:
    position after step i is ``seed % 5 + i``. A step draws from the global generator, as simulators do. With
    a batch size the sub-environments step together and ignore ``_step``, as batch-locked simulators do.
    """

    rendered = 0

    def __init__(self, num_envs: int | None = None) -> None:
        batch = torch.Size([]) if num_envs is None else torch.Size([num_envs])
        super().__init__(batch_size=batch, device="cpu")
        self.observation_spec = Composite(
            observation=Unbounded((*batch, 1)),
            success=Binary(shape=(*batch, 1), dtype=torch.bool),
            shape=batch,
        )
        self.action_spec = Bounded(-1.0, 1.0, (*batch, 1))
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Composite(
            {k: Binary(shape=(*batch, 1), dtype=torch.bool) for k in ("done", "terminated", "truncated")},
            shape=batch,
        )
        self.position = torch.zeros(*batch, 1)
        self.left = torch.zeros(*batch, 1, dtype=torch.int64)

    def _observe(self) -> dict[str, torch.Tensor]:
        success = (self.position >= 6) & (self.position < 8)
        return {"observation": self.position.clone(), "success": success}

    def _reset(self, tensordict, seed=None, **kwargs):
        shape = self.position.shape
        if seed is None:
            seeds = torch.randint(0, 1000, shape)
        else:
            seeds = torch.as_tensor(seed).reshape(shape)
        mask = torch.ones(shape, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict["_reset"].reshape(shape)
        self.position = torch.where(mask, (seeds % 5).float(), self.position)
        self.left = torch.where(mask, 4 + seeds % 3, self.left)
        false = torch.zeros(shape, dtype=torch.bool)
        flags = {"done": false, "terminated": false.clone(), "truncated": false.clone()}
        return TensorDict({**self._observe(), **flags}, batch_size=self.batch_size)

    def _step(self, tensordict):
        torch.rand(3)
        self.position = self.position + tensordict["action"]
        self.left = self.left - 1
        done = self.left <= 0
        flags = {"done": done, "terminated": torch.zeros_like(done), "truncated": done.clone()}
        return TensorDict({**self._observe(), "reward": self.position.clone(), **flags}, batch_size=self.batch_size)

    def _set_seed(self, seed):
        torch.manual_seed(seed)

    def render(self):
        """One image per sub-environment, whose every pixel is the position."""
        self.rendered += 1
        values = self.position.reshape(-1).numpy().astype(np.uint8)
        images = np.broadcast_to(values[:, None, None, None], (len(values), 8, 10, 3))
        return images if self.batch_size else images[0]


def expected(seed: int) -> dict[str, float]:
    """What an episode from ``seed`` gives when every action is 1."""
    length = 4 + seed % 3
    positions = [seed % 5 + i for i in range(1, length + 1)]
    success = [6 <= position < 8 for position in positions]
    return {
        "length": length,
        "return": float(sum(positions)),
        "success_once": any(success),
        "success_at_end": success[-1],
        "frames": [seed % 5, *positions],
    }
