"""How demonstrations end: falls, time limits, and successes after which the task goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_flow.data import (
    ChunkStorage,
    DataError,
    DemoStore,
    Episode,
    cut_after_success,
    drop_idle_steps,
    read_npz,
    read_npz_episodes,
)

STEPS = 6


def recording(**entries):
    rng = np.random.default_rng(0)
    return {"observation": rng.normal(size=(STEPS + 1, 2)), "action": rng.uniform(-1, 1, (STEPS, 1)), **entries}


def at(*rows):
    return np.isin(np.arange(STEPS), rows).astype(np.float64)


def outcomes(tmp_path, act_horizon=4, **entries):
    store = DemoStore.from_episodes([recording(**entries)], tmp_path / "demos")
    batch = ChunkStorage(store, pred_horizon=act_horizon, act_horizon=act_horizon, gamma=0.9)[:]["next"]
    return {key: batch[key].squeeze(-1).tolist() for key in ("steps_to_next_obs", "terminated", "truncated", "success")}


def test_a_fall_is_terminated(tmp_path):
    found = outcomes(tmp_path, terminated=at(5), truncated=at(), success=at())
    assert found["steps_to_next_obs"] == [4, 4, 4, 3, 2, 1]
    assert found["terminated"] == [False, False, True, True, True, True]
    assert not any(found["truncated"])
    assert not any(found["success"])


@pytest.mark.parametrize("entries", [{}, {"truncated": at(5)}, {"truncated": at(5), "terminated": at()}])
def test_a_time_limit_is_truncated_told_or_not(tmp_path, entries):
    found = outcomes(tmp_path, **entries)
    assert found["truncated"] == [False, False, True, True, True, True]
    assert not any(found["terminated"])


def test_a_fall_at_the_time_limit_is_a_fall(tmp_path):
    found = outcomes(tmp_path, terminated=at(5), truncated=at(5))
    assert found["terminated"] == [False, False, True, True, True, True]
    assert not any(found["truncated"])


def test_a_success_after_which_the_task_goes_on(tmp_path):
    found = outcomes(tmp_path, success=at(2, 3, 4, 5), success_terminates=False)
    assert found["steps_to_next_obs"] == [4, 4, 4, 3, 2, 1]
    assert found["success"] == [True] * 6
    assert not any(found["terminated"])
    assert found["truncated"] == [False, False, True, True, True, True]


def test_it_may_still_fail_or_fall(tmp_path):
    found = outcomes(tmp_path, success=at(1), success_terminates=np.array(0), fail=at(3), terminated=at(5))
    assert found["terminated"] == [True, True, True, True, True, True]
    assert found["steps_to_next_obs"] == [4, 3, 2, 1, 2, 1]


def test_by_default_a_success_ends_the_task(tmp_path):
    found = outcomes(tmp_path, success=at(2))
    assert found["steps_to_next_obs"][:3] == [3, 2, 1]
    assert found["terminated"][:3] == [True, True, True]


def test_trimming_keeps_what_a_success_means():
    episode = Episode.from_mapping(recording(success=at(2), success_terminates=False))
    for trimmed in (cut_after_success(episode, 1), drop_idle_steps(episode)):
        assert not trimmed.success_terminates
        assert not trimmed.terminated.any()


@pytest.mark.parametrize("shape", [(STEPS,), (STEPS, 1)])
def test_flags_of_either_shape(shape):
    episode = Episode.from_mapping(recording(terminated=at(5).reshape(shape), truncated=at().reshape(shape)))
    assert episode.terminated.tolist() == [False] * 5 + [True]


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match="demo 3: `truncated` is 1 at row 2, and the episode goes on to row 5: end it"):
        Episode.from_mapping(recording(truncated=at(2, 5)), name="demo 3")
    with pytest.raises(DataError, match=r"`truncated` must be \[6\] or \[6, 1\] like the actions, got \[7\]"):
        Episode.from_mapping(recording(truncated=np.zeros(7)))
    with pytest.raises(DataError, match=r"`truncated` must hold 0 and 1 alone, got 2.0 at row 5"):
        Episode.from_mapping(recording(truncated=2 * at(5)))
    with pytest.raises(DataError, match="`success_terminates` must be one 0 or 1 for the whole episode"):
        Episode.from_mapping(recording(success_terminates=at(2)))


def transitions(**changes):
    """Three episodes: a fall after three steps, a time limit after three, and one that is cut off after two."""
    values = {
        "observations": np.arange(8.0)[:, None] * 10,
        "actions": np.linspace(-1, 1, 8)[:, None],
        "rewards": np.arange(8.0),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0, 0]),
        "timeouts": np.array([0, 0, 0, 0, 0, 1, 0, 1]),
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def episodes_of(tmp_path, **changes):
    np.savez(tmp_path / "walk.npz", **transitions(**changes))
    return list(read_npz_episodes(tmp_path / "walk.npz"))


def summary(episodes):
    return [(e.frames["observation"].squeeze(-1).tolist(), e.reward.tolist(), e.terminated.tolist()) for e in episodes]


def test_episodes_of_a_file_without_next_observations(tmp_path):
    episodes = episodes_of(tmp_path)
    assert summary(episodes) == [
        ([0.0, 10.0, 20.0, 20.0], [0.0, 1.0, 2.0], [False, False, True]),
        ([30.0, 40.0, 50.0], [3.0, 4.0], [False, False]),
        ([60.0, 70.0], [6.0], [False]),
    ]
    assert [episode.name for episode in episodes] == [f"walk.npz, episode {number}" for number in range(3)]


def test_episodes_of_a_file_with_next_observations(tmp_path):
    following = np.array([10.0, 20.0, 21.0, 40.0, 50.0, 51.0, 70.0, 71.0])[:, None]
    assert summary(episodes_of(tmp_path, next_observations=following, timeouts=None)) == [
        ([0.0, 10.0, 20.0, 21.0], [0.0, 1.0, 2.0], [False, False, True]),
        ([30.0, 40.0, 50.0, 51.0], [3.0, 4.0, 5.0], [False, False, False]),
        ([60.0, 70.0, 71.0], [6.0, 7.0], [False, False]),
    ]


def test_gymnasium_names_of_arrays(tmp_path):
    ends = {"terminals": None, "timeouts": None}
    plain = episodes_of(tmp_path)
    renamed = episodes_of(
        tmp_path, **ends, terminated=transitions()["terminals"], truncated=transitions()["timeouts"].astype(bool)
    )
    assert summary(plain) == summary(renamed)
    data, _ = read_npz(tmp_path / "walk.npz")
    assert data["next", "terminated"].sum() == 1
    with pytest.raises(DataError, match="has both 'terminated' and 'terminals', which are the same: leave one out"):
        episodes_of(tmp_path, terminated=np.zeros(8))
    with pytest.raises(DataError, match=r"'truncated' in .* must hold 0 and 1 alone"):
        episodes_of(tmp_path, timeouts=None, truncated=np.full(8, 2))


def test_chunks_of_a_file(tmp_path):
    np.savez(tmp_path / "walk.npz", **transitions())
    store = DemoStore.from_episodes(read_npz_episodes(tmp_path / "walk.npz"), tmp_path / "demos")
    batch = ChunkStorage(store, pred_horizon=2, act_horizon=2, gamma=0.5)[:]
    assert batch["next", "steps_to_next_obs"].squeeze(-1).tolist() == [2, 2, 1, 2, 1, 1]
    assert batch["next", "terminated"].squeeze(-1).tolist() == [False, True, True, False, False, False]
    assert batch["next", "truncated"].squeeze(-1).tolist() == [False, False, False, True, True, True]
    torch.testing.assert_close(batch["next", "reward"].squeeze(-1), torch.tensor([0.5, 2.0, 2.0, 5.0, 4.0, 6.0]))
