from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from tensordict import MemoryMappedTensor, TensorDict

from torchrl_flow.data import DataError, DataWarning, DemoStore, column_statistics, cut_after_success, drop_idle_steps
from torchrl_flow.data.demos import store_files
from torchrl_flow.data.demos.episode import Episode
from torchrl_flow.data.demos.store import TASK_KEYS
from torchrl_flow.envs import TaskInfo


def test_episodes_come_back_as_they_were(store, episodes):
    assert (store.num_episodes, store.num_steps, len(store)) == (7, 37, 37)
    for index, expected in enumerate(episodes):
        got = store.episode(index)
        for key in ("observation", "action", "seed"):
            assert torch.equal(got[key], expected[key])
        for key in ("success", "reward"):
            assert torch.equal(got[key].squeeze(-1), expected[key])
    assert torch.equal(store.episode(-1)["action"], episodes[-1]["action"])
    assert [int(e["seed"]) for e in store] == list(range(7))
    assert store.episodes["success"].tolist() == [bool(e["success"].any()) for e in episodes]
    with pytest.raises(IndexError, match="episode 7"):
        store.episode(7)


def test_frames_and_steps_are_joined_by_the_episode_number(store, episodes):
    row = torch.arange(len(store))
    frames = store.frames["observation"][row + store.steps["episode"]]
    assert torch.equal(frames, torch.cat([e["observation"][:-1] for e in episodes]))
    assert store.steps["step"].tolist() == [t for e in episodes for t in range(len(e["action"]))]


def test_everything_is_memory_mapped(store):
    for table in (store.frames, store.steps, store.episodes):
        for value in table.values(True, True):
            assert isinstance(value, MemoryMappedTensor)
            assert str(value.filename).startswith(str(store.root))
    assert torch.equal(
        TensorDict.load_memmap(store.root / "steps", allow_pickle=False)["action"], store.steps["action"]
    )


def test_statistics_are_those_of_the_steps(store, episodes):
    statistics = store.statistics()
    tables = {
        "observation": np.concatenate([e["observation"][:-1].numpy() for e in episodes]).astype(np.float64),
        "action": np.concatenate([e["action"].numpy() for e in episodes]).astype(np.float64),
    }
    assert set(statistics) == set(tables)
    for key, table in tables.items():
        expected = {
            "min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0),
            "q01": np.quantile(table, 0.01, axis=0), "q99": np.quantile(table, 0.99, axis=0),
        }  # fmt: skip
        assert set(statistics[key]) == set(expected)
        for name, value in expected.items():
            assert statistics[key][name].dtype == torch.float32
            np.testing.assert_allclose(statistics[key][name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
def test_statistics_do_not_depend_on_the_block_size(block):
    torch.manual_seed(0)
    table = 1000 + torch.randn(97, 3)  # an offset, at which a naive sum of squares loses all digits
    rows = torch.randperm(97)[:60]
    got = column_statistics(table, rows, block_elements=block)
    values = table[rows].double().numpy()
    np.testing.assert_allclose(got["std"], values.std(0), rtol=1e-5)
    np.testing.assert_allclose(got["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got["q99"], np.quantile(values, 0.99, axis=0), rtol=1e-6)
    assert torch.equal(got["min"], table[rows].amin(0))


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="0 rows"):
        column_statistics(torch.zeros(0, 3))


def test_nested_frames_and_task_info_survive_reopening(tmp_path, episodes):
    for episode in episodes:
        episode["env_state"] = {"actors": {"table-workspace": torch.rand(len(episode["observation"]), 13)}}
    info = {
        "task": "toy",
        "control_mode": "delta",
        "obs_mode": "state",
        "max_episode_steps": 40,
        "reward_mode": "sparse",
    }
    written = DemoStore.from_episodes((e for e in episodes), tmp_path / "store", task_info=info)
    store = DemoStore.open(tmp_path / "store", verify=True)
    key = ("env_state", "actors", "table-workspace")
    assert torch.equal(
        store.frames[key], torch.cat([e.get("env_state")["actors"]["table-workspace"] for e in episodes])
    )
    assert store.task_info == info == written.task_info
    assert "toy" in repr(store)
    copied = DemoStore.from_episodes(written, tmp_path / "copy")
    assert torch.equal(copied.frames[key], store.frames[key])


def test_an_existing_directory_is_replaced_only_when_told_and_only_a_store(store, episodes, tmp_path):
    with pytest.raises(DataError, match="overwrite=True"):
        DemoStore.from_episodes(episodes[:2], store.root)
    assert DemoStore.from_episodes(episodes[:2], store.root, overwrite=True).num_episodes == 2
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a demo store"):
        DemoStore.from_episodes(episodes, other, overwrite=True)
    assert (other / "chapter.txt").exists()


def test_a_failing_source_leaves_nothing_behind(tmp_path, episodes):
    def source():
        yield episodes[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        DemoStore.from_episodes(source(), tmp_path / "store")
    assert os.listdir(tmp_path) == []


def _edit_metadata(root, **changes):
    metadata = json.loads((root / "metadata.json").read_text())
    metadata.update(changes)
    metadata.pop("digest")  # as it was before metadata had one; with it every change is refused
    (root / "metadata.json").write_text(json.dumps(metadata))


DAMAGES = {
    "truncated column": (lambda r: os.truncate(r / "steps" / "action.memmap", 8), "steps/action.memmap has 8 bytes"),
    "missing column": (lambda r: (r / "frames" / "observation.memmap").unlink(), "observation.memmap is missing"),
    "missing table": (lambda r: (r / "episodes" / "meta.json").unlink(), "damaged"),
    "no metadata": (lambda r: (r / "metadata.json").unlink(), "has no metadata.json"),
    "broken metadata": (lambda r: (r / "metadata.json").write_text('{"format": '), "cannot be read"),
    "foreign": (lambda r: _edit_metadata(r, format="lerobot"), "'lerobot'"),
    "foreign list": (lambda r: (r / "metadata.json").write_text("[]"), "not a demo store"),
    "newer version": (lambda r: _edit_metadata(r, version=99), "version 99"),
    "wrong count": (lambda r: _edit_metadata(r, num_steps=3), "do not add up"),
    "no columns": (lambda r: _edit_metadata(r, columns={}), "does not list its columns"),
}


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "not finite"), (1e30, "above 1e+09 in size")])
@pytest.mark.parametrize(("table", "key"), [("frames", "observation"), ("steps", "action"), ("steps", "reward")])
def test_numbers_that_no_episode_holds_are_refused_with_valid_checksums(store, table, key, value, what, monkeypatch):
    monkeypatch.setattr(store_files, "_ROWS", 4)
    getattr(store, table)[key][7] = value
    file = store.root / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["columns"][table][key]["sha256"] = store_files.file_digest(store.root / table / f"{key}.memmap")
    del metadata["digest"], metadata["changed_ns"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match=re.escape(f"`{key}` is {what} (first at row 7 of {table}).")):
        DemoStore.open(store.root)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_directory_is_refused(store, damage):
    break_it, message = DAMAGES[damage]
    break_it(store.root)
    with pytest.raises(DataError, match=message) as error:
        DemoStore.open(store.root)
    assert store.root.name in str(error.value)


def flip(path, keep_time=False):
    changed = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(changed, changed))


@pytest.mark.parametrize("name", ["frames/observation", "steps/action", "steps/success", "episodes/seed"])
def test_flipped_bits_are_found_at_opening(store, name):
    flip(store.root / f"{name}.memmap")
    with pytest.raises(DataError, match=f"the checksum of {name}.memmap differs"):
        DemoStore.open(store.root)
    DemoStore.open(store.root, verify=False)


def test_flipped_bits_of_a_file_that_seems_unchanged_are_found_on_request(store):
    flip(store.root / "frames" / "observation.memmap", keep_time=True)
    DemoStore.open(store.root)
    with pytest.raises(DataError, match="checksum of frames/observation"):
        DemoStore.open(store.root, verify=True)


def test_files_are_read_whole_once_after_a_copy(store, tmp_path, monkeypatch):
    read = []
    digest = store_files.file_digest
    monkeypatch.setattr(store_files, "file_digest", lambda path: read.append(path.name) or digest(path))
    DemoStore.open(store.root)
    assert read == []
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copy)  # with the time of now
    DemoStore.open(tmp_path / "copy")
    columns = json.loads((store.root / "metadata.json").read_text())["columns"]
    assert len(read) == sum(map(len, columns.values()))
    DemoStore.open(tmp_path / "copy")
    assert len(read) == sum(map(len, columns.values()))
    flip(tmp_path / "copy" / "steps" / "action.memmap")
    with pytest.raises(DataError, match="checksum of steps/action"):
        DemoStore.open(tmp_path / "copy")


def test_a_store_of_before_is_read_and_a_changed_number_in_new_metadata_is_found(store):
    path = store.root / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "statistics": {}}))
    with pytest.raises(DataError, match=r"metadata\.json was changed since it was written"):
        DemoStore.open(store.root)
    del metadata["digest"], metadata["changed_ns"]
    path.write_text(json.dumps(metadata))
    assert len(DemoStore.open(store.root)) == len(store)
    assert set(json.loads(path.read_text())["changed_ns"]) >= {"steps/action", "frames/observation"}


def test_an_episode_that_is_there_twice_is_said(episodes, tmp_path):
    with pytest.warns(DataWarning, match=r"1 episode\(s\) occur twice.*episode 3 is episode 1 again"):
        store = DemoStore.from_episodes([*episodes[:3], episodes[1]], tmp_path / "twice")
    assert store.num_episodes == 4


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        DemoStore.open(tmp_path / "nowhere")


BAD_EPISODES = {
    "NaN observation": (lambda e: e["observation"][2].fill_(torch.nan), "`observation` is not finite .first at row 2"),
    "infinite action": (lambda e: e["action"][1].fill_(torch.inf), "`action` is not finite .first at row 1"),
    "too few frames": (lambda e: e.update(observation=e["observation"][:-1]), "9 rows for 9 actions; there must be 10"),
    "huge action": (
        lambda e: e["action"].__setitem__((4, 1), 1e30),
        r"`action` is above 1e\+09 .*row 4",
    ),
    "huge reward": (lambda e: e["reward"].__setitem__(3, -1e30), r"`reward` is above 1e\+09 in size .first at row 3"),
    "short reward": (lambda e: e.update(reward=e["reward"][:-1]), r"`reward` must be \[9\]"),
    "no action": (lambda e: e.pop("action"), "no `action`"),
    "no steps": (lambda e: e.update(action=e["action"][:0]), "at least one step"),
    "no frames": (lambda e: e.pop("observation"), "no frames"),
    "other width": (lambda e: e.update(observation=torch.zeros(10, 2)), r"`observation` is \[2\]"),
    "other entries": (lambda e: e.update(extra=torch.zeros(10, 2)), "episodes before"),
}


@pytest.mark.parametrize("kind", BAD_EPISODES)
def test_a_bad_episode_is_refused_or_skipped_and_counted(episodes, tmp_path, kind):
    spoil, message = BAD_EPISODES[kind]
    spoil(episodes[1])
    with pytest.raises(DataError, match=f"episode 1.*{message}"):
        DemoStore.from_episodes(episodes, tmp_path / "strict")
    assert not (tmp_path / "strict").exists()
    with pytest.warns(DataWarning, match="1 episode"):
        store = DemoStore.from_episodes(episodes, tmp_path / "lenient", skip_bad=True)
    assert store.num_episodes == 6
    assert len(store.skipped) == 1
    assert [int(e["seed"]) for e in store] == [0, 2, 3, 4, 5, 6]


def test_no_episode_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match="no episode"):
        DemoStore.from_episodes([], tmp_path / "store")


def _episode(action, observation, success):
    return Episode.from_mapping({"action": action, "observation": observation, "success": success})


def test_cutting_after_success():
    steps = 6
    success = torch.tensor([0, 0, 1, 0, 1, 1], dtype=torch.bool)
    episode = _episode(torch.rand(steps, 2), torch.arange(steps + 1.0)[:, None], success)
    cut = cut_after_success(episode, keep=1)
    assert cut.success.tolist() == [False, False, True, False]
    assert cut.frames["observation"].squeeze(-1).tolist() == [0, 1, 2, 3, 4]
    assert len(cut_after_success(episode, keep=9)) == steps
    never = _episode(torch.rand(3, 2), torch.rand(4, 1), torch.zeros(3))
    assert len(cut_after_success(never)) == 3
    with pytest.raises(ValueError, match="keep_after_success"):
        cut_after_success(episode, keep=-1)


def test_idle_steps_are_those_at_which_nothing_happens():
    #                          moves  idle   slides  closes  idle  solves
    arm = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    gripper = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    observation = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])[:, None]
    success = torch.tensor([0, 0, 0, 0, 0, 1], dtype=torch.bool)
    trimmed = drop_idle_steps(_episode(torch.stack([arm, gripper], -1), observation, success))
    assert trimmed.action[:, 0].tolist() == [0.5, 0.0, 0.0, 0.0]
    assert trimmed.action[:, 1].tolist() == [1.0, 1.0, -1.0, -1.0]
    assert trimmed.success.tolist() == [False, False, False, True]
    assert trimmed.frames["observation"].squeeze(-1).tolist() == [0.0, 1.0, 2.0, 2.0, 2.0]


def test_an_episode_of_idle_steps_alone_keeps_one():
    trimmed = drop_idle_steps(_episode(torch.zeros(4, 2), torch.zeros(5, 1), torch.zeros(4)))
    assert (len(trimmed), trimmed.frames["observation"].shape[0]) == (1, 2)


def test_the_task_of_a_store_is_typed_and_takes_a_mapping_or_a_task_info(tmp_path, episodes):
    for name, task in (("a", {"task": "toy", "gravity": 1}), ("b", TaskInfo(task="toy", details={"gravity": 1}))):
        store = DemoStore.from_episodes(episodes, tmp_path / name, task_info=task)
        assert (store.task_info.task, store.task_info["task"], store.task_info.obs_mode) == ("toy", "toy", None)
        assert store.metadata["gravity"] == 1
    with pytest.raises(ValueError, match=r"unknown field 'contol_mode' in a TaskInfo\. Did you mean control_mode"):
        DemoStore.from_episodes(episodes, tmp_path / "c", task_info={"contol_mode": "joints"})
    assert not (tmp_path / "c").exists()


def test_a_store_whose_task_is_invalid_is_refused_naming_the_field(tmp_path, episodes):
    DemoStore.from_episodes(episodes, tmp_path / "a", task_info={"task": "toy"})
    file = tmp_path / "a" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    del metadata["digest"]
    file.write_text(json.dumps({**metadata, "max_episode_steps": "long"}), encoding="utf-8")
    with pytest.raises(DataError, match=r"max_episode_steps of a task must be a whole number.*got 'long'"):
        DemoStore.open(tmp_path / "a")
    # Stores of older versions lack fields.
    older = {name: value for name, value in metadata.items() if name not in ("reward_mode", "max_episode_steps")}
    file.write_text(json.dumps(older), encoding="utf-8")
    assert DemoStore.open(tmp_path / "a").task_info == {**dict.fromkeys(TASK_KEYS), "task": "toy"}
