"""The drawing of poses that stands in for a camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_flow.envs import ManiSkillEnv
from torchrl_flow.envs.maniskill.requirements import maniskill_installed
from torchrl_flow.envs.maniskill.schematic import COLOURS, HEIGHT, OBJECTS, REACH, SIZE, _rotate, _stamp

needs_maniskill = pytest.mark.skipif(not maniskill_installed(), reason="needs ManiSkill")


def pixels_of(image, colour):
    return {tuple(place) for place in np.argwhere((image == np.array(colour)).all(-1)).tolist()}


def test_rotation_is_that_of_the_quaternion():
    half = np.sqrt(0.5)
    turned = _rotate(np.array([[half, 0.0, 0.0, half]]), np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]]]))
    np.testing.assert_allclose(turned, [[[0.0, 1.0, 0.0], [-1.0, 0.0, 2.0]]], atol=1e-12)


def test_a_point_is_in_both_views_where_it_should_be_and_nothing_outside():
    canvas = np.zeros((2, SIZE, 2 * SIZE, 3), np.uint8)
    # In the middle of the view from above, at the bottom of that from the side; the other environment sees nothing.
    _stamp(canvas, np.array([[[0.0, 0.0, HEIGHT[0] + 1e-6]], [[9.0, 9.0, 9.0]]]), (1, 2, 3), 0)
    assert pixels_of(canvas[0], (1, 2, 3)) == {(SIZE // 2, SIZE // 2), (SIZE - 1, SIZE + SIZE // 2)}
    assert not canvas[1].any()
    # Forward (x) is up in the first view and right in the second; left (y) is left.
    _stamp(canvas, np.array([[[REACH / 2, REACH / 2, 0.0]], [[9.0, 9.0, 9.0]]]), (4, 5, 6), 0)
    above = min(pixels_of(canvas[0], (4, 5, 6)), key=lambda place: place[1])
    assert above == (SIZE // 4, SIZE // 4)


@needs_maniskill
def test_gripper_object_and_goal_are_drawn_for_each_sub_environment():
    env = ManiSkillEnv("PickCube-v1", num_envs=2, seed=0)
    single = ManiSkillEnv("PickCube-v1", seed=0, visuals=False)
    assert not env.has_visuals
    env.reset()
    single.reset()
    drawn = env.render()
    assert drawn.shape == (2, SIZE, 2 * SIZE, 3)
    assert single.render().shape == (SIZE, 2 * SIZE, 3)
    base = env._env.unwrapped
    for i in range(2):
        for value, colour in ((base.agent.tcp.pose.p, COLOURS["gripper"]), (base.cube.pose.p, OBJECTS[0])):
            x, y, _ = value[i].tolist()
            row, column = int((REACH - x) / (2 * REACH) * SIZE), int((REACH - y) / (2 * REACH) * SIZE)
            near = drawn[i, row - 5 : row + 6, column - 5 : column + 6].reshape(-1, 3)
            assert (near == np.array(colour)).all(-1).any()
        assert len(pixels_of(drawn[i], COLOURS["goal"])) > 20
    env.close()
    single.close()


@needs_maniskill
def test_ways_begin_anew_with_an_episode():
    env = ManiSkillEnv("PickCube-v1", seed=0, control_mode="pd_ee_delta_pos", visuals=False)
    td = env.reset(seed=3)
    first = env.render()
    action = torch.tensor([0.0, 0.0, 1.0, 1.0])
    for _ in range(10):
        td = env.step(td.set("action", action))["next"]
        later = env.render()
    gripper = COLOURS["gripper"]
    assert len(pixels_of(later, gripper)) > len(pixels_of(first, gripper))
    env.reset(seed=3)
    np.testing.assert_array_equal(env.render(), first)
    env.close()
