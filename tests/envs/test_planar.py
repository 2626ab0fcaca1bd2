"""The planar pick-and-place env: dynamics against plain python, seeding, partial resets and steps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import SerialEnv
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import PlanarPickPlaceEnv
from torchrl_flow.envs._counter_rng import counter_uniform, splitmix64
from torchrl_flow.envs._planar_dynamics import PlanarGeometry, collides, initial_state, is_placed, planar_step
from torchrl_flow.envs._planar_render import COLOURS, pixel_of

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


def put(env, state):
    """Resets the env to the states given."""
    data = TensorDict({"observation": state}, batch_size=env.batch_size)
    return env.reset(data, set_state=True)


def act(env, tensordict, *action):
    action = torch.tensor(action, dtype=torch.float32).expand(*env.batch_size, 3)
    return env.step(tensordict.clone().set("action", action))["next"]


# --- specs and construction -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [None, 1, 5])
@pytest.mark.parametrize("from_pixels", [False, True])
@pytest.mark.parametrize("ignore_terminations", [False, True])
def test_specs(num_envs, from_pixels, ignore_terminations):
    env = PlanarPickPlaceEnv(
        num_envs, from_pixels=from_pixels, ignore_terminations=ignore_terminations, max_episode_steps=3
    )
    check_env_specs(env)
    assert env.batch_locked
    assert env.batch_size == torch.Size([] if num_envs is None else [num_envs])


def test_renamed_keys():
    env = PlanarPickPlaceEnv(
        2, from_pixels=True, observation_key=("agent", "state"), pixels_key=("agent", "rgb"), success_key="ok"
    )
    check_env_specs(env)
    assert ("agent", "rgb") in env.rollout(2).keys(True)


def test_unbatched_env_in_serial_env():
    env = SerialEnv(2, lambda: PlanarPickPlaceEnv(None))
    check_env_specs(env)


def test_task_info_is_json():
    info = PlanarPickPlaceEnv(1, from_pixels=True).task_info
    assert json.loads(json.dumps(info)) == info
    assert {"task", "control_mode", "obs_mode"} <= set(info)
    assert info["obs_mode"] != PlanarPickPlaceEnv(1).task_info["obs_mode"]


@pytest.mark.parametrize("kwargs", [{"num_envs": 0}, {"max_episode_steps": 0}])
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PlanarPickPlaceEnv(**kwargs)


@pytest.mark.parametrize(
    "sizes", [{"disc_radius": 0.2}, {"max_step": 0.3}, {"pillar_radius": 0.1}, {"goal_radius": -1.0}]
)
def test_impossible_geometry_is_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        PlanarGeometry(**sizes)


def test_bad_reset_options():
    env = PlanarPickPlaceEnv(3)
    with pytest.raises(ValueError, match="seed must be one int or 3"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="observation"):
        env.reset(set_state=True)
    with pytest.raises(ValueError, match="sead"):
        env.reset(sead=1)


# --- random numbers and seeding -------------------------------------------------------------------------


def test_splitmix64_reference_values():
    # The published generator's first outputs for seed 1234567.
    state, golden, expected = (
        1234567,
        0x9E3779B97F4A7C15,
        [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
        ],
    )
    for i, value in enumerate(expected):
        seed = (state + i * golden + 2**63) % 2**64 - 2**63
        assert splitmix64(torch.tensor(seed)).item() % 2**64 == value


def test_counter_uniform_is_uniform_and_uncorrelated():
    n = torch.arange(20_000)
    u = counter_uniform(n, torch.zeros_like(n), 4)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.01
    assert (u.var(0) - 1 / 12).abs().max() < 0.003
    assert (torch.corrcoef(u.T) - torch.eye(4)).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([u[1:, 0], u[:-1, 0]]))[0, 1].abs() < 0.03


def test_episode_seed_gives_the_same_start_in_any_batch():
    seeds = [7, 10_000, -3, 2**70, 7]
    batch = PlanarPickPlaceEnv(5, seed=1).reset(seed=seeds)["observation"]
    for row, seed in zip(batch, seeds):
        alone = PlanarPickPlaceEnv(None, seed=99).reset(seed=seed)["observation"]
        assert torch.equal(row, alone)
    assert torch.equal(batch[0], batch[4])
    assert not torch.equal(batch[0], batch[1])
    one = PlanarPickPlaceEnv(3).reset(seed=10_000)["observation"]
    assert torch.equal(one, PlanarPickPlaceEnv(3).reset(seed=[10_000, 10_001, 10_002])["observation"])


def test_later_episodes_of_a_seeded_sub_env_do_not_depend_on_its_neighbours():
    def third_start(num_envs, resets_of_others):
        env = PlanarPickPlaceEnv(num_envs)
        data = env.reset(seed=list(range(5, 5 + num_envs)))
        mask = torch.zeros(num_envs, 1, dtype=torch.bool)
        for _ in range(resets_of_others):
            data = env.reset(data.set("_reset", ~(mask.index_fill(0, torch.tensor([0]), True))))
        mask[0] = True
        for _ in range(2):
            data = env.reset(data.set("_reset", mask.clone()))
        return data["observation"][0]

    assert torch.equal(third_start(2, 0), third_start(4, 3))


def test_set_seed_makes_two_runs_equal():
    runs = []
    for _ in range(2):
        env = PlanarPickPlaceEnv(8, max_episode_steps=5)
        env.set_seed(3)
        torch.manual_seed(0)
        runs.append(env.rollout(20, break_when_any_done=False))
    assert (runs[0] == runs[1]).all()
    env.set_seed(4)
    assert not torch.equal(env.reset()["observation"], runs[0]["observation"][:, 0])


def test_successive_and_neighbouring_episodes_differ():
    env = PlanarPickPlaceEnv(64, seed=0)
    first, second = env.reset()["observation"], env.reset()["observation"]
    assert len(torch.cat([first, second]).unique(dim=0)) == 128


# --- layouts and dynamics against plain python ----------------------------------------------------------


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


# --- episode semantics ----------------------------------------------------------------------------------


def at_goal(env, distance=0.0):
    state = env.reset(seed=0)["observation"]
    goal = state[..., 6:8]
    state = state.clone()
    state[..., 2:4] = 1.0
    state[..., 4:6] = goal + torch.tensor([-distance, 0.0])
    state[..., 0:2] = state[..., 4:6]
    return put(env, state)


def release(env, data):
    trace = []
    for _ in range(3):
        data = act(env, data, 0.0, 0.0, -1.0)
        trace.append(data)
        data = data.exclude("reward")
    return torch.stack(trace, -1)


@pytest.mark.parametrize("ignore_terminations", [False, True])
def test_success_is_the_disc_released_at_the_goal(ignore_terminations):
    env = PlanarPickPlaceEnv(2, ignore_terminations=ignore_terminations)
    data = at_goal(env)
    assert not data["success"].any()  # still held
    trace = release(env, data)
    expected = torch.tensor([False, True, True]).expand(2, 3)
    assert torch.equal(trace["success"].squeeze(-1), expected)
    assert torch.equal(trace["reward"].squeeze(-1), expected.float())
    assert torch.equal(trace["terminated"].squeeze(-1), expected & (not ignore_terminations))
    assert torch.equal(trace["done"], trace["terminated"])
    assert not trace["truncated"].any()


def test_released_beside_the_goal_is_no_success():
    env = PlanarPickPlaceEnv(1)
    assert not release(env, at_goal(env, GEOMETRY.goal_radius + 2e-3))["success"].any()
    assert release(env, at_goal(env, GEOMETRY.goal_radius - 2e-3))["success"].any()


def test_truncation_after_max_episode_steps():
    env = PlanarPickPlaceEnv(2, max_episode_steps=4)
    rollout = env.rollout(10)
    assert rollout.shape == (2, 4)
    assert rollout["next", "truncated"].squeeze(-1).tolist() == [[False, False, False, True]] * 2
    assert not rollout["next", "terminated"].any()


def test_partial_reset_leaves_the_others_untouched():
    env = PlanarPickPlaceEnv(4, seed=0, max_episode_steps=6)
    data = env.reset()
    for _ in range(3):
        data = act(env, data, 1.0, 0.3, 0.2).exclude("reward")
    mask = torch.tensor([True, False, True, False])
    before = data["observation"].clone()
    data = env.reset(data.set("_reset", mask.unsqueeze(-1)))
    assert torch.equal(data["observation"][~mask], before[~mask])
    assert (data["observation"][mask] != before[mask]).any(-1).all()
    # Their clocks differ from now on: the others end three steps earlier.
    ends = torch.zeros(4, dtype=torch.int64)
    for step in range(1, 7):
        data = act(env, data, 0.0, 0.0, 0.0).exclude("reward")
        ends = torch.where(data["truncated"].squeeze(-1) & (ends == 0), step, ends)
    assert ends.tolist() == [6, 3, 6, 3]


def test_partial_reset_with_seed_or_state():
    env = PlanarPickPlaceEnv(3, seed=0)
    before = env.reset()
    mask = torch.tensor([[False], [True], [False]])
    given = states(3)
    data = before.clone().set("_reset", mask).set("observation", given)
    after = env.reset(data, set_state=True)["observation"]
    assert torch.equal(env._state[1], given[1])
    assert torch.equal(env._state[[0, 2]], before["observation"][[0, 2]])
    assert torch.equal(after[1], given[1])
    seeded = env.reset(before.clone().set("_reset", mask), seed=[5, 6, 7])["observation"]
    assert torch.equal(seeded[1], PlanarPickPlaceEnv(None).reset(seed=6)["observation"])
    assert torch.equal(seeded[[0, 2]], before["observation"][[0, 2]])


def test_step_mask_is_honoured():
    env = PlanarPickPlaceEnv(4, max_episode_steps=3)
    data = env.reset(seed=0)
    mask = torch.tensor([True, False, False, True])
    start = data["observation"].clone()
    action = torch.tensor([0.5, 0.5, 1.0]).expand(4, 3)
    for _ in range(3):
        stepped = env.step(data.clone().set("action", action).set("_step", mask))["next"]
        data = stepped.exclude("reward")
    assert torch.equal(data["observation"][~mask], start[~mask])
    assert torch.equal(data["truncated"].squeeze(-1), mask)  # frozen clocks do not run
    expected = start[mask]
    for _ in range(3):
        expected = planar_step(expected, action[mask], GEOMETRY)
    assert torch.equal(data["observation"][mask], expected)


def test_step_mask_repeats_no_reward_and_keeps_the_flags():
    env = PlanarPickPlaceEnv(2)
    data = release(env, at_goal(env))[..., 1].exclude("reward")
    assert data["success"].all()
    mask = torch.tensor([False, True])
    data = data.set("action", torch.zeros(2, 3)).set("_step", mask)
    after = env.step(data)["next"]
    assert after["reward"].squeeze(-1).tolist() == [0.0, 1.0]
    assert after["terminated"].all()
    assert after["success"].all()


def test_outputs_do_not_alias_the_state():
    env = PlanarPickPlaceEnv(2)
    data = env.reset(seed=0)
    kept = env._state.clone()
    data["observation"].zero_()
    assert torch.equal(env._state, kept)


def test_compiled_step_equals_eager():
    state, action = states(16), torch.rand(16, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    compiled = torch.compile(planar_step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(state, action, GEOMETRY), planar_step(state, action, GEOMETRY))


# --- pictures -------------------------------------------------------------------------------------------


def test_pixels_show_each_thing_where_it_is():
    env = PlanarPickPlaceEnv(32, from_pixels=True)
    data = env.reset(seed=0)
    state, pixels = data["observation"], data["pixels"]
    wall = torch.full((32, 1), GEOMETRY.wall_x)

    def colour_at(point):
        row, column = pixel_of(point, 64).unbind(-1)
        return [tuple(pixels[i, :, row[i], column[i]].tolist()) for i in range(32)]

    assert set(colour_at(state[:, 0:2])) == {COLOURS["open_fingers"]}
    assert set(colour_at(state[:, 4:6])) == {COLOURS["disc"]}
    assert set(colour_at(state[:, 8:10])) == {COLOURS["pillar"]}
    assert set(colour_at(torch.cat([wall, state[:, 11:12]], -1))) == {COLOURS["shut_gap"]}
    assert set(colour_at(torch.cat([wall, state[:, 10:11]], -1))) == {COLOURS["ground"]}
    assert set(colour_at(torch.cat([wall, torch.full_like(wall, 0.5)], -1))) == {COLOURS["wall"]}
    rim = state[:, 6:8] + torch.tensor([GEOMETRY.goal_radius - 0.009, 0.0])
    assert set(colour_at(rim)) == {COLOURS["goal"]}


def test_closed_fingers_and_held_disc_are_seen():
    env = PlanarPickPlaceEnv(1, from_pixels=True)
    pixels = at_goal(env)["pixels"][0].flatten(1).T.unique(dim=0).tolist()
    assert list(COLOURS["closed_fingers"]) in pixels
    assert list(COLOURS["open_fingers"]) not in pixels
    assert list(COLOURS["disc"]) in pixels


def test_pixels_depend_on_their_own_row_alone():
    both = PlanarPickPlaceEnv(2, from_pixels=True).reset(seed=[3, 4])["pixels"]
    for row, seed in zip(both, (3, 4)):
        assert torch.equal(row, PlanarPickPlaceEnv(None, from_pixels=True).reset(seed=seed)["pixels"])


def test_render_shapes_and_smoothness():
    env = PlanarPickPlaceEnv(2, seed=0)
    state = env.reset()["observation"]
    frames = env.render(resolution=128)
    assert frames.shape == (2, 128, 128, 3)
    assert frames.dtype == torch.uint8
    assert torch.equal(env.render(128, index=1), frames[1])
    row, column = pixel_of(state[1, 4:6], 128).tolist()
    assert tuple(frames[1, row, column].tolist()) == COLOURS["disc"]
    assert len(frames[1].flatten(0, 1).unique(dim=0)) > len(COLOURS)  # edges are blended
    assert PlanarPickPlaceEnv(None).render(64).shape == (64, 64, 3)
