"""Checkpoints that an older version wrote, one of each recipe: they load, and act as they did.

The files are of tiny networks after a few updates, written before the packages were split. Beside them
are observations and the actions that the older version answered with seed 1.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.policies import load_acting_policy

FOLDER = Path(__file__).parents[1] / "older_checkpoints"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def test_there_is_one_of_each_recipe():
    assert len(EXPECTED) >= 13
    assert {path.stem for path in FOLDER.glob("*.torchrl")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_older_checkpoint_acts_as_it_did(name):
    expected = EXPECTED[name]
    policy, checkpoint = load_acting_policy(FOLDER / f"{name}.torchrl")
    assert (list(checkpoint.roles), checkpoint.step) == (expected["roles"], expected["step"])
    torch.manual_seed(1)
    with torch.no_grad():
        data = policy(TensorDict({"observation": torch.tensor(expected["observation"])}, [3]))
    actions = torch.tensor(expected["action"])
    # PyTorch's kernels round by the processor that they run on: the same bits are to be had on one machine alone.
    torch.testing.assert_close(data["action"], actions, rtol=1e-5, atol=1e-6)
