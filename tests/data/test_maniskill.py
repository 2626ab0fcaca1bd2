from __future__ import annotations

import hashlib
import json

import h5py
import numpy as np
import pytest
import torch
from torchrl.data.datasets import load_dataset

import torchrl_flow.data
from torchrl_flow.data import DataError, DataWarning, DemoReplayBuffer, DemoStore, read_maniskill
from torchrl_flow.data.demos.writer import VERSION
from torchrl_flow.util.digest import file_digest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHRL_FLOW_CACHE", str(tmp_path / "cache"))


def test_state_files(write_maniskill, make_trajectory):
    entries = [make_trajectory(steps, seed) for seed, steps in enumerate((6, 4))]
    for entry in entries:
        entry["rewards"] = np.arange(len(entry["actions"]), dtype=np.float32)
    store = read_maniskill(write_maniskill(entries))
    for index, entry in enumerate(entries):
        episode = store.episode(index)
        np.testing.assert_array_equal(episode["observation"], entry["obs"])
        np.testing.assert_array_equal(episode["action"], entry["actions"])
        np.testing.assert_array_equal(episode["reward"].squeeze(-1), entry["rewards"])
        np.testing.assert_array_equal(episode["success"].squeeze(-1), entry["success"])
        assert int(episode["seed"]) == 100 + index
    assert store.task_info == {
        "task": "PickCube-v1",
        "control_mode": "pd_ee_delta_pose",
        "obs_mode": "state",
        "max_episode_steps": 50,
        "reward_mode": None,
    }


def test_flags_of_the_file_are_ignored_and_sparse_rewards_follow_success(write_maniskill, make_trajectory):
    path = write_maniskill([make_trajectory(8, success_from=5)])  # terminated and truncated are True all along
    buffer = load_dataset(f"maniskill:{path}", pred_horizon=4, act_horizon=2, gamma=1.0)
    following = buffer[:]["next"]
    assert following["terminated"].squeeze(-1).tolist() == [False] * 4 + [True] * 4
    assert not following["truncated"].any()
    assert following["reward"].squeeze(-1).tolist() == [0.0] * 4 + [1.0] * 4
    assert following["steps_to_next_obs"].squeeze(-1).tolist() == [2, 2, 2, 2, 2, 1, 1, 1]


def outcomes_of(path, **options):
    following = load_dataset(f"maniskill:{path}", pred_horizon=4, act_horizon=2, gamma=1.0, **options)[:]["next"]
    return {key: value.squeeze(-1).tolist() for key, value in following.items() if key != "observation"}


def test_a_success_that_does_not_end_the_task(write_maniskill, make_trajectory):
    path = write_maniskill([make_trajectory(8, success_from=5)])
    found = outcomes_of(path, success_terminates=False)
    assert not any(found["terminated"])
    assert found["steps_to_next_obs"] == [2] * 7 + [1]
    assert found["truncated"] == [False] * 6 + [True, True]
    assert found["success"] == [False] * 4 + [True] * 4
    assert found["reward"] == [0.0] * 4 + [1.0, 2.0, 2.0, 1.0]
    # By default it does, and the store of one option is not that of the other.
    assert outcomes_of(path)["terminated"] == [False] * 4 + [True] * 4
    assert read_maniskill(path).root != read_maniskill(path, success_terminates=False).root


def test_ends_that_the_file_has_recorded(write_maniskill, make_trajectory):
    entry = make_trajectory(6, success_from=99)
    entry["terminated"] = np.arange(6) == 3  # a fall
    entry["truncated"] = np.arange(6) == 5
    path = write_maniskill([entry])
    found = outcomes_of(path, recorded_ends=True)
    assert found["terminated"] == [False, False, True, True, False, False]
    assert found["steps_to_next_obs"] == [2, 2, 2, 1, 2, 1]
    assert found["truncated"] == [False, False, False, False, True, True]
    assert not any(outcomes_of(path)["terminated"])


def test_recorded_ends_that_do_not_fit_are_named(write_maniskill, make_trajectory, tmp_path):
    entry = make_trajectory(6, success_from=99)
    entry["truncated"] = np.arange(6) >= 4
    with pytest.raises(DataError, match=r"`truncated` is 1 at row 4, and the episode goes on to row 5"):
        read_maniskill(write_maniskill([entry]), recorded_ends=True)
    without = {key: value for key, value in entry.items() if key not in ("terminated", "truncated")}
    path = write_maniskill([without], folder=tmp_path / "without")
    with pytest.raises(DataError, match=r"recorded_ends=True, but it has no `terminated` and no `truncated`"):
        read_maniskill(path, recorded_ends=True)


def test_stores_made_before_an_option_existed_are_reopened(write_maniskill):
    """The key of a store with default options is that of a version without the later ones."""
    path = write_maniskill()
    digests = [file_digest(path), file_digest(path.with_suffix(".json"))]
    before = {
        **{"max_episodes": None, "after_success": "keep", "keep_after_success": 0},
        **{"drop_idle": False, "camera": None, "env_states": False},
    }
    content = json.dumps([VERSION, digests, before], sort_keys=True)
    assert read_maniskill(path).metadata["key"] == hashlib.sha256(content.encode()).hexdigest()


def test_nested_rgb_files(write_maniskill, rgb_trajectory):
    entries = [rgb_trajectory(steps, seed) for seed, steps in enumerate((3, 5))]
    path = write_maniskill(entries, obs_mode="rgb")
    store = read_maniskill(path, env_states=True)
    for index, entry in enumerate(entries):
        obs, episode = entry["obs"], store.episode(index)
        columns = [
            obs["agent"]["qvel"],
            obs["agent"]["qpos"],
            obs["extra"]["tcp_pose"],
            obs["extra"]["is_grasped"][:, None].astype(np.float32),
            obs["extra"]["goal_pos"],
        ]
        np.testing.assert_array_equal(episode["observation"], np.concatenate(columns, axis=-1))
        image = obs["sensor_data"]["base_camera"]["rgb"].transpose(0, 3, 1, 2)
        assert episode["pixels"].dtype == torch.uint8
        np.testing.assert_array_equal(episode["pixels"], image)
        np.testing.assert_array_equal(
            episode["env_state", "actors", "table-workspace"], entry["env_states"]["actors"]["table-workspace"]
        )
    assert store.metadata["state_keys"] == [
        "agent/qvel",
        "agent/qpos",
        "extra/tcp_pose",
        "extra/is_grasped",
        "extra/goal_pos",
    ]
    hand = read_maniskill(path, camera="hand_camera").episode(0)["pixels"]
    np.testing.assert_array_equal(hand, entries[0]["obs"]["sensor_data"]["hand_camera"]["rgb"].transpose(0, 3, 1, 2))
    batch = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, obs_horizon=2, batch_size=6).sample()
    assert batch["pixels"].shape == batch["next", "pixels"].shape == (6, 2, 3, 6, 4)
    with pytest.raises(DataError, match=r"wrist.*base_camera"):
        read_maniskill(path, camera="wrist")


def test_an_unordered_nested_file_is_read_with_a_warning(write_maniskill, rgb_trajectory):
    path = write_maniskill([rgb_trajectory(3)], obs_mode="rgb", track_order=False)
    with pytest.warns(DataWarning, match="track_order"):
        store = read_maniskill(path)
    assert store.metadata["state_keys"][:2] == ["agent/qpos", "agent/qvel"]


def test_rgb_and_state_files(write_maniskill, rgb_trajectory):
    entry = rgb_trajectory(3)
    state = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    entry["obs"] = {"sensor_data": entry["obs"]["sensor_data"], "state": state}
    store = read_maniskill(write_maniskill([entry], obs_mode="rgb+state"))
    np.testing.assert_array_equal(store.episode(0)["observation"], state)


def test_options_and_content_key_the_store(write_maniskill, tmp_path):
    path = write_maniskill()
    first = read_maniskill(path)
    stamp = (first.root / "metadata.json").stat().st_mtime_ns
    assert read_maniskill(path).root == first.root
    assert (first.root / "metadata.json").stat().st_mtime_ns == stamp
    cut = read_maniskill(path, max_episodes=2)
    assert cut.root != first.root
    assert (cut.num_episodes, first.num_episodes) == (2, 3)
    at = read_maniskill(path, tmp_path / "here")
    assert at.root == tmp_path / "here"
    with pytest.raises(DataError, match="another root"):
        read_maniskill(path, tmp_path / "here", max_episodes=2)
    with h5py.File(path, "r+") as file:
        file["traj_0/actions"][0, 0] = 5.0
    assert read_maniskill(path).root != first.root
    with pytest.raises(DataError, match="another root"):
        read_maniskill(path, tmp_path / "here")


def test_trimming_options(write_maniskill, make_trajectory):
    entry = make_trajectory(10, success_from=4)
    entry["actions"][1] = entry["actions"][2] = 0.0
    entry["obs"][1] = entry["obs"][2] = entry["obs"][3]
    path = write_maniskill([entry])
    cut = read_maniskill(path, after_success="cut", keep_after_success=2)
    assert cut.num_steps == 7
    assert read_maniskill(path, after_success="keep").num_steps == 10
    assert read_maniskill(path, drop_idle=True).num_steps == 9  # the first of the two changes the gripper command
    assert read_maniskill(path, drop_idle=True, after_success="cut").num_steps == 4
    for options in ({"after_success": "stop"}, {"keep_after_success": -1}, {"max_episodes": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            read_maniskill(path, **options)


def _json(path, edit):
    info = json.loads(path.with_suffix(".json").read_text())
    edit(info)
    path.with_suffix(".json").write_text(json.dumps(info))


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(path):
    with h5py.File(path, "w") as file:
        file.create_group("data")


def _drop(path, name):
    with h5py.File(path, "r+") as file:
        for group in file.values():
            del group[name]


BAD_FILES = {
    "missing": (lambda p: p.unlink(), "no such file"),
    "zero bytes": (lambda p: p.write_bytes(b""), r"empty \(0 bytes\)"),
    "truncated": (_truncate, "damaged"),
    "not HDF5": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "not an HDF5 file"),
    "no trajectories": (lambda p: h5py.File(p, "w").close(), "it is empty"),
    "foreign HDF5": (_replace, r"holds \['data'\]"),
    "no json": (lambda p: p.with_suffix(".json").unlink(), "has no .*json beside it"),
    "damaged json": (lambda p: p.with_suffix(".json").write_text('{"env_info":'), "damaged, not JSON"),
    "foreign json": (lambda p: p.with_suffix(".json").write_text('{"name": "x"}'), "not of ManiSkill"),
    "json of no episodes": (lambda p: _json(p, lambda i: i.update(episodes=[])), "lists no episode"),
    "json without ids": (lambda p: _json(p, lambda i: i.update(episodes=[{}])), "episode_id"),
    "json of another file": (
        lambda p: _json(p, lambda i: [e.update(elapsed_steps=99) for e in i["episodes"]]),
        "does not fit",
    ),
    "mixed control modes": (
        lambda p: _json(p, lambda i: i["episodes"][1].update(control_mode="pd_joint_pos")),
        "mixes control modes.*pd_joint_pos",
    ),
    "declared control mode": (
        lambda p: _json(p, lambda i: i["env_info"]["env_kwargs"].update(control_mode="x")),
        "mixes control modes.*'x'",
    ),
    "no observations": (lambda p: _drop(p, "obs"), "no observations"),
    "no success": (lambda p: _drop(p, "success"), "no usable episode.*`success`"),
}


@pytest.mark.filterwarnings("error::torchrl_flow.data.DataWarning")
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_by_name_and_reason(write_maniskill, tmp_path, kind):
    break_it, message = BAD_FILES[kind]
    path = write_maniskill()
    break_it(path)
    with pytest.raises(DataError, match=message) as error:
        read_maniskill(path, tmp_path / "store")
    assert path.stem in str(error.value)
    assert not (tmp_path / "store").exists()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not an \.h5 file"):
        load_dataset(f"maniskill:{tmp_path / 'demos.zip'}", pred_horizon=2, act_horizon=1)


def _set(path, key, value):
    with h5py.File(path, "r+") as file:
        del file[f"traj_1/{key}"]
        file[f"traj_1/{key}"] = value


BAD_TRAJECTORIES = {
    "NaN": (lambda p: _set(p, "obs", np.full((5, 5), np.nan, dtype=np.float32)), "not finite"),
    "wrong length": (lambda p: _set(p, "obs", np.zeros((4, 5), dtype=np.float32)), "there must be 5"),
    "wrong width": (lambda p: _set(p, "actions", np.zeros((4, 2), dtype=np.float32)), "most episodes"),
    "json disagrees": (lambda p: _json(p, lambda i: i["episodes"][1].update(elapsed_steps=9)), "the .json says 9"),
    "missing group": (lambda p: _json(p, lambda i: i["episodes"][1].update(episode_id=77)), "no such group"),
    "not a group": (lambda p: _drop_group(p), "no `actions`"),
    "short success": (lambda p: _set(p, "success", np.zeros(2, dtype=bool)), "`success` must be"),
}


def _drop_group(path):
    with h5py.File(path, "r+") as file:
        del file["traj_1"]
        file["traj_1"] = np.zeros(3)


@pytest.mark.parametrize("kind", BAD_TRAJECTORIES)
def test_one_bad_trajectory_is_skipped_and_counted(write_maniskill, kind):
    spoil, message = BAD_TRAJECTORIES[kind]
    path = write_maniskill()
    spoil(path)
    with pytest.warns(DataWarning, match="1 episode"):
        store = read_maniskill(path)
    assert store.num_episodes == 2
    (reason,) = store.skipped
    assert reason.startswith("traj_")
    assert message in reason
    assert DemoStore.open(store.root).skipped == [reason]


def test_load_dataset_takes_a_file_or_a_store(write_maniskill):
    path = write_maniskill()
    options = {"pred_horizon": 4, "act_horizon": 2, "obs_horizon": 2, "batch_size": 8}
    buffer = load_dataset(f"maniskill:{path}", max_episodes=2, **options)
    assert isinstance(buffer, DemoReplayBuffer)
    assert len(buffer) == 10
    again = load_dataset(f"maniskill:{buffer.store.root}", **options)
    torch.manual_seed(0)
    batch = buffer.sample()
    torch.manual_seed(0)
    assert (again.sample() == batch).all()
    assert torch.equal(buffer.statistics()["action"]["std"], again.statistics()["action"]["std"])
    with pytest.raises(ValueError, match="drop_idle"):
        load_dataset(f"maniskill:{buffer.store.root}", drop_idle=True, **options)


def test_all_names_are_there():
    assert all(hasattr(torchrl_flow.data, name) for name in torchrl_flow.data.__all__)
