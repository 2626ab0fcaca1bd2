from __future__ import annotations

import pytest
import torch

from torchrl_flow.functional import alias_residual, best_alias, integrate, invert_noise, reverse_flow


def smooth(x, t, d):
    """A nonlinear field of Lipschitz constant about 2."""
    return torch.sin(2 * x) + t.reshape(-1, 1, 1) * torch.tanh(x.flip(-1)) + 0.5


def test_reversal_then_forward_returns_the_action():
    torch.manual_seed(0)
    action = torch.randn(200, 4, 3)
    noise = reverse_flow(smooth, action, num_steps=64)
    assert not torch.allclose(noise, action, atol=0.1)
    assert (integrate(smooth, noise, num_steps=64, shortcut=False) - action).abs().max() < 1e-3


def test_more_iterations_undo_the_steps_exactly():
    torch.manual_seed(0)
    noise = torch.randn(20, 4, 3, dtype=torch.float64)
    action = integrate(smooth, noise, num_steps=16, shortcut=False)
    errors = [(reverse_flow(smooth, action, num_steps=16, iterations=n) - noise).abs().max() for n in (1, 2, 4, 30)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-12


def test_inversion_of_a_linear_map_is_exact():
    torch.manual_seed(0)
    matrix = torch.randn(6, 6)
    matrix = torch.linalg.qr(matrix)[0]
    wanted = torch.randn(9, 2, 3)

    def decode(w):
        return (w.flatten(-2) @ matrix.mT).unflatten(-1, (2, 3))

    noise, residual = invert_noise(decode, wanted, torch.randn(9, 3, 2, 3), num_steps=200)
    assert residual.max() < 0.02
    torch.testing.assert_close(noise.flatten(1), wanted.flatten(1) @ matrix, atol=0.1, rtol=0)
    torch.testing.assert_close(alias_residual(decode(noise), wanted), residual)


def test_more_steps_never_make_an_inversion_worse():
    torch.manual_seed(0)
    wanted, start = torch.randn(50, 1, 2), torch.randn(50, 2, 1, 2)

    def rough(w):
        return torch.sin(5 * w)

    residuals = [invert_noise(rough, wanted, start, num_steps=n, lr=0.1, final_lr=0.1)[1] for n in (1, 5, 20)]
    assert (residuals[0] >= residuals[1]).all()
    assert (residuals[1] >= residuals[2]).all()


def test_the_point_after_the_last_step_is_evaluated_too():
    calls = []

    def decode(w):
        calls.append(w.detach().clone())
        return w

    target, start = torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 1)
    noise, residual = invert_noise(decode, target, start, num_steps=3, lr=0.1, final_lr=0.1)
    assert len(calls) == 4
    torch.testing.assert_close(noise, calls[-1].squeeze(0))
    torch.testing.assert_close(residual, (1 - noise).reshape(1))


def test_one_step_and_one_iteration_are_enough_for_a_field_without_slope():
    field = lambda x, t, d: torch.full_like(x, 2.0)  # noqa: E731
    torch.testing.assert_close(reverse_flow(field, torch.ones(2, 3), num_steps=1, iterations=1), -torch.ones(2, 3))


def test_the_prior_term_keeps_the_latent_small():
    start = torch.zeros(1, 1, 1, 1)
    far, near = (
        invert_noise(lambda w: 0.1 * w, torch.ones(1, 1, 1), start, num_steps=100, lr=0.2, prior_coef=c)[0].abs()
        for c in (0.0, 1.0)
    )
    assert near < far


def test_retrieval_takes_the_nearest():
    candidates = torch.randn(5, 7, 2, 3)
    target = candidates[torch.arange(5), torch.tensor([3, 0, 6, 2, 2])] + 1e-3
    noise, residual = best_alias(candidates, candidates, target)
    assert torch.equal(noise, candidates[torch.arange(5), torch.tensor([3, 0, 6, 2, 2])])
    torch.testing.assert_close(residual, torch.full((5,), 1e-3), atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: reverse_flow(smooth, torch.zeros(1, 1, 1), num_steps=0), "at least 1"),
        (lambda: invert_noise(torch.sin, torch.zeros(2, 1, 1), torch.zeros(1, 1, 1, 1)), "B = 2"),
        (lambda: invert_noise(torch.sin, torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1), lr=0.0), "final_lr <= lr"),
        (lambda: best_alias(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), torch.zeros(2, 1, 1)), "decoded"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call()
