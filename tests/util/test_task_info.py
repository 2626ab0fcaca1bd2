"""The identity of a task: typed, validated, and the JSON of checkpoints and stores as it was."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.plain_config import PlainConfig
from torchrl_flow.util.task_info import TaskInfo

FULL = {
    "task": "my_package:make_env",
    "control_mode": None,
    "obs_mode": "rgb+state",
    "max_episode_steps": 50,
    "reward_mode": "sparse",
    "state_dim": 12,
    "pixels_size": [64, 48],
    "action_dim": 3,
    "name": "reach",
    "geometry": {"wall": [1, 2]},
}


def test_the_json_comes_back_as_it_was():
    info = TaskInfo.from_dict(FULL)
    assert info.to_dict() == FULL == json.loads(json.dumps(info.to_dict()))
    assert TaskInfo.of_file(info.to_dict()) == info
    assert (info.pixels_size, info.details) == ((64, 48), {"geometry": {"wall": [1, 2]}})
    assert (info.robot_uids, "robot_uids" in info, "control_mode" in info) == (None, False, True)


def test_none_is_recorded_only_where_it_was_given():
    assert TaskInfo(task="a").to_dict() == {"task": "a"}
    assert TaskInfo(task="a", recorded=frozenset({"pixels_size"})).to_dict() == {"task": "a", "pixels_size": None}
    assert TaskInfo.from_dict({"task": "a", "pixels_size": None}).to_dict() == {"task": "a", "pixels_size": None}
    assert dataclasses.replace(TaskInfo(task="a", state_dim=3), state_dim=None).to_dict() == {
        "task": "a",
        "state_dim": None,
    }
    with pytest.raises(ValueError, match=r"recorded must name fields.*got \['colour'\]"):
        TaskInfo(recorded=frozenset({"colour"}))


def test_it_is_a_mapping_and_equals_one():
    info = TaskInfo.from_dict(FULL)
    assert info == FULL
    assert info == FULL
    assert info != {**FULL, "action_dim": 4}
    assert info != 3
    assert (dict(info), {**info}, len(info)) == (FULL, FULL, len(FULL))
    assert (info["pixels_size"], info.get("absent", 5)) == ([64, 48], 5)
    assert info | {"task": "b"} == {**FULL, "task": "b"}
    assert {"task": "b", "more": 1} | info == {**FULL, "more": 1}
    with pytest.raises(KeyError, match="robot_uids"):
        info["robot_uids"]
    with pytest.raises(TypeError):
        hash(info)
    assert repr(TaskInfo(task="a", state_dim=2)) == "TaskInfo(task='a', state_dim=2)"


def test_it_cannot_be_changed():
    geometry = {"wall": [1]}
    info = TaskInfo(details={"geometry": geometry})
    geometry["wall"].append(2)
    info["geometry"]["wall"].append(3)
    assert info.to_dict() == {"geometry": {"wall": [1]}}
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.task = "b"
    assert pickle.loads(pickle.dumps(info)) == copy.deepcopy(info) == info


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", "", "task of a task must be a text that is not empty, or None if it is unknown, got ''"),
        ("obs_mode", 3, "obs_mode of a task must be a text.*got 3"),
        ("max_episode_steps", 0, "max_episode_steps of a task must be a whole number of at least 1.*got 0"),
        ("state_dim", 2.5, "state_dim of a task must be a whole number.*got 2.5"),
        ("action_dim", True, "action_dim of a task must be a whole number.*got True"),
        ("pixels_size", 64, r"pixels_size of a task must be \(height, width\), or None without images, got 64"),
        ("pixels_size", (64, None), r"pixels_size of a task must be \(height, width\)"),
        ("pixels_size", (64, 0), "pixels_size of a task must be a whole number of at least 1.*got 0"),
        ("details", {"task": "b"}, r"names of details must be texts, and no fields of a TaskInfo, got \['task'\]"),
    ],
)
def test_an_invalid_field_is_named_with_what_is_allowed(field, value, message):
    with pytest.raises(ValueError, match=message):
        TaskInfo(**{field: value})
    if field != "details":
        for read in (TaskInfo.from_dict, TaskInfo.of_file, TaskInfo.of):
            with pytest.raises(ValueError, match=message):
                read({field: value})


def test_sizes_of_numpy_become_plain_numbers():
    import numpy as np

    info = TaskInfo(state_dim=np.int64(4), pixels_size=[np.int64(8), 9])
    assert json.dumps(info.to_dict()) == '{"state_dim": 4, "pixels_size": [8, 9]}'


def test_a_misspelt_field_is_refused_and_a_detail_is_not():
    message = r"unknown field 'contol_mode' in a TaskInfo. Did you mean control_mode\? Known are \['task'.*details"
    for read in (TaskInfo.from_dict, TaskInfo.of):
        with pytest.raises(ValueError, match=message):
            read({"contol_mode": "velocity"})
    # A file keeps what an earlier version, or a user, wrote.
    assert TaskInfo.of_file({"contol_mode": "velocity"}).details == {"contol_mode": "velocity"}
    assert TaskInfo.of({"robot": "panda", "x": 1}).details == {"robot": "panda", "x": 1}
    # Beside the field itself, a similar name is meant.
    assert TaskInfo.of({"name": "a", "names": ["b"]}).details == {"names": ["b"]}
    with pytest.raises(ValueError, match=r"lacks the fields.*'obs_mode'"):
        TaskInfo.from_dict({"task": "a"}, complete=True)


def test_arguments_are_converted_in_one_place():
    info = TaskInfo(task="a")
    assert TaskInfo.of(info) is info
    assert TaskInfo.of(None) == {}
    assert TaskInfo.of({"task": "a"}) == info
    with pytest.raises(ValueError, match="a task must be a TaskInfo or a mapping of its fields, got a str"):
        TaskInfo.of("planar")  # pyright: ignore[reportArgumentType]


def test_differing_fields_reads_it():
    one, other = TaskInfo(task="a", pixels_size=(1, 2)), TaskInfo(task="b", pixels_size=(1, 2), state_dim=3)
    assert differing_fields(one, other) == ["task: checkpoint 'a', here 'b'", "state_dim: checkpoint None, here 3"]


def test_a_plain_config_names_unknown_and_missing_fields():
    @dataclasses.dataclass(frozen=True)
    class Camera(PlainConfig):
        size: tuple[int, int] = (1, 2)
        name: str = "front"

    assert Camera.from_dict({"size": [3, 4]}) == Camera((3, 4))
    with pytest.raises(ValueError, match=r"unknown fields \['nmae'\] in a Camera; known are .*Did you mean name\?"):
        Camera.from_dict({"nmae": "x"})
    with pytest.raises(ValueError, match=r"a Camera lacks the fields \['name'\]"):
        Camera.from_dict({"size": [3, 4]}, complete=True)
