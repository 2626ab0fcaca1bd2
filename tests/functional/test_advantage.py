from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_flow import functional as F

values = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20).map(torch.tensor)


@settings(deadline=None)
@given(values, st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([1.5, 20.0, 200.0]))
def test_exponential_weights_equal_the_formula(advantage, beta, clip):
    raw = [min(math.exp(beta * a), clip) for a in advantage.tolist()]
    expected = torch.tensor([w * len(raw) / sum(raw) for w in raw])
    weights = F.advantage_weights(advantage, beta=beta, weight_clip=clip)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@settings(deadline=None)
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


@pytest.mark.parametrize("size", [1, 3, 41, 49, 255])
def test_equal_advantages_weigh_exactly_one(size):
    for advantage in (torch.zeros(size), torch.full((size,), 0.3)):
        for weighting in ("exp", "softmax"):
            for beta in (0.0, 100.0):
                assert (F.advantage_weights(advantage, beta=beta, weighting=weighting) == 1).all()


@pytest.mark.parametrize("norm", ["none", "std", "mad"])
@pytest.mark.parametrize("weighting", ["exp", "softmax", "binary"])
@pytest.mark.parametrize("kept", [1, 4, 7, 12])
def test_masked_rows_equal_removed_rows(norm, weighting, kept):
    q = torch.randn(12)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[torch.randperm(12)[:kept]] = True
    poisoned = torch.where(mask, q, torch.full_like(q, torch.nan))
    removed = F.batch_advantage(q[mask], norm=norm)
    masked = F.batch_advantage(poisoned, norm=norm, mask=mask)
    torch.testing.assert_close(masked[mask], removed)
    weights = F.advantage_weights(masked, beta=2.0, weight_clip=3.0, weighting=weighting, mask=mask)
    expected = F.advantage_weights(removed, beta=2.0, weight_clip=3.0, weighting=weighting)
    torch.testing.assert_close(weights[mask], expected)
    assert (weights[~mask] == 0).all()


def test_no_row_that_counts_gives_zero_weights():
    nobody = torch.zeros(5, dtype=torch.bool)
    for norm in ("none", "std", "mad"):
        advantage = F.batch_advantage(torch.randn(5), norm=norm, mask=nobody)
        assert advantage.isfinite().all()
        for weighting in ("exp", "softmax", "binary"):
            assert (F.advantage_weights(advantage, beta=1.0, weighting=weighting, mask=nobody) == 0).all()


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


def test_filtered_rows_weigh_as_if_they_were_alone():
    value = torch.randn(16, generator=torch.Generator().manual_seed(0))
    always, valid = torch.arange(16) % 5 == 0, torch.arange(16) < 12
    options = {"beta": 2.0, "weight_clip": 3.0}
    for norm in ("none", "std", "mad"):
        weights, kept = F.filtered_weights(value, **options, norm=norm, valid=valid, always=always, threshold=0.2)
        better = F.batch_advantage(value[valid], norm=norm) > 0.2
        wanted = always[:12] | better
        assert torch.equal(kept, torch.cat([wanted, torch.zeros(4, dtype=torch.bool)]))
        assert 0 < wanted.sum() < 12
        alone = F.advantage_weights(F.batch_advantage(value[kept], norm=norm), **options)
        torch.testing.assert_close(weights[kept], alone)
        assert (weights[~kept] == 0).all()
    assert F.filtered_weights(value, **options)[1] is None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: F.advantage_weights(torch.zeros(3), beta=-1.0), "beta"),
        (lambda: F.advantage_weights(torch.zeros(3), beta=1.0, weight_clip=0.0), "weight_clip"),
        (lambda: F.advantage_weights(torch.zeros(3), beta=1.0, weighting="linear"), "'linear'"),
        (lambda: F.advantage_weights(torch.zeros(3, 1), beta=1.0), r"\[B\]"),
        (lambda: F.advantage_weights(torch.zeros(3), beta=1.0, mask=torch.ones(3)), "mask"),
        (lambda: F.batch_advantage(torch.zeros(3), mask=torch.ones(2, dtype=torch.bool)), "mask"),
        (lambda: F.batch_advantage(torch.zeros(0)), "non-empty"),
        (lambda: F.batch_advantage(torch.zeros(3), norm="range"), "'range'"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("norm", ["none", "std", "mad"])
def test_values_that_are_relative_already_are_scaled_and_not_moved(norm):
    value = torch.tensor([0.5, 1.0, 3.0, 3.5])
    scaled = F.batch_advantage(value, norm=norm, center=False)
    centred = F.batch_advantage(value, norm=norm)
    ratio = scaled / value
    torch.testing.assert_close(ratio, ratio[:1].expand(4))
    torch.testing.assert_close(scaled - scaled.mean(), centred - centred.mean())
    assert (scaled > 0).all()


def test_the_median_deviation_is_scaled_to_a_standard_deviation():
    q = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])  # median 2, deviations 2, 1, 0, 1, 8, of which the median is 1
    expected = (q - q.mean()) / 1.4826
    torch.testing.assert_close(F.batch_advantage(q, norm="mad"), expected, rtol=1e-4, atol=1e-4)


def test_weights_are_clipped_at_two_hundred_by_default():
    weights = F.advantage_weights(torch.tensor([0.0, 20.0]), beta=1.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 201, 400 / 201]), rtol=1e-5, atol=1e-6)


def test_a_binary_weight_leaves_out_what_is_no_better():
    weights = F.advantage_weights(torch.tensor([-1.0, 0.0, 1.0, 2.0]), beta=1.0, weighting="binary")
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 2.0, 2.0]))


def test_defaults_of_the_filter_are_the_published_clip_and_a_threshold_of_zero():
    value = torch.tensor([-0.5, 0.5, 0.0])
    always = torch.zeros(3, dtype=torch.bool)
    assert F.filtered_weights(value, beta=1.0, always=always)[1].tolist() == [False, True, False]
    weights, kept = F.filtered_weights(torch.tensor([-20.0, 20.0]), beta=1.0)
    assert kept is None
    # exp(20) is clipped to 200, exp(-20) is about 0; the mean of both is 1.
    torch.testing.assert_close(weights, torch.tensor([math.exp(-20) / 100, 2.0]), rtol=1e-4, atol=1e-10)
