from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings

import h5py
import numpy as np
import pytest

from torchrl_flow.data import DataWarning, read_maniskill

planner = all(importlib.util.find_spec(name) for name in ("mani_skill", "mplib"))
pytestmark = pytest.mark.skipif(not planner, reason="needs mani_skill and mplib")

if planner:
    from torchrl_flow.demos.make import MakeDemosArgs, make_demonstrations, make_planner_env
    from torchrl_flow.envs.maniskill.headless import headless


def arguments(folder, **options):
    return MakeDemosArgs(
        **{"task": "PushCube-v1", "num_demos": 2, "out_dir": str(folder), "progress": False, "retime": False, **options}
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return make_demonstrations(arguments(tmp_path_factory.mktemp("demos"), verify=True))


def contents(path):
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


def test_demonstrations_are_read_and_say_how_they_were_made(report, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        store = read_maniskill(report.path, tmp_path / "store", env_states=True)
    assert (store.num_episodes, report.num_demos, report.new_demos) == (2, 2, 2)
    assert store.task_info["task"] == "PushCube-v1"
    assert store.task_info["control_mode"] == "pd_ee_delta_pose"
    assert store.episodes["seed"].tolist() == [0, 1]
    assert store.episodes["success"].all()
    assert store.steps["action"].abs().max() <= 1
    assert (report.attempts, report.planner_success_rate, report.conversion_success_rate) == (2, 1.0, 1.0)
    assert 40 < report.mean_steps < 100
    assert store.task_info["max_episode_steps"] == max(store.episodes["length"]) > 50
    assert "2 demonstrations" in report.summary()


def test_recorded_actions_solve_the_task_in_a_fresh_environment(report):
    info = json.loads(report.path.with_suffix(".json").read_text())
    assert len(info["episodes"]) == report.num_demos > 0
    with headless(), h5py.File(report.path) as file:
        env = make_planner_env("PushCube-v1", obs_mode="state", control_mode="pd_ee_delta_pose", reward_mode="sparse")
        for episode in reversed(info["episodes"]):
            group = file[f"traj_{episode['episode_id']}"]
            obs, _ = env.reset(**episode["reset_kwargs"])
            np.testing.assert_array_equal(obs[0], group["obs"][0])
            for step, action in enumerate(group["actions"]):
                obs, _, _, _, outcome = env.step(action)
                assert bool(outcome["success"]) == group["success"][step]
                np.testing.assert_array_equal(obs[0], group["obs"][step + 1])
            assert group["success"][-1]
        env.close()


def test_what_is_there_is_not_made_again(report):
    before = contents(report.path)
    folder = report.path.parent.parent

    def factory(*args, **kwargs):
        raise AssertionError("nothing is to be simulated")

    for num_demos in (1, 2):
        again = make_demonstrations(arguments(folder, num_demos=num_demos), env_factory=factory)
        assert (again.num_demos, again.new_demos) == (2, 0)
    assert contents(report.path) == before


def test_an_interrupted_run_goes_on_and_ends_with_equal_files(report, tmp_path):
    made = []

    def factory(*args, **kwargs):
        env = make_planner_env(*args, **kwargs)
        step = env.step

        def interrupted(action):
            made.append(action)
            if len(made) == 200:  # in the second demonstration
                raise KeyboardInterrupt
            return step(action)

        env.step = interrupted
        return env

    with pytest.raises(KeyboardInterrupt):
        make_demonstrations(arguments(tmp_path), env_factory=factory)
    parts = sorted(path.name for path in (tmp_path / "PushCube-v1").glob(".*.parts/seed*"))
    assert parts == ["seed_00000000.h5", "seed_00000000.json"]
    resumed = make_demonstrations(arguments(tmp_path))
    assert resumed.new_demos == 1
    assert contents(resumed.path) == contents(report.path)


def test_global_random_state_is_left_alone(tmp_path):
    import random

    import torch

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    from torchrl_flow.demos.planner import Recorder

    with headless():
        recorder = Recorder("PushCube-v1", make_planner_env, control_mode="pd_ee_delta_pose", obs_mode="state")
        before = state()
        recorder.demonstrate(0)
        assert state() == before
        recorder.close()


def faster(motion):
    """Twice the speed: the sum of every two translations, as far as it is within bounds."""
    arm, gripper = motion.actions[:, :-1], motion.actions[:, -1:]
    arm = arm[: len(arm) // 2 * 2].reshape(-1, 2, arm.shape[-1]).sum(1).clip(-1, 1)
    pause = np.zeros((8, arm.shape[-1]), dtype=np.float32)
    arm = np.concatenate([arm, pause])
    return np.concatenate([arm, np.repeat(gripper[:1], len(arm), axis=0)], axis=-1)


def test_a_transform_is_simulated_again_and_named(report, tmp_path):
    fast = make_demonstrations(arguments(tmp_path, num_demos=1), transform=faster)
    assert fast.mean_steps < 0.7 * report.mean_steps
    made = json.loads(fast.path.with_suffix(".json").read_text())["make_demos"]
    assert made["settings"]["transform"] == "faster"
    with pytest.raises(ValueError, match="transform"):
        make_demonstrations(arguments(tmp_path, num_demos=2))


def test_a_controller_as_transform_gets_the_environment_and_the_targets(report, tmp_path):
    def follow(motion):
        waypoints = iter(zip(motion.target_pose[::2], motion.gripper[::2]))

        def control(env):
            pose, gripper = next(waypoints, (None, None))
            if pose is None:
                return None
            delta = (pose[:3] - env.unwrapped.agent.tcp.pose.p[0].numpy()) / 0.1
            return np.concatenate([delta.clip(-1, 1), np.zeros(3), [gripper]])

        return control

    done = make_demonstrations(arguments(tmp_path, num_demos=1), transform=follow, transform_name="follow")
    assert done.mean_steps < 0.7 * report.mean_steps


def test_failures_are_counted_by_stage_and_give_up_in_the_end(tmp_path):
    with pytest.raises(RuntimeError, match=r"2 seeds of PushCube-v1 gave 0 of 1 .*'replay': 2"):
        make_demonstrations(
            arguments(tmp_path, num_demos=1, max_attempts=2), transform=lambda motion: np.zeros_like(motion.actions)
        )
    with pytest.raises(RuntimeError, match="'length': 1"):
        make_demonstrations(arguments(tmp_path / "short", num_demos=1, max_attempts=1, max_steps=10))


@pytest.mark.parametrize("control_mode", ["pd_joint_pos", "pd_joint_delta_pos"])
def test_other_control_modes(tmp_path, control_mode):
    made = make_demonstrations(arguments(tmp_path, num_demos=1, control_mode=control_mode, reward_mode="dense"))
    store = read_maniskill(made.path, tmp_path / "store")
    assert store.task_info["control_mode"] == control_mode
    assert store.steps["reward"].unique().numel() > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_demos": 0}, "num_demos"),
        ({"obs_mode": "depth"}, "obs_mode"),
        ({"first_seed": -1}, "first_seed"),
        ({"max_attempts": 1}, "max_attempts"),
        ({"image_size": 64}, r"image_size=64 .*obs_mode='state' records none"),
        ({"control_mode": "foo"}, r"control_mode='foo' is not a control mode of PushCube-v1, which has"),
        ({"task": "PokeCube-v1"}, "PushCube-v1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_demonstrations(arguments(tmp_path, **options))


@pytest.mark.slow
def test_a_killed_process_goes_on_and_ends_with_equal_files(report, tmp_path):
    code = (
        "import sys; from torchrl_flow.demos.make import *;"
        "make_demonstrations(MakeDemosArgs(task='PushCube-v1', num_demos=2, out_dir=sys.argv[1], progress=False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(tmp_path.glob("*/.*.parts/seed*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = make_demonstrations(arguments(tmp_path))
    assert resumed.new_demos >= 1
    assert contents(resumed.path) == contents(report.path)
