from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_flow.data import DemoReplayBuffer, read_maniskill
from torchrl_flow.demos.make import MakeDemosArgs, make_demonstrations
from torchrl_flow.demos.motion import Motion
from torchrl_flow.demos.retiming import Retiming, resample_path
from torchrl_flow.envs.maniskill.requirements import maniskill_installed

needs_maniskill = pytest.mark.skipif(not maniskill_installed(), reason="ManiSkill is not installed")


def turned(angle):
    """Quaternion wxyz of a turn about z."""
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def distance(one, other):
    """Distance in actions of 0.1 m or 0.1 rad, by rotation matrices rather than by quaternions."""

    def matrix(q):
        w, x, y, z = q
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )

    cosine = (np.trace(matrix(one[3:]).T @ matrix(other[3:])) - 1) / 2
    return max(np.linalg.norm(one[:3] - other[:3]), np.arccos(np.clip(cosine, -1, 1))) / 0.1


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.floats(-0.3, 0.3)), min_size=1, max_size=20
    ),
    speed=st.sampled_from([0.1, 0.3, 1.0]),
)
def test_waypoints_are_evenly_spaced_and_end_where_the_path_ends(steps, speed):
    places = np.cumsum([(0.0, 0.0, 0.0), *steps], axis=0)
    poses = np.stack([np.concatenate([(x, y, 0.5), turned(a)]) for x, y, a in places])
    path = resample_path(poses, np.ones(len(poses)), speed=speed, dwell=3)
    np.testing.assert_allclose(path[-1].pose[:3], poses[-1, :3], atol=1e-9)
    assert distance(path[-1].pose, poses[-1]) < 1e-3
    gaps = [distance(a.pose, b.pose) for a, b in zip([type(path[0])(poses[0], 1.0, False), *path], path)]
    assert max(gaps) <= speed * 1.01 + 1e-6
    assert [w.settle for w in path] == [False] * (len(path) - 1) + [True]


def test_idle_steps_vanish():
    poses = np.concatenate([np.zeros((30, 3)), np.tile(turned(0.0), (30, 1))], axis=1)
    poses[15:, 0] = 0.06  # a jump amid standing still
    path = resample_path(poses, np.ones(30), speed=0.2, dwell=0)
    np.testing.assert_allclose([w.pose[0] for w in path], [0.02, 0.04, 0.06], atol=1e-9)


def test_the_gripper_acts_where_it_did_and_is_waited_for():
    poses = np.concatenate([np.linspace(0, 0.1, 11)[:, None], np.zeros((11, 2)), np.tile(turned(0.0), (11, 1))], 1)
    gripper = np.where(np.arange(11) < 5, 1.0, -1.0)
    path = resample_path(poses, gripper, speed=0.1, dwell=4)
    commands = [w.gripper for w in path]
    switch = commands.index(-1.0)
    assert commands == [1.0] * switch + [-1.0] * (len(path) - switch)
    assert path[switch - 1].settle
    np.testing.assert_allclose(path[switch - 1].pose[0], 0.04, atol=1e-9)
    np.testing.assert_allclose([w.pose[0] for w in path[switch : switch + 4]], 0.05, atol=1e-9)


def test_quaternions_of_either_sign_are_the_same_turn():
    poses = np.stack([np.concatenate([np.zeros(3), sign * turned(a)]) for sign, a in ((1, 0.0), (-1, 0.2))])
    path = resample_path(poses, np.ones(2), speed=1.0, dwell=0)
    assert distance(path[0].pose, np.concatenate([np.zeros(3), turned(0.1)])) < 1e-3


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"speed": 0.0}, "speed"),
        ({"speed": 1.5}, "speed"),
        ({"push_probability": 1.0}, "push_probability"),
        ({"push_size": -1.0}, "push_size"),
        ({"dwell": -1}, "dwell"),
    ],
)
def test_bad_arguments_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        Retiming(**kwargs)


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match=r"\[P, 7\]"):
        resample_path(np.zeros((3, 6)), np.ones(3), speed=0.2, dwell=0)
    with pytest.raises(ValueError, match="pd_ee_delta_pose"):
        Retiming()(Motion(0, np.zeros((2, 7)), None, np.ones(2)))


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    made = {}
    for name, options in {
        "planner": {"retime": False},
        "clean": {"push_probability": 0.0},
        "pushed": {"push_probability": 0.2},
    }.items():
        args = MakeDemosArgs("PushCube-v1", 2, str(folder / name), progress=False, **options)
        made[name] = make_demonstrations(args)
    return made


@needs_maniskill
def test_retimed_demonstrations_are_faster_and_solve_the_task(demos):
    assert demos["clean"].mean_steps < 0.7 * demos["planner"].mean_steps
    assert "retimed" in demos["clean"].path.name
    assert "retimed" not in demos["planner"].path.name
    with h5py.File(demos["clean"].path) as file:
        assert len(file) == 2
        for group in file.values():
            assert group["success"][-1]
            assert not group["perturbed"][:].any()


@needs_maniskill
def test_pushed_steps_are_marked_and_not_imitated(demos, tmp_path):
    store = read_maniskill(demos["pushed"].path, tmp_path / "store")
    perturbed = store.steps["perturbed"].squeeze(-1)
    assert 0.05 < perturbed.float().mean() < 0.8
    buffer = DemoReplayBuffer(store, pred_horizon=8, act_horizon=4, obs_horizon=1, mask_padding=False)
    batch = buffer[list(range(len(store)))]
    for row in range(len(store)):
        end = (
            store.episodes["start"][store.steps["episode"][row]] + store.episodes["length"][store.steps["episode"][row]]
        )
        known, seen = [], False
        for step in range(row, row + 8):
            seen = seen or bool(perturbed[min(step, int(end) - 1)])
            known.append(not seen)
        assert batch["action_mask"][row].tolist() == known, row


@needs_maniskill
def test_other_settings_do_not_mix_in_one_file(demos):
    folder = demos["clean"].path.parents[1]
    with pytest.raises(ValueError, match="transform"):
        make_demonstrations(MakeDemosArgs("PushCube-v1", 2, str(folder), progress=False, push_probability=0.1))
