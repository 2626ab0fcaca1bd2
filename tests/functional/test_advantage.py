from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_flow import functional as F

values = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20).map(torch.tensor)


@given(values, st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([1.5, 20.0, 200.0]))
def test_exponential_weights_equal_the_formula(advantage, beta, clip):
    raw = [min(math.exp(beta * a), clip) for a in advantage.tolist()]
    expected = torch.tensor([w * len(raw) / sum(raw) for w in raw])
    weights = F.advantage_weights(advantage, beta=beta, weight_clip=clip)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@given(values)
def test_weights_have_mean_one(advantage):
    for weighting in ("exp", "softmax", "binary"):
        weights = F.advantage_weights(advantage, beta=100.0, weighting=weighting)
        assert weights.mean().item() == pytest.approx(1.0, rel=1e-4)
        assert (weights >= 0).all()


def test_beta_zero_and_equal_values_give_ones():
    torch.testing.assert_close(F.advantage_weights(torch.randn(9), beta=0.0), torch.ones(9))
    equal = F.batch_advantage(torch.full((9,), 3.7))
    for norm in ("none", "std", "mad"):
        advantage = F.batch_advantage(torch.full((9,), 3.7), norm=norm)
        torch.testing.assert_close(F.advantage_weights(advantage, beta=100.0), torch.ones(9))
    torch.testing.assert_close(equal, torch.zeros(9))


def test_nothing_overflows():
    for scale in (1e3, 1e20, 1e37):
        for weighting in ("exp", "softmax"):
            advantage = torch.tensor([scale, -scale, 0.0])
            assert F.advantage_weights(advantage, beta=100.0, weighting=weighting).isfinite().all()


def test_binary_weights_keep_the_positive_advantages():
    weights = F.advantage_weights(torch.tensor([-1.0, 2.0, 3.0, -4.0]), beta=1.0, weighting="binary")
    torch.testing.assert_close(weights, torch.tensor([0.0, 2.0, 2.0, 0.0]))


def test_normalised_advantages():
    q = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    torch.testing.assert_close(F.batch_advantage(q), q - 22.0)
    torch.testing.assert_close(F.batch_advantage(q, norm="std"), (q - 22.0) / q.std(unbiased=False))
    torch.testing.assert_close(F.batch_advantage(q, norm="mad"), (q - 22.0) / 1.4826)  # |q - 3|: 2 1 0 1 97


def test_effective_sample_size_of_k_equal_weights_is_k():
    for k in (1, 3, 8):
        weights = torch.zeros(8)
        weights[:k] = 0.7
        assert F.effective_sample_size(weights).item() == pytest.approx(k)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: F.advantage_weights(torch.zeros(3), beta=-1.0), "beta"),
        (lambda: F.advantage_weights(torch.zeros(3), beta=1.0, weight_clip=0.0), "weight_clip"),
        (lambda: F.advantage_weights(torch.zeros(3), beta=1.0, weighting="linear"), "'linear'"),
        (lambda: F.advantage_weights(torch.zeros(3, 1), beta=1.0), r"\[B\]"),
        (lambda: F.batch_advantage(torch.zeros(0)), "non-empty"),
        (lambda: F.batch_advantage(torch.zeros(3), norm="range"), "'range'"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
