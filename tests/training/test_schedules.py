from __future__ import annotations

import math

import pytest

from torchrl_flow.training import warmup_cosine


def test_the_rate_warms_up_and_falls_along_half_a_cosine():
    # A quarter of the way the cosine is cos(pi / 4).
    quarter = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 4))
    assert warmup_cosine(2.0, 250, 1000) == pytest.approx(2.0 * quarter)
    assert warmup_cosine(2.0, 250, 1000, warmup=500) == pytest.approx(quarter)
    assert warmup_cosine(2.0, 1000, 1000) == pytest.approx(0.02)
    assert warmup_cosine(2.0, 1000, 1000, floor=0.5) == pytest.approx(1.0)
