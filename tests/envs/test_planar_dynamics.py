"""Layouts and dynamics of the planar task, checked against plain python."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_flow.envs import PlanarGeometry
from torchrl_flow.envs.planar.dynamics import collides, initial_state, is_placed, planar_step

GEOMETRY = PlanarGeometry()


def states(num, seed=0):
    return initial_state(torch.rand(num, 11, generator=torch.Generator().manual_seed(seed)))


def with_parts(state, **parts):
    """A copy of a state with the parts named set."""
    where = {
        "gripper": 0,
        "closure": 2,
        "held": 3,
        "disc": 4,
        "goal": 6,
        "pillar": 8,
        "open_gap": 10,
        "shut_gap": 11,
    }
    state = state.clone()
    for name, value in parts.items():
        value = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        state[..., where[name] : where[name] + len(value)] = value
    return state


def circle_hits(x, y, radius, state):
    """Overlap with the wall or the pillar, by the distance to the nearest point of each rectangle."""
    g, gap = GEOMETRY, float(state[10])
    left, right = g.wall_x - g.wall_half_width, g.wall_x + g.wall_half_width
    for low, high in ((-1.0, gap - g.gap_half_width), (gap + g.gap_half_width, 2.0)):
        nearest = min(max(x, left), right), min(max(y, low), high)
        if math.dist((x, y), nearest) < radius:
            return True
    return math.dist((x, y), state[8:10].tolist()) < radius + g.pillar_radius


def test_collisions_against_plain_python():
    generator = torch.Generator().manual_seed(0)
    state = states(400)
    points = torch.rand(400, 8, 2, generator=generator)
    points[:, 4:] = torch.stack(  # half of them close to the wall
        [0.48 + 0.16 * torch.rand(400, 4, generator=generator), points[:, 4:, 1]], -1
    )
    radius = 0.02 + 0.05 * torch.rand(400, 8, generator=generator)
    ours = collides(points, radius, state, GEOMETRY)
    for row in range(400):
        for column in range(8):
            x, y = points[row, column].tolist()
            expected = circle_hits(x, y, radius[row, column].item(), state[row])
            # Float32 against float64 may differ where circle and wall just touch.
            if circle_hits(x, y, radius[row, column].item() + 1e-5, state[row]) == circle_hits(
                x, y, radius[row, column].item() - 1e-5, state[row]
            ):
                assert ours[row, column].item() == expected
    assert 0.2 < ours.float().mean() < 0.8


def test_layouts_are_free_and_as_told():
    state = states(5_000)
    gripper, disc, goal, pillar = (state[:, i : i + 2] for i in (0, 4, 6, 8))
    assert not collides(gripper, GEOMETRY.gripper_radius, state, GEOMETRY).any()
    assert not collides(disc, GEOMETRY.disc_radius, state, GEOMETRY).any()
    assert not collides(goal, GEOMETRY.disc_radius, state, GEOMETRY).any()
    assert (torch.cat([gripper, disc]) < GEOMETRY.wall_x).all(0)[0]
    assert (goal[:, 0] > GEOMETRY.wall_x).all()
    assert ((pillar - (gripper + disc) / 2).norm(dim=-1) < 0.015).all()
    lower_open = state[:, 10] < state[:, 11]
    assert 0.45 < lower_open.float().mean() < 0.55
    assert not is_placed(state, GEOMETRY).any()


def test_nothing_ever_enters_the_wall_or_leaves_the_plane():
    # Holding the disc at random offsets, driven by persistent random actions into every obstacle.
    generator = torch.Generator().manual_seed(1)
    state = states(500)
    offset = 0.02 * torch.randn(500, 2, generator=generator)
    held = torch.rand(500, 1, generator=generator) < 0.7
    free = ~collides(state[:, :2] + offset, GEOMETRY.disc_radius, state, GEOMETRY) & (state[:, 0] > 0.08)
    held = held & free.unsqueeze(-1)
    state = with_parts(state)
    state[:, 2:3] = held.float()
    state[:, 3:4] = held.float()
    state[:, 4:6] = torch.where(held, state[:, :2] + offset, state[:, 4:6])
    reached_right = torch.zeros(500, dtype=torch.bool)
    bumped = 0
    for step in range(150):
        if step % 10 == 0:
            action = torch.rand(500, 3, generator=generator) * 3 - 1.5
            action[:, 2] = 1.0
            action[:, 0] += 0.4
        before = state
        state = planar_step(state, action, GEOMETRY)
        moved = (state[:, :2] - before[:, :2]).norm(dim=-1)
        bumped += (moved < 0.2 * GEOMETRY.max_step).sum().item()
        assert not collides(state[:, :2], GEOMETRY.gripper_radius - 1e-6, state, GEOMETRY).any()
        carried = state[:, 4:6][state[:, 3] > 0.5]
        assert not collides(carried, GEOMETRY.disc_radius - 1e-6, state[state[:, 3] > 0.5], GEOMETRY).any()
        margin = torch.where(state[:, 3:4] > 0.5, GEOMETRY.disc_radius, 0.0)
        assert (state[:, 4:6] >= margin - 1e-6).all()
        assert (state[:, 4:6] <= 1 - margin + 1e-6).all()
        # A held disc keeps its place in the fingers.
        still_held = (state[:, 3] > 0.5) & (before[:, 3] > 0.5)
        drift = (state[:, 4:6] - state[:, :2]) - (before[:, 4:6] - before[:, :2])
        assert drift[still_held].abs().max() < 1e-6
        reached_right |= state[:, 0] > GEOMETRY.wall_x + 0.1
    assert bumped > 500
    assert 0.05 < reached_right.float().mean() < 0.95


@pytest.mark.parametrize("holding", [False, True])
def test_the_open_gap_lets_through_and_the_shut_gap_does_not(holding):
    start = states(200)
    for gap, passes in ((10, True), (11, False)):
        y = start[:, gap]
        state = start.clone()
        state[:, 0] = 0.45
        state[:, 1] = y
        if holding:
            state[:, 2:4] = 1.0
            state[:, 4:6] = state[:, :2]
        for _ in range(15):
            state = planar_step(state, torch.tensor([1.0, 0.0, 1.0 if holding else -1.0]), GEOMETRY)
        crossed = state[:, 0] > GEOMETRY.wall_x + GEOMETRY.wall_half_width
        assert crossed.all() if passes else not crossed.any()


def test_a_blocked_move_slides_along_the_wall():
    start = with_parts(states(1), gripper=(0.505, 0.5), open_gap=0.25, shut_gap=0.75)
    after = planar_step(start, torch.tensor([1.0, 1.0, -1.0]), GEOMETRY)
    assert after[0, 0] == start[0, 0]
    assert after[0, 1].item() == pytest.approx(0.5 + GEOMETRY.max_step)


def test_grasp_needs_nearness_and_a_closing_motion():
    base = states(1)
    disc = base[0, 4:6]
    closing, opening = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 0.0, -1.0])

    def close_fully(state):
        for _ in range(math.ceil(1 / GEOMETRY.grip_rate)):
            state = planar_step(state, closing, GEOMETRY)
        return state

    near = with_parts(base, gripper=disc + torch.tensor([GEOMETRY.grasp_radius - 1e-3, 0.0]))
    far = with_parts(base, gripper=disc + torch.tensor([0.0, GEOMETRY.grasp_radius + 1e-3]))
    assert close_fully(near)[0, 3] == 1
    assert close_fully(far)[0, 3] == 0
    # Fingers that closed elsewhere do not grasp by being moved onto the disc.
    moved = with_parts(close_fully(far), gripper=disc)
    assert planar_step(moved, closing, GEOMETRY)[0, 3] == 0
    # Held through the first opening step, released at half closure.
    state = close_fully(near)
    state = planar_step(state, opening, GEOMETRY)
    assert (state[0, 2].item(), state[0, 3].item()) == (pytest.approx(1 - GEOMETRY.grip_rate), 1)
    assert planar_step(state, opening, GEOMETRY)[0, 3] == 0


def test_actions_are_clamped():
    start = states(3)
    big = planar_step(start, torch.tensor([0.2, 40.0, 9.0]), GEOMETRY)
    assert torch.equal(big, planar_step(start, torch.tensor([0.2, 1.0, 1.0]), GEOMETRY))


def test_compiled_step_equals_eager():
    state, action = states(16), torch.rand(16, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    compiled = torch.compile(planar_step, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(state, action, GEOMETRY), planar_step(state, action, GEOMETRY))
