from __future__ import annotations

import itertools

import pytest
import torch
from torchrl.data import RandomSampler, SamplerWithoutReplacement

from torchrl_flow.data import ChunkKeys, ChunkStorage, DemoReplayBuffer, DemoStore

GAMMA = 0.9


def folded(episode, t, H, Ha, T, *, oldest, hold, mask_padding, terminate):
    """One item, by a loop over the steps of one episode in plain Python."""
    action, obs = episode["action"], episode["observation"]
    steps = len(action)
    begin = t - (T - 1) if oldest else t
    chunk, mask = [], []
    for j in range(begin, begin + H):
        real = 0 <= j < steps
        row = action[min(max(j, 0), steps - 1)].clone()
        if hold and not real:
            row[:-1] = 0
        chunk.append(row)
        mask.append(real or not mask_padding)
    k, reward, terminated, success = 0, 0.0, False, False
    while k < Ha and t + k < steps and not terminated:
        reward += GAMMA**k * float(episode["reward"][t + k])
        success = success or bool(episode["success"][t + k])
        terminated = terminate and success
        k += 1
    history = lambda frame: torch.stack([obs[max(0, frame - back)] for back in reversed(range(T))])  # noqa: E731
    first = t - begin
    return {
        "action_chunk": torch.stack(chunk),
        "action_mask": torch.tensor(mask),
        "action": torch.stack(chunk[first : first + Ha]),
        "observation": history(t),
        "is_demo": torch.tensor([True]),
        "steps_to_next_obs": torch.tensor([k]),
        ("next", "observation"): history(t + k),
        ("next", "reward"): torch.tensor([reward]),
        ("next", "steps_to_next_obs"): torch.tensor([k]),
        ("next", "terminated"): torch.tensor([terminated]),
        ("next", "truncated"): torch.tensor([t + k == steps and not terminated]),
        ("next", "done"): torch.tensor([terminated or t + k == steps]),
        ("next", "success"): torch.tensor([success]),
    }


@pytest.mark.parametrize("horizons", [(1, 1, 1), (4, 3, 2), (16, 8, 3), (7, 5, 1)])
@pytest.mark.parametrize("alignment", ["newest", "oldest"])
@pytest.mark.parametrize(
    ("padding", "mask_padding", "terminate"), [("last", True, True), ("hold", False, True), ("hold", True, False)]
)
def test_every_item_equals_a_loop(store, episodes, horizons, alignment, padding, mask_padding, terminate):
    H, Ha, T = horizons
    storage = ChunkStorage(
        store,
        pred_horizon=H,
        act_horizon=Ha,
        obs_horizon=T,
        gamma=GAMMA,
        alignment=alignment,
        padding=padding,
        mask_padding=mask_padding,
        terminate_on_success=terminate,
    )
    batch = storage[:]
    rows = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode["action"]))]
    assert len(rows) == len(storage) == batch.batch_size[0]
    for row, (e, t) in enumerate(rows):
        expected = folded(
            episodes[e], t, H, Ha, T, oldest=alignment == "oldest", hold=padding == "hold",
            mask_padding=mask_padding, terminate=terminate,
        )  # fmt: skip
        assert set(batch.keys(True, True)) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(batch[row].get(key), value, msg=f"{key} of step {t} of episode {e}")


def test_hold_keeps_the_dimensions_it_is_told_to(store):
    storage = ChunkStorage(store, pred_horizon=4, act_horizon=1, padding="hold", hold_dims=(0, 2))
    last = int(store.episodes["start"][1] + store.episodes["length"][1] - 1)
    action = store.steps["action"][last]
    expected = action * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(storage[last]["action_chunk"], torch.stack([action, expected, expected, expected]))


def test_indices_of_any_form_select_the_same_items(store):
    storage = ChunkStorage(store, pred_horizon=4, act_horizon=2, obs_horizon=2)
    every = storage[:]
    assert storage.get(3).batch_size == torch.Size([])
    for index in (3, -1, [5, 1], torch.tensor([[0, 4, 2], [1, 1, 36]]), slice(2, 20, 5), range(4)):
        selector = torch.tensor(list(index)) if isinstance(index, range) else index
        assert (storage.get(index) == every[selector]).all()
    mask = torch.rand(len(storage)) > 0.5
    assert (storage.get(mask) == every[mask]).all()
    for outside in (len(storage), -len(storage) - 1):
        with pytest.raises(IndexError, match="outside"):
            storage.get(outside)
    assert 3 in storage
    assert len(storage) not in storage


def test_observation_keys_next_and_names_are_chosen(episodes, tmp_path):
    for episode in episodes:
        episode["env_state"] = {"cube": torch.rand(len(episode["observation"]), 13)}
        episode["proprio"] = torch.rand(len(episode["observation"]), 2)
    store = DemoStore.from_episodes(episodes, tmp_path / "more")
    arguments = {"pred_horizon": 4, "act_horizon": 2, "obs_horizon": 2}
    assert {"observation", "proprio"} == set(ChunkStorage(store, **arguments).obs_keys)
    storage = ChunkStorage(store, **arguments, obs_keys=[("env_state", "cube")], next_obs=False)
    batch = storage[:6]
    assert batch["env_state", "cube"].shape == (6, 2, 13)
    assert "observation" not in batch
    assert "env_state" not in batch["next"]
    renamed = ChunkStorage(store, **arguments, keys=ChunkKeys(action=("agents", "action"), reward="r"))[:6]
    assert renamed["agents", "action"].shape == (6, 2, 3)
    assert "r" in renamed["next"]
    with pytest.raises(ValueError, match="proprioception"):
        ChunkStorage(store, **arguments, obs_keys=["proprioception"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gamma": 1.5}, "gamma"), ({"padding": "zero"}, "padding"), ({"act_horizon": 9}, "act_horizon"),
     ({"padding": "hold", "hold_dims": (3,)}, "hold_dims")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        ChunkStorage(store, **{"pred_horizon": 4, "act_horizon": 2, **options})


def test_it_is_read_only(store):
    buffer = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2)
    with pytest.raises(RuntimeError, match="read-only"):
        buffer.storage.set(0, None)
    with pytest.raises(RuntimeError, match="writing"):
        buffer.add(buffer.storage[0])
    before = buffer.storage[:].clone()
    batch = buffer.sample(64)
    batch["action_chunk"].zero_()
    batch["observation"].zero_()
    assert (buffer.storage[:] == before).all()


@pytest.mark.parametrize("sampler", [RandomSampler, SamplerWithoutReplacement])
def test_a_seed_and_the_saved_state_repeat_batches(store, sampler):
    def make():
        return DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, sampler=sampler(), batch_size=8)

    torch.manual_seed(3)
    first = make()
    before = [first.sample() for _ in range(3)]
    state, rng = first.state_dict(), torch.get_rng_state()
    after = [first.sample() for _ in range(6)]

    torch.manual_seed(3)
    again = make()
    for batch in before:
        assert (again.sample() == batch).all()
    torch.rand(7)
    resumed = make()
    resumed.load_state_dict(state)
    torch.set_rng_state(rng)
    for batch in after:
        assert (resumed.sample() == batch).all()


def test_state_of_other_data_or_horizons_is_refused(store, episodes, tmp_path):
    state = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2).state_dict()
    with pytest.raises(RuntimeError, match=r"horizons: \[4, 2, 1\] saved, \[5, 2, 1\] here"):
        DemoReplayBuffer(store, pred_horizon=5, act_horizon=2).load_state_dict(state)
    other = DemoStore.from_episodes(episodes[:3], tmp_path / "other")
    with pytest.raises(RuntimeError, match="num_steps"):
        DemoReplayBuffer(other, pred_horizon=4, act_horizon=2).load_state_dict(state)


def test_buffer_is_saved_and_loaded_by_its_own_means(store, tmp_path):
    torch.manual_seed(0)
    buffer = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, sampler=SamplerWithoutReplacement(), batch_size=8)
    buffer.sample()
    buffer.dumps(tmp_path / "saved")
    rng = torch.get_rng_state()
    expected = buffer.sample()
    other = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, sampler=SamplerWithoutReplacement(), batch_size=8)
    other.loads(tmp_path / "saved")
    torch.set_rng_state(rng)
    assert (other.sample() == expected).all()


def test_sampling_without_replacement_visits_each_step_once(store):
    buffer = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, sampler=SamplerWithoutReplacement(), batch_size=5)
    for _ in range(2):
        seen = torch.cat([batch["index"] for batch in itertools.islice(buffer, -(-len(store) // 5))])
        assert seen.sort().values.tolist() == list(range(len(store)))


def test_random_sampling_reaches_every_step(store):
    buffer = DemoReplayBuffer(store, pred_horizon=4, act_horizon=2, batch_size=256)
    counts = torch.bincount(torch.cat([buffer.sample()["index"] for _ in range(8)]), minlength=len(store))
    assert counts.min() > 0


def test_transforms_and_prefetch_work(store):
    buffer = DemoReplayBuffer(
        store,
        pred_horizon=4,
        act_horizon=2,
        batch_size=8,
        prefetch=2,
        transform=lambda td: td.set("twice", 2 * td["action"]),
    )
    batch = [buffer.sample() for _ in range(4)][-1]
    torch.testing.assert_close(batch["twice"], 2 * batch["action"])
    assert len(buffer) == buffer.write_count == len(store)
    assert buffer.task_info["task"] == "toy"
    assert "pred_horizon=4" in repr(buffer)
