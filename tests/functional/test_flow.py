from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrl_flow import functional as F


def test_path_starts_at_noise_and_ends_at_data():
    x_0, x_1 = torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(F.interpolate(x_0, x_1, torch.zeros(5)), x_0)
    torch.testing.assert_close(F.interpolate(x_0, x_1, torch.ones(5)), x_1)


def test_velocity_is_the_time_derivative_of_the_path():
    x_0, x_1 = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    _, derivative = torch.func.jvp(lambda t: F.interpolate(x_0, x_1, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(derivative, F.velocity_target(x_0, x_1))


@pytest.mark.parametrize("order", [1])
def test_euler_error_falls_as_one_over_k(order):
    # dx/dt = x has the solution e x(0): the error of K Euler steps is about e / (2 K).
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(F.integrate(lambda x, t, d: x, x, num_steps=k).item() - math.e) for k in (64, 128, 256, 512)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.02)


def test_integration_passes_times_and_step_sizes():
    seen = []

    def field(x, t, d):
        seen.append((t[0].item(), d[0].item()))
        return torch.zeros_like(x)

    F.integrate(field, torch.zeros(2, 1), num_steps=4)
    assert seen == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]
    seen.clear()
    F.integrate(field, torch.zeros(2, 1), num_steps=3, shortcut=False)
    assert [d for _, d in seen] == [0.0, 0.0, 0.0]


@given(
    u_step=st.floats(0, 1, exclude_max=True, width=32),
    u_time=st.floats(0, 1, exclude_max=True, width=32),
    power=st.integers(1, 7),
)
def test_dyadic_draws_lie_on_the_grid(u_step, u_time, power):
    max_steps = 2**power
    d, t = F.select_dyadic_steps(torch.tensor([u_step]), torch.tensor([u_time]), max_steps=max_steps)
    d, t = d.item(), t.item()
    assert d in F.dyadic_step_sizes(max_steps)
    assert (t / d).is_integer()
    assert 0 <= t <= 1 - d


def test_dyadic_draws_are_uniform_over_sizes_and_cells():
    u = torch.rand(2, 60_000)
    d, t = F.select_dyadic_steps(u[0], u[1], max_steps=8)
    assert F.dyadic_step_sizes(8) == [1.0, 0.5, 0.25]
    for size in (1.0, 0.5, 0.25):
        assert (d == size).float().mean().item() == pytest.approx(1 / 3, abs=0.01)
        cells = torch.bincount((t[d == size] / size).long())
        assert len(cells) == round(1 / size)
        torch.testing.assert_close(cells / cells.sum(), torch.full((len(cells),), size), atol=0.02, rtol=0)


def test_one_step_takes_the_velocity_at_the_start():
    out = F.integrate(lambda x, t, d: x + 1 + t[:, None], torch.ones(2, 1), num_steps=1)
    torch.testing.assert_close(out, torch.full((2, 1), 3.0))


@pytest.mark.parametrize("max_steps", [0, 1, 3, 12, -4])
def test_max_steps_must_be_a_power_of_two(max_steps):
    with pytest.raises(ValueError, match=f"power of two.*got {max_steps}"):
        F.dyadic_step_sizes(max_steps)


def test_shortcut_target_is_the_displacement_of_two_half_steps():
    field = lambda x, t, d: torch.sin(x) + t[:, None]  # noqa: E731
    x, t, d = torch.randn(6, 3), torch.zeros(6), torch.full((6,), 0.5)
    two = F.euler_step(x, field(x, t, d), 0.25)
    two = F.euler_step(two, field(two, t + 0.25, d), 0.25)
    target = F.shortcut_target(field, x, t, d, max_steps=16)
    torch.testing.assert_close(F.euler_step(x, target, d), two)


def test_finest_half_step_asks_for_the_instantaneous_velocity():
    sizes = []

    def field(x, t, d):
        sizes.append(d.tolist())
        return x

    F.shortcut_target(field, torch.zeros(2, 1), torch.zeros(2), torch.tensor([0.25, 0.5]), max_steps=8)
    assert sizes == [[0.0, 0.25], [0.0, 0.25]]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_shortcut_target_is_clipped(sign):
    point = torch.full((1, 1), 100.0 * sign)
    target = F.shortcut_target(lambda x, t, d: x, point, torch.zeros(1), torch.ones(1), max_steps=4, clip=4.0)
    assert target.item() == 4.0 * sign


@given(batch=st.integers(0, 300), fraction=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0]))
def test_consistency_rows_are_spread_evenly(batch, fraction):
    rows = F.consistency_rows(batch, fraction).tolist()
    assert len(rows) == math.floor(batch * fraction + 1e-9)
    assert rows == sorted(set(rows))
    for cut in range(0, batch, 17):
        assert abs(sum(row < cut for row in rows) - cut * fraction) <= 1


def test_masked_mean_square_equals_dropping_the_steps():
    error = torch.randn(4, 6, 3)
    mask = torch.rand(4, 6) > 0.4
    mask[:, 0] = True
    expected = torch.stack([error[b][mask[b]].square().mean() for b in range(4)])
    torch.testing.assert_close(F.masked_mean_square(error, mask), expected)
    torch.testing.assert_close(F.masked_mean_square(error), error.square().mean((1, 2)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: F.interpolate(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2)),
            "x_0 and x_1 must have one shape",
        ),
        (lambda: F.interpolate(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1)), "one value per row"),
        (lambda: F.velocity_target(torch.zeros(2, 3), torch.zeros(3)), "x_0 and x_1 must have one shape"),
        (lambda: F.euler_step(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)), "dt must hold"),
        (lambda: F.integrate(lambda x, t, d: x, torch.zeros(2, 3), num_steps=0), "num_steps must be"),
        (lambda: F.masked_mean_square(torch.zeros(2, 3, 1), torch.zeros(2, 1).bool()), "mask must have"),
        (lambda: F.masked_mean_square(torch.zeros(2, 3)), r"\[B, H, A\]"),
        (lambda: F.consistency_rows(4, 1.5), "fraction"),
    ],
)
def test_nothing_is_broadcast_silently(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_mean_is_over_the_real_steps_alone():
    error = torch.full((2, 4, 3), 2.0)
    mask = torch.tensor([[True, False, False, False], [False, False, False, False]])
    torch.testing.assert_close(F.masked_mean_square(error, mask), torch.tensor([4.0, 0.0]))
