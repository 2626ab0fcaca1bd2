"""Every sampler hands on the executed steps of a chunk, at the root and below ``"next"``."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    RandomSampler,
    SamplerWithoutReplacement,
    SliceSampler,
    SliceSamplerWithoutReplacement,
    TensorDictReplayBuffer,
)

from torchrl_flow.data import PrioritizedSampler, RatioSampler

ROWS = 40
STEPS = torch.arange(ROWS).remainder(4).add(1).unsqueeze(-1)
SLICES = {"num_slices": 4, "end_key": ("next", "done"), "strict_length": False}
SAMPLERS = {
    "RandomSampler": RandomSampler,
    "SamplerWithoutReplacement": SamplerWithoutReplacement,
    "SliceSampler": lambda: SliceSampler(**SLICES),
    "SliceSamplerWithoutReplacement": lambda: SliceSamplerWithoutReplacement(**SLICES),
    "PrioritizedSampler": lambda: PrioritizedSampler(ROWS, alpha=0.6, beta=0.4),
    "RatioSampler": lambda: RatioSampler(online_ratio=0.5, num_demos=10),
}


def transitions():
    done = (torch.arange(ROWS) % 8 == 7).unsqueeze(-1)
    following = {"steps_to_next_obs": STEPS, "done": done, "row": torch.arange(ROWS)}
    data = {"steps_to_next_obs": STEPS.clone(), "is_demo": torch.arange(ROWS).unsqueeze(-1) < 10, "next": following}
    return TensorDict(data, batch_size=[ROWS])


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_hands_on_the_executed_steps(name, storage):
    buffer = TensorDictReplayBuffer(storage=storage(ROWS), sampler=SAMPLERS[name](), batch_size=16)
    buffer.extend(transitions())
    seen = []
    for _ in range(6):
        batch = buffer.sample()
        wanted = STEPS[batch["next", "row"].flatten()]
        assert torch.equal(batch["steps_to_next_obs"].reshape(-1, 1), wanted)
        assert torch.equal(batch["next", "steps_to_next_obs"].reshape(-1, 1), wanted)
        seen += wanted.flatten().tolist()
    assert set(seen) == {1, 2, 3, 4}
