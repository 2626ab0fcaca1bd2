from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from torchrl_flow.functional.statistics import wilson_interval


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven methods",
# Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score method without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 2, 7, 100, 10_000])
def test_ends_solve_the_score_equation(n, confidence):
    # The ends are by definition the rates p at which |p_hat - p| is exactly z standard errors of p.
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for successes in {0, 1, n // 2, n}:
        low, high = wilson_interval(successes, n, confidence)
        assert 0 <= low <= successes / n <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_symmetry():
    low, high = wilson_interval(3, 17)
    assert wilson_interval(14, 17) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 0), "n must"), ((5, 4), "successes"), ((-1, 4), "successes"), ((1, 4, 1.0), "confidence")],
)
def test_refuses(arguments, name):
    with pytest.raises(ValueError, match=name):
        wilson_interval(*arguments)
