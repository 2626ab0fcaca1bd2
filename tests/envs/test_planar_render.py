"""Pictures of the planar task: everything is where the state says."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_flow.envs import PlanarGeometry, PlanarPickPlaceEnv
from torchrl_flow.envs.planar.render import COLOURS, pixel_of, render_planar

GEOMETRY = PlanarGeometry()


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
    state = env.reset(seed=0)["observation"]
    state[..., 2:4] = 1.0
    state[..., 0:2] = state[..., 4:6]
    data = env.reset(TensorDict({"observation": state}, [1]), set_state=True)
    pixels = data["pixels"][0].flatten(1).T.unique(dim=0).tolist()
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


def test_pixels_follow_the_state_through_partial_steps_resets_and_restores():
    env = PlanarPickPlaceEnv(6, from_pixels=True, max_episode_steps=4)
    data = env.reset(seed=list(range(6)))
    generator = torch.Generator().manual_seed(0)
    saved = {name: value.clone() for name, value in env.state_dict().items()}
    for step in range(15):
        data["action"] = torch.rand(6, 3, generator=generator) * 2 - 1
        if step % 3 == 0:
            data["_step"] = torch.rand(6, generator=generator) < 0.5
        done, data = env.step_and_maybe_reset(data)
        for part in (done["next"], data):
            expected = render_planar(part["observation"], GEOMETRY)
            assert torch.equal(part["pixels"], expected)
    env.load_state_dict(saved)
    data["_step"] = torch.tensor([True, False, False, False, False, False])
    restored = env.step(data.set("action", torch.zeros(6, 3)))["next"]
    assert torch.equal(restored["pixels"], render_planar(restored["observation"], GEOMETRY))
    assert torch.equal(restored["observation"], saved["_state"])
