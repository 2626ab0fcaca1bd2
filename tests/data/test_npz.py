from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from torchrl_flow.data import DataError, NpzReplayBuffer, NpzStream, read_npz

N, D, A = 7, 3, 2


def arrays(**changes):
    rng = np.random.default_rng(0)
    made = {
        "observations": rng.normal(size=(N, D)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(N, A)).astype(np.float32),
        "rewards": np.arange(N, dtype=np.float32),
        "next_observations": rng.normal(size=(N, D)).astype(np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0]),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 1]),
    }
    made.update(changes)
    return {name: value for name, value in made.items() if value is not None}


def write(path, **changes):
    np.savez(path, **arrays(**changes))
    return path


def test_terminals_and_timeouts_are_told_apart(tmp_path):
    data, _ = read_npz(write(tmp_path / "a.npz"))
    following = data["next"]
    assert following["terminated"].flatten().tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert following["truncated"].flatten().tolist() == [0, 0, 0, 0, 1, 0, 1]
    assert following["done"].flatten().tolist() == [0, 0, 1, 0, 1, 0, 1]
    assert data["observation"].dtype == torch.float32
    assert following["reward"].shape == (N, 1)


def test_next_observations_are_made_as_d4rl_does(tmp_path):
    data, _ = read_npz(write(tmp_path / "a.npz", next_observations=None))
    rows = [0, 1, 2, 3, 5]  # not those after which an episode is cut off
    observations = torch.from_numpy(arrays()["observations"])
    assert torch.equal(data["observation"], observations[rows])
    assert torch.equal(data["next", "observation"][[0, 1, 3, 4]], observations[[1, 2, 4, 6]])


def test_rewards_of_two_dimensions_and_missing_timeouts(tmp_path):
    rewards = np.arange(N, dtype=np.float64)[:, None]
    data, metadata = read_npz(write(tmp_path / "a.npz", rewards=rewards, timeouts=None))
    assert data["next", "reward"].flatten().tolist() == list(range(N))
    assert not data["next", "truncated"].any()
    assert metadata == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "lacks"),
        ({"actions": np.zeros((N - 1, A))}, "actions"),
        ({"observations": np.full((N, D), np.nan)}, "finite"),
        ({"rewards": np.full(N, 1e30)}, r"'rewards' .*above 1e\+09 in size in float32: 1e\+30 \(row 0"),
        ({"actions": np.full((N, A), -1e10)}, r"'actions' .*above .*-10000000000.0 \(row 0, column 0"),
        ({"terminals": np.full(N, 2)}, "0 and 1"),
        ({"actions": np.array([[{}] * A] * N, dtype=object)}, "plain array"),
        ({"actions": np.array([["a"] * A] * N)}, "numbers"),
        ({"next_observations": np.zeros((N, D + 1))}, "next_observations"),
        ({"rewards": np.zeros((N, 2))}, "rewards"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_npz(write(tmp_path / "a.npz", **changes))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"cannot be read"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"single array"):
        read_npz(tmp_path / "b.npy")


def test_hashes_must_be_the_environments(tmp_path):
    metadata = np.array(json.dumps({"hashes": {"ranker": "a1"}}))
    path = write(tmp_path / "a.npz", metadata=metadata)
    read_npz(path, hashes={"ranker": "a1"})
    with pytest.raises(DataError, match=r"ranker: a1 in the file, b2 here.*relabel-slates"):
        read_npz(path, hashes={"ranker": "b2"})
    with pytest.raises(DataError, match="none in the file"):
        read_npz(write(tmp_path / "b.npz"), hashes={"ranker": "b2"})


def test_buffer_samples_transitions_as_they_are(tmp_path):
    data = NpzReplayBuffer(write(tmp_path / "a.npz"), batch_size=50)
    made = arrays()
    batch = data.sample()
    index = batch["next", "reward"].flatten().long()
    assert len(index.unique()) == N
    assert torch.equal(batch["observation"], torch.from_numpy(made["observations"])[index])
    assert torch.equal(batch["action"], torch.from_numpy(made["actions"])[index])
    np.testing.assert_allclose(data.statistics()["observation"]["mean"], made["observations"].mean(0), rtol=1e-5)


def test_actions_are_mapped_out_of_their_box(tmp_path):
    low, high = torch.tensor([-0.5, -2.0]), torch.tensor([0.5, 2.0])
    path = write(tmp_path / "a.npz")
    data = NpzReplayBuffer(path, action_low=low, action_high=high)
    raw, scaled = torch.from_numpy(arrays()["actions"]), data.transitions["action"]
    torch.testing.assert_close(scaled[:, 1], raw[:, 1] / 2)
    torch.testing.assert_close(scaled[:, 0], (2 * raw[:, 0]).clamp(-1, 1))
    assert data.clamped == pytest.approx(float((raw[:, 0].abs() > 0.5).float().mean() / 2))
    for bounds in ({"action_low": low}, {"action_low": high, "action_high": low}):
        with pytest.raises(DataError, match="action_low"):
            NpzReplayBuffer(path, **bounds)


COLUMNS = {"x": ("float32", (2,)), "n": ("int64", ()), "flag": ("bool", (3,))}


def rows(first, number):
    n = np.arange(first, first + number)
    return {"x": np.stack([n, -n], 1), "n": n, "flag": np.stack([n % 2 == 0] * 3, 1)}


def test_stream_that_was_stopped_equals_one_that_was_not(tmp_path):
    whole = NpzStream(tmp_path / "whole.npz", COLUMNS, {"seed": 1})
    for i in range(4):
        whole.append(rows(5 * i, 5))
        whole.commit(i + 1)
    whole.finish({"a": 1})
    stopped = NpzStream(tmp_path / "stopped.npz", COLUMNS, {"seed": 1})
    stopped.append(rows(0, 5))
    stopped.commit(1)
    stopped.append(rows(5, 3))  # not committed, as if killed
    stopped.close()
    resumed = NpzStream(tmp_path / "stopped.npz", COLUMNS, {"seed": 1})
    assert resumed.position == 1
    for i in range(resumed.position, 4):
        resumed.append(rows(5 * i, 5))
        resumed.commit(i + 1)
    resumed.finish({"a": 1})
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "stopped.npz") as two:
        assert sorted(one.files) == sorted([*COLUMNS, "metadata"])
        for name in one.files:
            assert (one[name] == two[name]).all()
        assert one["flag"].dtype == bool
        assert json.loads(str(one["metadata"])) == {"a": 1}
    assert not (tmp_path / "stopped.npz.partial").exists()


def test_stream_refuses_what_does_not_belong(tmp_path):
    stream = NpzStream(tmp_path / "a.npz", COLUMNS, {"seed": 1})
    with pytest.raises(DataError, match="columns"):
        stream.append({"y": np.zeros(3)})
    with pytest.raises(DataError, match="shape"):
        stream.append({"x": np.zeros((3, 5))})
    stream.commit(1)
    with pytest.raises(DataError, match="another file"):
        NpzStream(tmp_path / "a.npz", COLUMNS, {"seed": 2})
    stream.finish({})
    with pytest.raises(DataError, match="exists already"):
        NpzStream(tmp_path / "a.npz", COLUMNS, {"seed": 1})


@pytest.mark.parametrize("name", ["x.bin", "y.bin", "state.json"])
def test_a_damaged_part_of_a_stream_is_refused(tmp_path, name):
    def stream():
        return NpzStream(tmp_path / "a.npz", {"x": ("float32", (2,)), "y": ("int64", ())}, {})

    first = stream()
    first.append({"x": np.ones((3, 2)), "y": np.arange(3)})
    first.commit(3)
    first.append({"x": np.zeros((1, 2))})  # after the last commit: of no account
    first.close()
    path = tmp_path / "a.npz.partial" / name
    whole = path.read_bytes()
    changed = whole.replace(b'"position": 3', b'"position": 2') if name == "state.json" else b"\xff" + whole[1:]
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(DataError, match=f"{name} is damaged"):
        stream()
    path.write_bytes(whole)
    again = stream()
    again.append({"x": np.full((1, 2), 5.0), "y": [9]})
    again.commit(4)
    again.close()
    file = np.load(stream().finish({}))
    assert file["x"].tolist() == [[1, 1]] * 3 + [[5, 5]]
    assert file["y"].tolist() == [0, 1, 2, 9]


def test_a_link_among_the_parts_of_a_stream_is_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "a.npz.partial").mkdir()
    (tmp_path / "a.npz.partial" / "x.bin").symlink_to(tmp_path / "other")
    with pytest.raises(DataError, match=r"holds the link x\.bin"):
        NpzStream(tmp_path / "a.npz", {"x": ("float32", ())}, {})
    assert (tmp_path / "other").read_bytes() == b"precious"
