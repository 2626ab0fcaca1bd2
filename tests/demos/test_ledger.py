from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from torchrl_flow.data import DataError, read_maniskill
from torchrl_flow.demos.ledger import Attempt, DemoLedger
from torchrl_flow.demos.recording import RecordedEpisode

SETTINGS = {"task": "PushCube-v1", "first_seed": 0}
INFO = {"env_info": {"env_id": "PushCube-v1"}}


def episode(seed, steps=3):
    rng = np.random.default_rng(seed)
    flags = np.ones(steps, dtype=bool)
    return RecordedEpisode(
        seed=seed,
        obs={
            "agent": {"qvel": rng.normal(size=(steps + 1, 2)), "qpos": rng.normal(size=(steps + 1, 2))},
            "sensor_data": {"base_camera": {"rgb": rng.integers(0, 256, (steps + 1, 4, 4, 3), dtype=np.uint8)}},
        },
        env_states={"actors": {"cube": rng.normal(size=(steps + 1, 13))}},
        actions=rng.normal(size=(steps, 7)).astype(np.float32),
        success=flags,
        terminated=flags,
        truncated=~flags,
        rewards=None,
    )


def fill(ledger, seeds):
    for seed in seeds:
        if seed % 3 == 1:
            ledger.add(Attempt(seed, "planning", reason="no path"))
        else:
            ledger.add(Attempt(seed, "done", steps=3), episode(seed))


def contents(path):
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


@pytest.fixture
def whole(tmp_path):
    ledger = DemoLedger(tmp_path / "whole" / "t.h5", SETTINGS)
    fill(ledger, range(6))
    ledger.merge(INFO, {"control_mode": "x"})
    return contents(ledger.path)


def test_a_file_has_maniskills_layout_and_order(tmp_path, whole):
    with h5py.File(tmp_path / "whole" / "t.h5") as file:
        assert list(file) == ["traj_0", "traj_1", "traj_2", "traj_3"]
        assert list(file["traj_1/obs/agent"]) == ["qvel", "qpos"]
        np.testing.assert_array_equal(file["traj_1/actions"], episode(2).actions)
        rgb = file["traj_2/obs/sensor_data/base_camera/rgb"]
        np.testing.assert_array_equal(rgb, episode(3).obs["sensor_data"]["base_camera"]["rgb"])
        assert "rewards" not in file["traj_0"]
    info = json.loads(whole[1])
    assert [entry["episode_seed"] for entry in info["episodes"]] == [0, 2, 3, 5]
    assert [entry["stage"] for entry in info["make_demos"]["attempts"]].count("planning") == 2


def test_interrupted_anywhere_and_extended_it_ends_with_equal_files(tmp_path, whole):
    path = tmp_path / "resumed" / "t.h5"
    fill(DemoLedger(path, SETTINGS), range(2))
    again = DemoLedger(path, SETTINGS)
    assert sorted(again.attempts) == [0, 1]
    fill(again, range(2, 4))
    again.merge(INFO, {"control_mode": "x"})
    assert not again.parts.exists()
    extended = DemoLedger(path, SETTINGS)
    assert [attempt.seed for attempt in extended.done] == [0, 2, 3]
    fill(extended, range(4, 6))
    extended.merge(INFO, {"control_mode": "x"})
    assert contents(path) == whole


def test_a_kill_during_the_merge_is_mended(tmp_path, whole, monkeypatch):
    path = tmp_path / "killed" / "t.h5"
    ledger = DemoLedger(path, SETTINGS)
    fill(ledger, range(4))
    ledger.merge(INFO, {"control_mode": "x"})
    ledger = DemoLedger(path, SETTINGS)
    fill(ledger, range(4, 6))
    replaced = []

    def replace(source, target):
        if target.parent != path.parent:
            return source.rename(target)
        if replaced:  # the .h5 is in place, the .json is the old one
            raise KeyboardInterrupt
        replaced.append(target)
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr("torchrl_flow.util.files.publish", replace)
        with pytest.raises(KeyboardInterrupt):
            ledger.merge(INFO, {"control_mode": "x"})
    assert replaced == [path]
    mended = DemoLedger(path, SETTINGS)
    assert not mended.is_merged()
    mended.merge(INFO, {"control_mode": "x"})
    assert contents(path) == whole


def test_an_attempt_that_was_cut_short_does_not_count(tmp_path):
    ledger = DemoLedger(tmp_path / "t.h5", SETTINGS)
    fill(ledger, [0, 2])
    next(ledger.parts.glob("seed_*2.json")).unlink()
    assert sorted(DemoLedger(tmp_path / "t.h5", SETTINGS).attempts) == [0]
    fill(ledger, [2])
    next(ledger.parts.glob("seed_*2.h5")).unlink()
    assert sorted(DemoLedger(tmp_path / "t.h5", SETTINGS).attempts) == [0]


def test_other_settings_are_refused_and_nothing_is_changed(tmp_path, whole):
    path = tmp_path / "whole" / "t.h5"
    with pytest.raises(ValueError, match=r"first_seed \(0 there, 7 now\)"):
        DemoLedger(path, {**SETTINGS, "first_seed": 7})
    other = tmp_path / "parts" / "t.h5"
    fill(DemoLedger(other, SETTINGS), range(1))
    with pytest.raises(ValueError, match="task"):
        DemoLedger(other, {**SETTINGS, "task": "PickCube-v1"})
    assert contents(path) == whole


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"env_info": {}, "episodes": []}))
    with pytest.raises(ValueError, match="not made by this program"):
        DemoLedger(tmp_path / "t.h5", SETTINGS)


def merged(tmp_path):
    """Files as the reader takes them, in state mode."""
    rng = np.random.default_rng(0)
    flags = np.array([False, False, True])
    ledger = DemoLedger(tmp_path / "t.h5", SETTINGS)
    for seed in range(3):
        arrays = {"obs": rng.normal(size=(4, 5)).astype(np.float32), "actions": rng.normal(size=(3, 2))}
        outcomes = {"success": flags, "terminated": flags, "truncated": ~flags, "rewards": None}
        states = {"actors": {"cube": rng.normal(size=(4, 13))}}
        made = RecordedEpisode(seed=seed, env_states=states, **arrays, **outcomes)
        ledger.add(Attempt(seed, "done", steps=3), made)
    ledger.merge(INFO, {"control_mode": "x"})
    return ledger.path


def test_each_data_set_has_a_checksum(tmp_path):
    with h5py.File(merged(tmp_path)) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        assert len(found) == 3 * 6
        assert all(item.fletcher32 for item in found.values())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_of_either_file_is_refused(tmp_path, place):
    path = merged(tmp_path)
    for file in (path, path.with_suffix(".json")):
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 4
        whole = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(DataError, match=file.name):
            read_maniskill(path, tmp_path / "store")
        file.write_bytes(whole)
    assert len(read_maniskill(path, tmp_path / "store")) == 9


def test_what_was_changed_on_purpose_is_read_without_the_checksums(tmp_path):
    path = merged(tmp_path)
    with h5py.File(path, "r+") as file:
        file["traj_0/actions"][0, 0] = 7.0
    with pytest.raises(DataError, match=r"remove `make_demos` and `digest` from the \.json"):
        read_maniskill(path, tmp_path / "store")
    content = json.loads(path.with_suffix(".json").read_text())
    content["source_desc"] = "edited"
    path.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="if you changed it on purpose, remove `digest`"):
        read_maniskill(path, tmp_path / "store")
    del content["make_demos"], content["digest"]
    path.with_suffix(".json").write_text(json.dumps(content))
    assert read_maniskill(path, tmp_path / "store").steps["action"][0, 0] == 7.0


@pytest.mark.parametrize("content", ["[]", "{", '{"seed": 1}', '{"seed": 1, "stage": "done", "colour": 2}'])
def test_a_damaged_attempt_is_named(tmp_path, content):
    ledger = DemoLedger(tmp_path / "t.h5", SETTINGS)
    fill(ledger, [0, 2])
    file = next(ledger.parts.glob("seed_*2.json"))
    file.write_text(content)
    with pytest.raises(DataError, match=file.name):
        DemoLedger(tmp_path / "t.h5", SETTINGS)


def test_a_damaged_file_is_not_extended(tmp_path):
    path = merged(tmp_path)
    file = path.with_suffix(".json")
    file.write_text(file.read_text().replace('"steps": 3', '"steps": 4', 1))
    with pytest.raises(DataError, match=r"t\.json was changed"):
        DemoLedger(path, SETTINGS)
