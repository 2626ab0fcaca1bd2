from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from torchrl_flow.functional.observation import flatten_state, state_paths


def nested(n: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "extra": {
            "tcp_pose": torch.rand(n, 7, generator=generator),
            "is_grasped": torch.tensor([True, False] * (n // 2)),
            "cubes": {"b": torch.rand(n, 2, generator=generator), "a": torch.rand(n, generator=generator)},
        },
        "sensor_data": {"base_camera": {"rgb": torch.zeros(n, 8, 8, 3, dtype=torch.uint8)}},
        "agent": {"qpos": torch.rand(n, 3, generator=generator), "controller": {}},
    }


def test_agent_comes_first_and_entries_keep_their_order():
    observation = nested()
    extra = observation["extra"]
    expected = torch.cat(
        [
            observation["agent"]["qpos"],
            extra["tcp_pose"],
            extra["is_grasped"].float()[:, None],
            extra["cubes"]["b"],
            extra["cubes"]["a"][:, None],
        ],
        dim=-1,
    )
    flat = flatten_state(observation)
    assert flat.dtype == torch.float32
    torch.testing.assert_close(flat, expected, rtol=0, atol=0)
    assert state_paths(observation) == [
        ("agent", "qpos"),
        ("extra", "tcp_pose"),
        ("extra", "is_grasped"),
        ("extra", "cubes", "b"),
        ("extra", "cubes", "a"),
    ]


def test_a_file_that_tracks_order_gives_the_columns_of_the_live_observation(tmp_path):
    observation = nested()
    with h5py.File(tmp_path / "demo.h5", "w", track_order=True) as file:

        def write(group, tree):
            for name, value in tree.items():
                if isinstance(value, dict):
                    write(group.create_group(name, track_order=True), value)
                else:
                    group.create_dataset(name, data=value.numpy())

        write(file.create_group("obs", track_order=True), observation)
    with h5py.File(tmp_path / "demo.h5") as file:
        torch.testing.assert_close(flatten_state(file["obs"]), flatten_state(observation), rtol=0, atol=0)


def test_the_vector_shares_no_memory_with_its_source():
    source = {"agent": {"qpos": np.zeros((2, 3), dtype=np.float32)}}
    flat = flatten_state(source)
    source["agent"]["qpos"][:] = 1
    assert float(flat.abs().sum()) == 0


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"sensor_data": {}}, r"sensor_data.*no entry under `agent` or `extra`"),
        ({"agent": {}, "extra": {}}, "no entry under"),
        ({"agent": {"image": torch.zeros(2, 3, 3)}}, r"agent/image has shape \(2, 3, 3\)"),
    ],
)
def test_what_makes_no_vector_is_refused_by_name(observation, message):
    with pytest.raises(ValueError, match=message):
        flatten_state(observation)
