"""Global generators inside and after a block with its own seed."""

from __future__ import annotations

import random

import numpy as np
import torch

from torchrl_flow.util.randomness import isolated_rng


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_all_generators_are_seeded_and_put_back():
    with isolated_rng(1):
        before = draws()
        with isolated_rng(2):
            inside = draws()
        after = draws()
    with isolated_rng(1):
        assert (draws(), draws()) == (before, after)
    with isolated_rng(2):
        assert draws() == inside


def test_with_a_device_torch_alone_is_seeded_and_put_back():
    with isolated_rng(1):
        with isolated_rng(2, device=torch.device("cpu")):
            python, numpy, inside = draws()
        third = draws()[2]
    with isolated_rng(1):
        assert draws() == (python, numpy, third)
    with isolated_rng(2):
        assert draws()[2] == inside
