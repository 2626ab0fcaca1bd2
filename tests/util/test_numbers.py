from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_flow.util.numbers import (
    MAX_MAGNITUDE,
    NonFiniteError,
    first_implausible,
    refuse_implausible,
    require_plausible,
)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "not finite"),
        (float("-inf"), "not finite"),
        (1.1e9, "above 1e+09 in size"),
        (-1e30, "above 1e+09 in size"),
    ],
)
def test_the_first_one_is_named(value, what):
    data = torch.zeros(3, 4)
    data[1, 2] = value
    data[2, 0] = float("nan")
    assert first_implausible(data) == ((1, 2), what)


def test_what_is_plausible():
    limits = torch.tensor([MAX_MAGNITUDE, -MAX_MAGNITUDE])
    for data in (limits, torch.zeros(0, 3), torch.tensor([2**40]), torch.ones(())):
        assert first_implausible(data) is None
    assert first_implausible(torch.tensor(float("nan"))) == ((), "not finite")


def test_a_policy_is_not_asked_for_an_action_on_such_an_observation():
    policy = TensorDictModule(torch.nn.Linear(2, 1), ["observation"], ["action"])
    policy.register_forward_pre_hook(refuse_implausible, with_kwargs=True)
    data = TensorDict(observation=torch.zeros(2, 3, 2), other=torch.full((2, 3, 1), torch.nan), batch_size=[2, 3])
    assert policy(data)["action"].shape == (2, 3, 1)  # what it does not read is of no account
    data["observation"][1, 0, 1] = torch.inf
    with pytest.raises(NonFiniteError, match="'observation' is not finite in row 3: no action is chosen"):
        policy(data)
    with pytest.raises(NonFiniteError, match=r"not finite at \[1, 0, 1\]"):
        policy(observation=data["observation"])
    with pytest.raises(NonFiniteError, match="'other' is not finite in row 0"):
        require_plausible(data.exclude("observation"), None)
