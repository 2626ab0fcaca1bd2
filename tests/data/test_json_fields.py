"""Fields of a recording's .json that are null, of another type, or in another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from torchrl_flow.data import DataError, DataWarning, read_maniskill
from torchrl_flow.data.demos.trajectory_json import as_whole_number

ROOT = Path(__file__).parents[2]


def edit(path, change):
    info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    change(info)
    path.with_suffix(".json").write_text(json.dumps(info), encoding="utf-8")
    return path


def each(**fields):
    return lambda info: [episode.update(fields) for episode in info["episodes"]]


READ = {
    "reset_kwargs null": each(reset_kwargs=None),
    "reset_kwargs list": each(reset_kwargs=[1]),
    "reset_kwargs.seed text": each(reset_kwargs={"seed": "x"}),
    "env_kwargs null": lambda i: i["env_info"].update(env_kwargs=None),
    "env_kwargs missing": lambda i: i["env_info"].pop("env_kwargs"),
    "obs_mode null": lambda i: i["env_info"]["env_kwargs"].update(obs_mode=None),
    "max_episode_steps null": lambda i: i["env_info"].update(max_episode_steps=None),
    "max_episode_steps text": lambda i: i["env_info"].update(max_episode_steps="fifty"),
    "max_episode_steps list": lambda i: i["env_info"].update(max_episode_steps=[50]),
    "elapsed_steps null": each(elapsed_steps=None),
    "elapsed_steps list": lambda i: [e.update(elapsed_steps=[e["elapsed_steps"]]) for e in i["episodes"]],
    "elapsed_steps float": lambda i: [e.update(elapsed_steps=float(e["elapsed_steps"])) for e in i["episodes"]],
    "episode_seed null": each(episode_seed=None),
    "episode_seed text": each(episode_seed="seven"),
    "episode_seed object": each(episode_seed={}),
    "episode_seed huge": each(episode_seed=2**80),
    "episode_seed NaN": each(episode_seed=float("nan")),
    "episode_id text": lambda i: [e.update(episode_id=str(e["episode_id"])) for e in i["episodes"]],
    "control_mode null": each(control_mode=None),
}


@pytest.mark.parametrize("kind", READ)
def test_fields_that_are_not_needed_have_a_default(write_maniskill, tmp_path, kind):
    path = edit(write_maniskill(), READ[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = read_maniskill(path, tmp_path / "store")
    assert store.num_episodes == 3
    seeds = store.episodes["seed"].tolist()
    assert seeds == ([-1, -1, -1] if "episode_seed" in kind else [100, 101, 102])
    if "env_kwargs" in kind or "obs_mode" in kind:
        assert store.task_info["obs_mode"] is None
    limit = {"max_episode_steps null": None, "max_episode_steps text": None}.get(kind, 50)
    assert store.task_info["max_episode_steps"] == limit
    assert store.task_info["control_mode"] == "pd_ee_delta_pose"


REFUSED = {
    "list": (lambda i: i, "[1, 2]", r"must hold an object, got \[1, 2\]"),
    "number": (lambda i: i, "3", "must hold an object, got 3"),
    "env_info null": (lambda i: i.update(env_info=None), None, "`env_info`, got null"),
    "env_info list": (lambda i: i.update(env_info=[]), None, r"`env_info`, got \[\]"),
    "env_info missing": (lambda i: i.pop("env_info"), None, r"`env_info`, got none, only \['episodes'\]"),
    "env_id null": (lambda i: i["env_info"].update(env_id=None), None, "`env_id`"),
    "env_id number": (lambda i: i["env_info"].update(env_id=5), None, "`env_info.env_id` must be a text.*got 5"),
    "env_kwargs list": (
        lambda i: i["env_info"].update(env_kwargs=["x"]),
        None,
        r"env_kwargs` must be .* got \[\"x\"\]",
    ),
    "obs_mode number": (lambda i: i["env_info"]["env_kwargs"].update(obs_mode=1), None, "env_kwargs.obs_mode`.*got 1"),
    "episodes null": (lambda i: i.update(episodes=None), None, "a list `episodes`, got null"),
    "episodes object": (lambda i: i.update(episodes={}), None, r"a list `episodes`, got \{\}"),
    "episode null": (lambda i: i["episodes"].__setitem__(1, None), None, r"episodes\[1\] has null"),
    "episode_id null": (lambda i: i["episodes"][2].update(episode_id=None), None, r"episodes\[2\] has null"),
    "episode_id list": (lambda i: i["episodes"][0].update(episode_id=[1, 2]), None, r"episodes\[0\] has \[1, 2\]"),
    "control_mode number": (each(control_mode=3), None, r"episodes\[0\].control_mode` must be a text or null, got 3"),
    "control_mode list": (each(control_mode=["a"]), None, r"episodes\[0\].control_mode`.*got \[\"a\"\]"),
    "elapsed_steps text": (each(elapsed_steps="twenty"), None, "traj_0: its `elapsed_steps` in the .json is 'twenty'"),
    "elapsed_steps flag": (each(elapsed_steps=True), None, "`elapsed_steps` in the .json is True"),
    "twice the same id": (each(episode_id=1, elapsed_steps=4), None, "traj_1: the .json lists it twice"),
    "nested without end": (lambda i: i, "[" * 100_000, "damaged, not JSON"),
    "git-lfs pointer": (lambda i: i, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_fields_that_are_needed_are_refused_by_name_and_value(write_maniskill, tmp_path, kind):
    change, text, message = REFUSED[kind]
    path = edit(write_maniskill(), change)
    if text is not None:
        path.with_suffix(".json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_maniskill(path, tmp_path / "store")
    assert path.stem in str(error.value)


def test_whole_numbers():
    values = [3, 3.0, "3", [3], True, 3.5, float("nan"), float("inf"), None, {}, [1, 2], "three", []]
    assert [as_whole_number(value) for value in values] == [3, 3, 3, 3, *[None] * 9]


@pytest.mark.parametrize(
    ("episodes", "declared", "mode"),
    [
        ((None, None), None, None),
        ((None, None), "pd_joint_pos", "pd_joint_pos"),
        (("pd_joint_pos", None), None, "pd_joint_pos"),
        (("pd_joint_pos", None), "pd_joint_pos", "pd_joint_pos"),
    ],
)
def test_a_missing_control_mode_is_unknown_or_that_of_the_environment(
    write_maniskill, tmp_path, episodes, declared, mode
):
    def change(info):
        info["env_info"]["env_kwargs"]["control_mode"] = declared
        for episode, value in zip(info["episodes"], (*episodes, None), strict=True):
            episode.pop("control_mode") if value is None else episode.update(control_mode=value)

    store = read_maniskill(edit(write_maniskill(), change), tmp_path / "store")
    assert store.task_info["control_mode"] == mode


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_json_is_read_in_its_encoding_whatever_the_locale(write_maniskill, tmp_path, encoding):
    path = write_maniskill()
    info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    info["source"] = "démonstration 示范"
    path.with_suffix(".json").write_bytes(json.dumps(info, ensure_ascii=False).encode(encoding))
    code = "import sys; from torchrl_flow.data import read_maniskill; s = read_maniskill(sys.argv[1], sys.argv[2]);"
    code += "print(s.num_episodes)"
    locale = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "store")]
    out = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, check=False)
    assert out.stdout.strip() == b"3", out.stderr.decode()


def blind(write_maniskill, rgb_trajectory, mode, entries):
    trajectory = rgb_trajectory(4)
    trajectory["obs"] = {name: trajectory["obs"][name] for name in ("agent", "extra")} | entries
    return write_maniskill([trajectory], obs_mode=mode)


BLIND = {
    "pointcloud": ({"pointcloud": {"xyzw": np.zeros((5, 9, 4), np.float32)}}, "obs/pointcloud/xyzw.* no image"),
    "depth": ({"sensor_data": {"base_camera": {"depth": np.zeros((5, 8, 8, 1), np.int16)}}}, "base_camera/depth"),
    "rgb+depth": (
        {"sensor_data": {"cam": {"rgb": np.zeros((5, 8, 8, 3), np.uint8), "depth": np.zeros((5, 8, 8, 1), np.int16)}}},
        "obs/sensor_data/cam/depth are left out.*the images of cam",
    ),
}


@pytest.mark.parametrize("mode", BLIND)
def test_what_is_not_read_is_named_at_each_opening(write_maniskill, rgb_trajectory, tmp_path, mode):
    entries, message = BLIND[mode]
    path = blind(write_maniskill, rgb_trajectory, mode, entries)
    for _ in range(2):
        with pytest.warns(DataWarning, match=message):
            read_maniskill(path, tmp_path / "store")


def without_success(path, *, rewards=True, fail=False):
    with h5py.File(path, "r+") as file:
        for group in file.values():
            steps = len(group["actions"])
            del group["success"]
            if rewards:
                group["rewards"] = np.arange(steps, dtype=np.float32)
            if fail:
                group["fail"] = np.arange(steps) == steps - 1
    return path


def test_rewards_without_success_are_kept_and_no_success_is_made_up(write_maniskill, tmp_path):
    with pytest.warns(DataWarning, match="no `success`.*recorded rewards are kept"):
        store = read_maniskill(without_success(write_maniskill()), tmp_path / "store")
    assert store.num_episodes == 3
    assert not store.has_success
    assert not store.steps["success"].any()
    assert not store.steps["terminated"].any()
    assert store.episode(0)["reward"].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_failures_alone_are_ends_and_rewards(write_maniskill, tmp_path):
    path = without_success(write_maniskill(), rewards=False, fail=True)
    with pytest.warns(DataWarning, match="rewards are -1 where it failed"):
        store = read_maniskill(path, tmp_path / "store")
    assert store.episode(1)["reward"].flatten().tolist() == [0, 0, 0, -1]
    assert store.episode(1)["terminated"].flatten().tolist() == [False, False, False, True]


def test_a_trajectory_without_success_among_others_is_left_out(write_maniskill, tmp_path):
    path = write_maniskill()
    with h5py.File(path, "r+") as file:
        del file["traj_1/success"]
    with pytest.warns(DataWarning, match="1 episode.*traj_1"):
        store = read_maniskill(path, tmp_path / "store")
    assert store.num_episodes == 2


def test_double_precision_becomes_single(write_maniskill, make_trajectory, tmp_path):
    entry = make_trajectory(5)
    entry["obs"], entry["actions"] = entry["obs"].astype(np.float64), entry["actions"].astype(np.float64)
    store = read_maniskill(write_maniskill([entry]), tmp_path / "store")
    assert {str(store.frames["observation"].dtype), str(store.steps["action"].dtype)} == {"torch.float32"}
    entry["obs"][3, 1] = 1e300
    with pytest.raises(DataError, match=r"`obs.*` is not finite \(first at row 3\)"):
        read_maniskill(write_maniskill([entry], name="b"), tmp_path / "b")


def test_fewer_demonstrations_than_asked_for_are_said(write_maniskill, tmp_path):
    path = write_maniskill()
    for _ in range(2):
        with pytest.warns(DataWarning, match="5 demonstrations were asked for and there are 3"):
            read_maniskill(path, tmp_path / "store", max_episodes=5)
