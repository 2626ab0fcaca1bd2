from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_flow import functional as F


def official(x_0, x_next, mean, sigma, *, count_start, average_steps, average_dims):
    """The published scoring, restated: chunks flattened, steps summed, then divided by numbers of steps and of dims."""
    total, steps = torch.zeros(x_0.shape[0], dtype=x_0.dtype), 0
    flat = [t.flatten(-2) for t in (x_next, mean, sigma)]
    if count_start:
        standard = torch.distributions.Normal(torch.zeros_like(x_0.flatten(1)), 1.0)
        total, steps = total + standard.log_prob(x_0.flatten(1)).sum(-1), 1
    per_step = torch.distributions.Normal(flat[1], flat[2]).log_prob(flat[0]).sum(-1)
    total, steps = total + per_step.sum(-1), steps + per_step.shape[-1]
    total = total / steps if average_steps else total
    return total / flat[0].shape[-1] if average_dims else total


def chain(batch=5, steps=4, dtype=torch.float32):
    x_next, mean = torch.randn(2, batch, steps, 6, 3, dtype=dtype)
    return torch.randn(batch, 6, 3, dtype=dtype), x_next, mean, 0.05 + torch.rand_like(mean)


@pytest.mark.parametrize("count_start", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_log_prob_equals_the_published_formula(steps, reduction, count_start):
    # In float64: of a sum over hundreds of terms float32 keeps no six digits after the point.
    x_0, x_next, mean, sigma = chain(steps=steps, dtype=torch.float64)
    ours = F.chain_log_prob(x_next, mean, sigma, noise=x_0 if count_start else None, reduction=reduction)
    normalised = reduction == "mean"
    flags = {"count_start": count_start, "average_steps": normalised, "average_dims": normalised}
    torch.testing.assert_close(ours, official(x_0, x_next, mean, sigma, **flags), rtol=0, atol=1e-6)


def test_log_prob_equals_a_hand_written_sum():
    _, x_next, mean, sigma = chain(batch=2, steps=3, dtype=torch.float64)
    for row in range(2):
        total = 0.0
        for k in range(3):
            for h in range(6):
                for a in range(3):
                    m, s, x = (float(t[row, k, h, a]) for t in (mean, sigma, x_next))
                    total += -((x - m) ** 2) / (2 * s * s) - math.log(s) - math.log(math.sqrt(2 * math.pi))
        assert F.chain_log_prob(x_next, mean, sigma, reduction="sum")[row].item() == pytest.approx(total, abs=1e-9)
        assert F.chain_log_prob(x_next, mean, sigma)[row].item() == pytest.approx(total / 54, abs=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_start_cancels_in_a_ratio_of_sums_but_not_its_share_of_a_mean(reduction):
    x_0, x_next, mean, sigma = chain(dtype=torch.float64)
    other = mean + 0.1
    with_start, without = (
        F.chain_log_prob(x_next, mean, sigma, noise=noise, reduction=reduction)
        - F.chain_log_prob(x_next, other, sigma, noise=noise, reduction=reduction)
        for noise in (x_0, None)
    )
    share = 4 / 5 if reduction == "mean" else 1
    torch.testing.assert_close(with_start, share * without)


def test_entropy_equals_that_of_torch():
    sigma = 0.05 + torch.rand(5, 4, 6, 3)
    reference = torch.distributions.Normal(torch.zeros_like(sigma), sigma).entropy()
    torch.testing.assert_close(F.chain_entropy(sigma), reference.mean((1, 2, 3)))
    torch.testing.assert_close(F.chain_entropy(sigma, reduction="sum"), reference.sum((1, 2, 3)))


@given(st.floats(-50, 50), st.floats(1e-4, 0.5), st.floats(1.0, 20.0))
def test_sigma_stays_within_its_bounds(z, low, factor):
    sigma = F.bounded_sigma(torch.tensor(z, dtype=torch.float64), low, low * factor).item()
    assert low * (1 - 1e-6) <= sigma <= low * factor * (1 + 1e-6)


def test_sigma_is_the_published_expression():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    low, high = math.log(0.01**2), math.log(0.3**2)
    expected = torch.exp(0.5 * (low + (high - low) * (torch.tanh(z) + 1) / 2))
    torch.testing.assert_close(F.bounded_sigma(z, 0.01, 0.3), expected)
    torch.testing.assert_close(F.bounded_sigma(z, 0.01, torch.tensor(0.3, dtype=torch.float64)), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.3, 0.3, 0.3, 0.3]),
        ("linear", [0.3, 0.2275, 0.01, 0.01]),
        ("exponential", [0.3, 0.01 + 0.29 * math.exp(-0.75), 0.01 + 0.29 * math.exp(-3), 0.01 + 0.29 * math.exp(-3)]),
    ],
)
def test_schedules(kind, expected):
    bounds = {"sigma_max": 0.3, "sigma_min": 0.01, "decay_steps": 100}
    found = [F.max_sigma_schedule(step, kind=kind, **bounds) for step in (0, 25, 100, 1000)]
    assert found == pytest.approx(expected)


def test_transport_cost_is_the_squared_distance_and_bounds_the_distance_of_gaussians():
    chunk, reference = torch.randn(2, 10_000, 1, 1, dtype=torch.float64)
    chunk = 2.0 * chunk + 1.0
    cost = F.chunk_transport_cost(chunk, reference)
    torch.testing.assert_close(cost, (chunk - reference).square().flatten())
    # W2 between N(1, 2) and N(0, 1) is 1 + (2 - 1)^2; the independent coupling costs 1 + 4 + 1.
    assert cost.mean().item() == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.chain_times(0), "num_steps"),
        (lambda: F.bounded_sigma(torch.zeros(2), 0.0, 0.1), "sigma_min"),
        (lambda: F.bounded_sigma(torch.zeros(2), 0.2, 0.1), "sigma_max"),
        (lambda: F.chain_log_prob(*[torch.zeros(2, 3, 4, 5)] * 2, torch.ones(2, 3, 4, 1)), "one shape"),
        (lambda: F.chain_log_prob(*[torch.ones(2, 3, 4, 5)] * 3, noise=torch.ones(2, 3, 4)), "noise"),
        (lambda: F.chain_log_prob(*[torch.ones(2, 3, 4, 5)] * 3, reduction="none"), "reduction"),
        (lambda: F.chain_entropy(torch.ones(3, 2)), "sigma"),
        (lambda: F.chunk_transport_cost(torch.ones(3, 2), torch.ones(2)), "one shape"),
        (lambda: F.max_sigma_schedule(0, kind="cosine", sigma_max=0.3, sigma_min=0.1, decay_steps=9), "kind"),
        (lambda: F.max_sigma_schedule(0, kind="linear", sigma_max=0.3, sigma_min=0.0, decay_steps=9), "sigma_min"),
        (lambda: F.max_sigma_schedule(0, kind="linear", sigma_max=0.3, sigma_min=0.1, decay_steps=0), "decay_steps"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_chain_without_a_batch_has_one_log_probability():
    x = torch.zeros(3, 4, 5)
    torch.testing.assert_close(F.chain_log_prob(x, x, torch.ones_like(x), reduction="sum"), torch.tensor(-55.1363))
    torch.testing.assert_close(F.chunk_transport_cost(torch.ones(4, 5), torch.zeros(4, 5)), torch.tensor(20.0))
