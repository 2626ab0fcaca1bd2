from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_flow import functional as F


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.data())
def test_subset_min_is_the_minimum_over_the_largest_draws(num, rows, data):
    size = data.draw(st.integers(1, num))
    q, draws = torch.randn(num, rows), torch.rand(num)
    members = sorted(range(num), key=lambda i: -draws[i].item())[:size]
    torch.testing.assert_close(F.subset_min(q, draws, size=size), q[members].min(0).values)


def test_every_subset_is_equally_likely():
    q = torch.eye(5)  # column i is 1 for member i alone; a subset's minimum over -eye names its members
    counts = Counter()
    for _ in range(4000):
        chosen = F.subset_min(-q, torch.rand(5), size=2)
        counts[tuple(chosen.nonzero().flatten().tolist())] += 1
    assert set(counts) == set(itertools.combinations(range(5), 2))
    expected = 4000 / 10
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 27.9, counts  # 9 degrees of freedom, 0.1 %


def test_two_of_two_is_the_minimum_over_both():
    q = torch.randn(2, 50)
    for _ in range(20):
        torch.testing.assert_close(F.subset_min(q, torch.rand(2), size=2), q.min(0).values, rtol=0, atol=0)


def test_one_subset_for_the_whole_batch():
    q = torch.arange(6.0)[:, None].expand(6, 100)
    assert F.subset_min(q, torch.rand(6), size=3).unique().numel() == 1


def test_upper_confidence_bound():
    q = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    std = (8 / 3) ** 0.5
    torch.testing.assert_close(F.upper_confidence_bound(q, kappa=-2.0), torch.tensor([3.0 - 2 * std, 2.0]))
    torch.testing.assert_close(F.reduce_ensemble(q, "ucb", kappa=0.0), F.reduce_ensemble(q, "mean"))


def test_upper_confidence_bound_of_equal_members_has_a_finite_gradient():
    q = torch.zeros(4, 3, requires_grad=True)
    F.upper_confidence_bound(q, kappa=-1.0).sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_reductions_are_ordered():
    q, draws = torch.randn(10, 64), torch.rand(10)
    least = F.reduce_ensemble(q, "min", draws=draws, num_min_qs=10)
    some = F.reduce_ensemble(q, "min", draws=draws, num_min_qs=2)
    torch.testing.assert_close(least, q.min(0).values)
    assert (least <= some).all()
    assert (least <= F.reduce_ensemble(q, "mean")).all()


def test_the_confidence_bound_is_pessimistic_by_default():
    q = torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(F.reduce_ensemble(q, "ucb"), torch.tensor([1.0]))


def test_take_best_is_a_loop():
    scores, candidates = torch.randn(7, 5), torch.randn(7, 5, 3, 2)
    expected = torch.stack([candidates[i, scores[i].argmax()] for i in range(7)])
    torch.testing.assert_close(F.take_best(scores, candidates), expected)
    members = torch.randn(4, 7, 5)
    expected = torch.stack([members[:, i, scores[i].argmax()] for i in range(7)], 1)
    torch.testing.assert_close(F.take_best(scores, members, dim=1), expected)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: F.subset_min(torch.zeros(3, 2), torch.rand(2), size=1), r"draws.*\[3\]"),
        (lambda: F.subset_min(torch.zeros(3, 2), torch.rand(3), size=4), "3 members"),
        (lambda: F.subset_min(torch.zeros(3, 2), torch.rand(3), size=0), "size"),
        (lambda: F.subset_min(torch.zeros(0, 2), torch.rand(0), size=1), "num_qs"),
        (lambda: F.reduce_ensemble(torch.zeros(3, 2), "min"), "draws"),
        (lambda: F.reduce_ensemble(torch.zeros(3, 2), "max"), "'max'"),
        (lambda: F.take_best(torch.zeros(3, 2), torch.zeros(2, 3)), "scores"),
    ],
)
def test_bad_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
