from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from torchrl_flow.functional import (
    bound_latent,
    bound_log_det,
    candidate_weights,
    expand_latent,
    kl_to_prior,
    mixture_log_prob,
    normal_log_prob,
    unbound_latent,
)


def test_bound_and_its_inverse_and_jacobian():
    u = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    w = bound_latent(u, 1.5)
    assert w.abs().max() < 1.5
    torch.testing.assert_close(unbound_latent(w, 1.5), u)
    (slope,) = torch.autograd.grad(w.sum(), u)
    torch.testing.assert_close(bound_log_det(u, 1.5), slope.log())


def test_a_wide_bound_is_none():
    u = torch.randn(100)
    torch.testing.assert_close(bound_latent(u, 1e3), u, rtol=1e-4, atol=1e-5)
    assert bound_latent(u, None) is u
    assert not bound_log_det(u, None).any()


def test_latents_at_the_bound_stay_finite():
    assert unbound_latent(torch.tensor([2.0, -2.0]), 2.0).isfinite().all()
    assert bound_log_det(torch.tensor([1e4, -1e4]), 2.0).isfinite().all()


def test_densities_equal_those_of_torch():
    loc, scale, u = torch.randn(7, 4, 3), torch.rand(7, 4, 3) + 0.1, torch.randn(7, 4, 3)
    torch.testing.assert_close(normal_log_prob(u, loc, scale), Independent(Normal(loc, scale), 2).log_prob(u))
    prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(scale)), 2)
    torch.testing.assert_close(normal_log_prob(u), prior.log_prob(u))
    torch.testing.assert_close(kl_to_prior(loc, scale), kl_divergence(Independent(Normal(loc, scale), 2), prior))


@pytest.mark.parametrize(("rho", "expected"), [(0.0, -3.0), (1.0, -50.0)])
def test_a_mixture_of_one_is_that_one(rho, expected):
    log_prob = torch.tensor([-3.0], requires_grad=True)
    value = mixture_log_prob(log_prob, torch.tensor([-50.0]), torch.tensor(rho))
    assert value.item() == expected
    value.backward()
    assert log_prob.grad.item() == 1 - rho


def test_weights_concentrate_on_the_best_candidate_as_beta_grows():
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.6]])
    shares = [candidate_weights(scores, beta=beta).amax(-1) for beta in (0.0, 1.0, 10.0, 200)]
    torch.testing.assert_close(shares[0], torch.full((2,), 1 / 3))
    assert all((low < high).all() for low, high in itertools.pairwise(shares))
    assert (shares[-1] > 0.999).all()
    weights = candidate_weights(scores, beta=200.0)
    assert weights.argmax(-1).tolist() == [1, 0]


def test_a_soft_baseline_would_change_nothing():
    scores = torch.randn(64, 16, dtype=torch.float64)
    for tau in (0.1, 1.0, 50.0):
        baseline = ((scores / tau).softmax(-1) * scores).sum(-1, keepdim=True)
        torch.testing.assert_close(candidate_weights(scores, beta=3.0), (3.0 * (scores - baseline)).softmax(-1))


def test_expansion():
    fill = torch.randn(2, 5, 3)
    head = torch.randn(2, 2, 3)
    noise = expand_latent(head, fill, "act_horizon")
    assert torch.equal(noise, torch.cat([head, fill[:, 2:]], 1))
    assert torch.equal(expand_latent(head[:, :1], fill, "tied"), head[:, :1].expand(2, 5, 3))
    assert expand_latent(fill, fill, "full") is fill


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bound_latent(torch.zeros(1), 0.0), "bound must be above 0"),
        (lambda: kl_to_prior(torch.zeros(2, 1, 1), torch.ones(1, 1, 1)), r"\[\*B, S, A\]|2, 1, 1"),
        (
            lambda: expand_latent(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), "half"),
            "steer_mode must be 'full', 'act_horizon' or 'tied'",
        ),
        (lambda: expand_latent(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), "full"), r"shape \[1, 4, 3\]"),
        (lambda: candidate_weights(torch.zeros(3), beta=1.0), r"\[B, M\]"),
        (lambda: candidate_weights(torch.zeros(1, 3), beta=-1.0), "beta must be at least 0"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_latent_of_the_executed_steps_replaces_the_first_steps_of_the_noise():
    latent, noise = torch.ones(3, 1, 2), torch.zeros(3, 4, 2)
    expected = torch.cat([torch.ones(3, 1, 2), torch.zeros(3, 3, 2)], 1)
    torch.testing.assert_close(expand_latent(latent, noise, "act_horizon"), expected)
