"""Small files and stores of the real formats."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from torchrl_flow.data import DemoStore

STATE_DIM, ACTION_DIM = 5, 3


def random_episode(steps, rng, success_at=(), seed=0, reward=None):
    """A dict as DemoStore.from_episodes takes it; every value distinct, so that a wrong row shows."""
    success = np.zeros(steps, dtype=bool)
    success[list(success_at)] = True
    episode = {
        "observation": rng.normal(size=(steps + 1, STATE_DIM)).astype(np.float32),
        "action": rng.normal(size=(steps, ACTION_DIM)).astype(np.float32),
        "success": success,
        "reward": rng.normal(size=steps).astype(np.float32) if reward is None else reward,
        "seed": seed,
    }
    return {key: torch.as_tensor(value) for key, value in episode.items()}


@pytest.fixture
def episodes():
    """Episodes of many kinds: length 1 with and without success, success in the middle, at the end, twice, never."""
    rng = np.random.default_rng(0)
    kinds = [(1, ()), (9, (4,)), (1, (0,)), (7, (6,)), (12, (3, 4, 8)), (5, ()), (2, (1,))]
    return [random_episode(steps, rng, success, seed) for seed, (steps, success) in enumerate(kinds)]


@pytest.fixture
def store(episodes, tmp_path):
    return DemoStore.from_episodes(episodes, tmp_path / "store", task_info={"task": "toy"})


def _write(group, name, tree, track_order):
    if isinstance(tree, dict):
        inner = group.create_group(name, track_order=track_order)
        for key, value in tree.items():
            _write(inner, key, value, track_order)
    else:
        group.create_dataset(name, data=tree)


@pytest.fixture
def write_maniskill(tmp_path):
    """Writes an .h5 and a .json as ManiSkill does; returns the path of the .h5."""

    def write(
        trajectories=None,
        name="trajectory.state.pd_ee_delta_pose.physx_cpu",
        control_modes=None,
        obs_mode="state",
        track_order=True,
        folder=None,
    ) -> Path:
        trajectories = (
            [trajectory(steps, seed) for seed, steps in enumerate((6, 4, 8))] if trajectories is None else trajectories
        )
        path = Path(folder or tmp_path) / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        episodes = []
        with h5py.File(path, "w") as file:
            for number, entry in enumerate(trajectories):
                group = file.create_group(f"traj_{number}", track_order=track_order)
                for key, value in entry.items():
                    _write(group, key, value, track_order)
                mode = "pd_ee_delta_pose" if control_modes is None else control_modes[number]
                steps = len(entry["actions"]) if "actions" in entry else 1
                episodes.append(
                    {"episode_id": number, "episode_seed": 100 + number, "control_mode": mode, "elapsed_steps": steps}
                )
        kwargs = {"obs_mode": obs_mode, "control_mode": "pd_ee_delta_pose"}
        info = {"env_id": "PickCube-v1", "env_kwargs": kwargs, "max_episode_steps": 50}
        path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
        return path

    return write


def trajectory(steps, seed=0, success_from=None):
    """The datasets of one trajectory in state mode, with misleading done flags."""
    rng = np.random.default_rng(seed)
    success = np.arange(steps) >= (steps - 1 if success_from is None else success_from)
    return {
        "obs": rng.normal(size=(steps + 1, STATE_DIM)).astype(np.float32),
        "actions": rng.normal(size=(steps, ACTION_DIM)).astype(np.float32),
        "terminated": np.ones(steps, dtype=bool),
        "truncated": np.ones(steps, dtype=bool),
        "success": success,
        "env_states": {"actors": {"table-workspace": rng.normal(size=(steps + 1, 13)).astype(np.float32)}},
    }


@pytest.fixture
def make_trajectory():
    return trajectory


@pytest.fixture
def rgb_trajectory():
    """A trajectory with nested observations, whose order is not alphabetical, and two cameras."""

    def make(steps, seed=0):
        rng = np.random.default_rng(seed)
        entry = trajectory(steps, seed)
        floats = lambda *shape: rng.normal(size=(steps + 1, *shape)).astype(np.float32)  # noqa: E731
        image = lambda: rng.integers(0, 256, size=(steps + 1, 6, 4, 3), dtype=np.uint8)  # noqa: E731
        entry["obs"] = {
            "agent": {"qvel": floats(2), "qpos": floats(3)},
            "extra": {"tcp_pose": floats(7), "is_grasped": rng.random(steps + 1) > 0.5, "goal_pos": floats(3)},
            "sensor_param": {"base_camera": {"intrinsic_cv": floats(3, 3)}},
            "sensor_data": {"hand_camera": {"rgb": image()}, "base_camera": {"rgb": image()}},
        }
        return entry

    return make
