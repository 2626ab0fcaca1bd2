from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    RandomSampler,
    ReplayBuffer,
    SamplerWithoutReplacement,
)
from torchrl.envs import Compose, RewardSum, TransformedEnv

from tests.data.conftest import ACTION_DIM, STATE_DIM
from torchrl_flow.data import DemoReplayBuffer, DemoStore, LinearRatio, MixedReplayBuffer, split_batch
from torchrl_flow.envs import PlanarPickPlaceEnv, collect_demonstrations
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms
from torchrl_flow.runs import load_checkpoint, save_checkpoint

H, H_A, T, GAMMA = 5, 3, 2, 0.9


def demo_buffer(store, **options):
    return DemoReplayBuffer(
        store, **{"pred_horizon": H, "act_horizon": H_A, "obs_horizon": T, "gamma": GAMMA, **options}
    )


def mixed(store, *, demo_options=None, **options):
    return MixedReplayBuffer(demo_buffer(store, **(demo_options or {})), **{"batch_size": 16, "online": 50, **options})


def transitions(*batch, first=0):
    """SMDP transitions as a collector gives them; the reward numbers them."""
    steps = torch.randint(1, H_A + 1, (*batch, 1))
    flag = torch.rand(*batch, 1) < 0.3
    reward = torch.arange(batch.numel() if isinstance(batch, torch.Size) else torch.Size(batch).numel())
    following = TensorDict(
        {
            "observation": torch.randn(*batch, T, STATE_DIM),
            "reward": (reward + first).to(torch.float32).reshape(*batch, 1),
            "steps_to_next_obs": steps,
            "done": flag,
            "terminated": flag,
            "truncated": torch.zeros_like(flag),
            "success": flag,
            "step_count": steps,
        },
        batch,
    )
    return TensorDict(
        {
            "observation": torch.randn(*batch, T, STATE_DIM),
            "action": torch.randn(*batch, H_A, ACTION_DIM),
            "action_chunk": torch.randn(*batch, H, ACTION_DIM),
            "done": torch.zeros_like(flag),
            "noise": torch.randn(*batch, H, ACTION_DIM),
            "next": following,
        },
        batch,
    )


def same(one, other):
    return set(one.keys(True, True)) == set(other.keys(True, True)) and all(
        torch.equal(value, other[key]) for key, value in one.items(True, True)
    )


@given(batch=st.integers(1, 2000), ratio=st.floats(0, 1))
def test_the_split_is_the_nearest_and_whole(batch, ratio):
    demos, online = split_batch(batch, ratio)
    assert demos + online == batch
    assert min(demos, online) >= 0
    assert abs(online - ratio * batch) <= 0.5 + 1e-6


@pytest.mark.parametrize("ratio", [0, 0.1, 0.29, 0.5, 0.75, 1])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_every_batch_has_exactly_its_share_and_rows_stack(store, ratio, batch_size):
    buffer = mixed(store, online_ratio=ratio, batch_size=batch_size)
    buffer.extend(transitions(3, 4))
    keys = set(demo_buffer(store)[0].keys(True, True)) | {"index"}
    for _ in range(5):
        batch = buffer.sample()
        assert batch["is_demo"].sum() == split_batch(batch_size, ratio)[0]
        assert set(batch.keys(True, True)) == keys
        assert batch.shape == (batch_size,)
        assert torch.equal(batch["index"] < len(store), batch["is_demo"].squeeze(-1))


def test_it_is_a_replay_buffer_whose_rows_are_those_that_were_written(store):
    data = transitions(3, 4)
    buffer = mixed(store, online_ratio=0.5, batch_size=64)
    index = buffer.extend(data)
    assert isinstance(buffer, ReplayBuffer)
    assert (len(buffer), buffer.write_count, buffer.num_online_rows) == (len(store) + 12, 12, 12)
    assert torch.equal(index, len(store) + torch.arange(12))
    batch, demos = buffer.sample(), demo_buffer(store)
    is_demo = batch["is_demo"].squeeze(-1)
    assert same(batch[is_demo].exclude("index"), demos[batch["index"][is_demo]])
    flat = data.reshape(-1)[batch["index"][~is_demo] - len(store)]
    for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "terminated")):
        assert torch.equal(batch[~is_demo][key], flat[key])
    assert same(buffer[index], buffer[len(store) :])
    shuffled = torch.randperm(len(buffer))
    assert torch.equal(buffer[shuffled][("next", "observation")], buffer[:][("next", "observation")][shuffled])
    assert same(buffer[-1], buffer[len(buffer) - 1])
    buffer[index[:2]] = buffer[index[2:4]]
    assert same(buffer[index[:2]], buffer[index[2:4]])
    with pytest.raises(RuntimeError, match="read-only"):
        buffer[0] = buffer[1]
    buffer.empty()
    assert (len(buffer), buffer.write_count) == (len(store), 0)


@pytest.mark.parametrize("alignment", ["newest", "oldest"])
def test_only_executed_steps_are_imitated(store, alignment):
    first = 0 if alignment == "newest" else T - 1
    data = transitions(20)
    rows = mixed(store, demo_options={"alignment": alignment})._make_rows(data)
    for i in range(20):
        k = int(data[i]["next", "steps_to_next_obs"])
        expected = [first <= step < first + k for step in range(H)]
        assert rows[i]["action_mask"].tolist() == expected
        chunk = data[i]["action_chunk"].clone()
        chunk[first : first + H_A] = data[i]["action"]
        assert torch.equal(rows[i]["action_chunk"], chunk)
    alone = mixed(store)._make_rows(data.exclude("action_chunk"))
    assert torch.equal(alone["action_chunk"][:, :H_A], data["action"])
    assert torch.equal(alone["action_chunk"][:, H_A:], data["action"][:, -1:].expand(-1, H - H_A, -1))


def test_what_a_collector_marks_as_padding_is_left_out(store):
    data = transitions(2, 3)
    data["collector", "mask"] = torch.tensor([[True, True, False], [True, False, False]])
    buffer = mixed(store)
    buffer.extend(data)
    assert buffer[len(store) :]["next", "reward"].flatten().tolist() == [0, 1, 3]
    assert buffer.extend(data.apply(torch.zeros_like)).numel() == 0


def test_the_ring_forgets_the_oldest(store):
    buffer = mixed(store, online=10)
    for first in (0, 4, 8):
        buffer.extend(transitions(4, first=first))
    assert (buffer.num_online_rows, buffer.write_count) == (10, 12)
    assert sorted(buffer[len(store) :]["next", "reward"].flatten().tolist()) == list(range(2, 12))
    assert buffer.add(transitions(1, first=77)[0]) == len(store) + 2
    assert buffer[len(store) + 2]["next", "reward"].item() == 77
    with pytest.raises(ValueError, match="11 rows in one call"):
        buffer.extend(transitions(11))


def test_renamed_and_excluded_entries(store):
    data = transitions(4)
    data = data.rename_key_("observation", "state").exclude(("next", "success"))
    with pytest.raises(ValueError, match="lacks 'observation'"):
        mixed(store).extend(data)
    with pytest.raises(ValueError, match=r"exclude_keys=\[\('next', 'success'\)\]"):
        mixed(store, online_keys={"observation": "state"}).extend(data)
    buffer = mixed(store, online_keys={"observation": "state"}, exclude_keys=[("next", "success")])
    buffer.extend(data)
    assert ("next", "success") not in buffer.sample().keys(True)
    assert torch.equal(buffer[len(store) :]["observation"], data["state"])
    with pytest.raises(ValueError, match="'obs'"):
        mixed(store, online_keys={"obs": "state"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("observation", torch.zeros(4, STATE_DIM), "history_transforms"),
        ("action", torch.zeros(4, ACTION_DIM), "SMDPChunk"),
        ("action_chunk", torch.zeros(4, H + 1, ACTION_DIM), "number of steps"),
        (("next", "reward"), torch.zeros(4, 1, dtype=torch.int64), "int64"),
    ],
)
def test_data_that_does_not_fit_is_refused(store, key, value, message):
    with pytest.raises(ValueError, match=message):
        mixed(store).extend(transitions(4).set(key, value))


def test_double_rewards_become_floats(store):
    buffer = mixed(store)
    data = transitions(4)
    buffer.extend(data.set(("next", "reward"), data["next", "reward"].double()))
    assert buffer[len(store) :]["next", "reward"].dtype == torch.float32


def test_before_the_first_collection(store):
    assert mixed(store, online_ratio=1.0).sample()["is_demo"].all()
    buffer = mixed(store, if_empty="error")
    assert not buffer.can_sample()
    with pytest.raises(RuntimeError, match="collect first"):
        buffer.sample()
    buffer.extend(transitions(1))
    assert buffer.can_sample()
    assert buffer.sample()["is_demo"].sum() == 8


def test_the_ratio_is_annealed_and_can_be_set(store):
    buffer = mixed(store, online_ratio=LinearRatio(0.0, 0.5, 4))
    buffer.extend(transitions(20))
    assert [16 - int(buffer.sample()["is_demo"].sum()) for _ in range(6)] == [0, 2, 4, 6, 8, 8]
    buffer.online_ratio = lambda batches: 1.0 if batches > 6 else 0.25
    assert buffer.online_ratio == 0.25
    assert [16 - int(buffer.sample()["is_demo"].sum()) for _ in range(2)] == [4, 16]
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        buffer.online_ratio = 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"online_ratio": -0.1}, "online_ratio"),
        ({"if_empty": "wait"}, "if_empty"),
        ({"online": 0}, "online"),
        ({"online": LazyTensorStorage(9, ndim=3)}, "ndim"),
        ({"online": LazyTensorStorage(9, ndim=2), "online_sampler": SamplerWithoutReplacement()}, "RandomSampler"),
        ({"writer": None}, "writer"),
    ],
)
def test_arguments_out_of_range_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        mixed(store, **options)


def test_the_ratio_holds_where_an_epoch_of_a_sampler_ends(store):
    buffer = mixed(store, demo_sampler=SamplerWithoutReplacement(), online_sampler=SamplerWithoutReplacement())
    buffer.extend(transitions(5))
    seen = torch.cat([buffer.sample()["index"] for _ in range(10)])
    counts = torch.bincount(seen, minlength=len(buffer))
    assert torch.equal(counts[len(store) :], torch.full((5,), 16))
    assert counts[: len(store)].max() - counts[: len(store)].min() <= 1


class Greedy(RandomSampler):
    """Draws the row of the highest priority, as far as it was told of any."""

    def __init__(self):
        self.priorities = {}

    def sample(self, storage, batch_size):
        best = max(self.priorities, key=self.priorities.get)
        return torch.full((batch_size,), best), {"priority_weight": torch.full((batch_size,), 0.5)}

    def update_priority(self, index, priority, *, storage=None):
        self.priorities.update(zip(index.tolist(), priority.tolist()))

    def mark_update(self, index, *, storage=None):
        self.priorities.update(dict.fromkeys(index.tolist(), 1.0))


def test_priorities_reach_the_samplers_that_take_them(store):
    sampler = Greedy()
    buffer = mixed(store, online=5, online_sampler=sampler)
    index = buffer.extend(transitions(5))
    assert sampler.priorities == dict.fromkeys(range(5), 1.0)
    buffer.update_priority(torch.cat([torch.arange(3), index[[2, 4]]]), torch.tensor([9.0, 9, 9, 3, 0]))
    assert sampler.priorities == {0: 1, 1: 1, 2: 3, 3: 1, 4: 0}
    batch = buffer.sample()
    assert batch["index"][8:].eq(index[2]).all()
    assert batch["priority_weight"].tolist() == [1.0] * 8 + [0.5] * 8
    buffer.extend(transitions(3))
    assert sampler.priorities == {0: 1, 1: 1, 2: 1, 3: 1, 4: 0}


def resumable(store, tmp_path, kind):
    online = LazyMemmapStorage(10) if kind == "memmap" else LazyTensorStorage(10)
    return mixed(
        store,
        online=online,
        online_ratio=LinearRatio(0.2, 0.8, 9),
        demo_sampler=SamplerWithoutReplacement(),
        generator=torch.Generator().manual_seed(3),
    )


@pytest.mark.parametrize("kind", ["tensor", "memmap"])
@pytest.mark.parametrize("way", ["state_dict", "dumps", "checkpoint"])
@pytest.mark.parametrize("written", [0, 4, 13])
def test_batches_go_on_bit_for_bit(store, tmp_path, kind, way, written):
    buffer, other = resumable(store, tmp_path, kind), resumable(store, tmp_path, kind)
    more, data = transitions(3), transitions(max(written, 1))
    for row in data[:written]:
        buffer.add(row)
    for _ in range(3):
        buffer.sample()
    if way == "state_dict":
        other.load_state_dict(buffer.state_dict())
    elif way == "dumps":
        buffer.dumps(tmp_path / "dump")
        other.loads(tmp_path / "dump")
    else:
        save_checkpoint(tmp_path / "a.torchrl", state={"buffer": buffer})
        load_checkpoint(tmp_path / "a.torchrl").restore(state={"buffer": other})
    for _ in range(2):
        assert all(same(buffer.sample(), other.sample()) for _ in range(6))
        assert (buffer.write_count, len(buffer)) == (other.write_count, len(other))
        assert torch.equal(buffer.extend(more), other.extend(more))


def test_a_state_is_a_copy_and_of_these_demonstrations(store, episodes, tmp_path):
    buffer = mixed(store)
    buffer.extend(transitions(4))
    state = buffer.state_dict()
    before = state["_storage"]["online"]["observation"].clone()
    buffer.extend(transitions(50))
    assert torch.equal(state["_storage"]["online"]["observation"], before)
    assert len(before) == 4
    others = DemoStore.from_episodes(episodes[:2], tmp_path / "others")
    with pytest.raises(RuntimeError, match="other demonstrations"):
        mixed(others).load_state_dict(state)
    with pytest.raises(RuntimeError, match="room for 3"):
        mixed(store, online=3).load_state_dict(state)


def test_prefetched_batches_and_transforms(store):
    def double(batch):
        return batch.set("twice", 2 * batch["action"])

    buffer = mixed(store, prefetch=2, transform=double)
    buffer.extend(transitions(20))
    for _ in range(5):
        batch = buffer.sample()
        assert batch["is_demo"].sum() == 8
        assert torch.equal(batch["twice"], 2 * batch["action"])
    buffer.shutdown()


# Steps ------------------------------------------------------------------------------------------------------------


def step_episodes(num_envs, length, seed):
    """Step data ``[E, T]`` with done flags and trajectory ids; every value distinct."""
    generator = torch.Generator().manual_seed(seed)
    done = torch.rand(num_envs, length, 1, generator=generator) < 0.25
    terminated = done & (torch.rand(done.shape, generator=generator) < 0.5)
    ids = (done.cumsum(1) - done.int()).squeeze(-1) * num_envs + torch.arange(num_envs)[:, None]
    draw = lambda *shape: torch.randn(num_envs, length, *shape, generator=generator)  # noqa: E731
    return TensorDict(
        {
            "observation": draw(T, STATE_DIM),
            "action": draw(ACTION_DIM),
            "collector": {"traj_ids": ids},
            "next": {
                "observation": draw(T, STATE_DIM),
                "reward": draw(1),
                "done": done,
                "terminated": terminated,
                "truncated": done & ~terminated,
                "success": terminated,
            },
        },
        [num_envs, length],
    )


def fold_by_hand(steps, t, start):
    """The chunk from step ``t`` of one environment's whole history, step by step."""
    ends = steps["next", "done"].flatten().tolist()
    if ("collector", "break") in steps.keys(True):
        ends = [a or b for a, b in zip(ends, steps["collector", "break"].flatten().tolist())]
    last = next((i for i in range(t, len(ends)) if ends[i]), len(ends) - 1)
    first = t
    while first > 0 and not ends[first - 1]:
        first -= 1
    k = min(H_A, last - t + 1)
    actions = [steps["action"][min(max(t + i - start, first), last)] for i in range(H)]
    stop = t + k - 1
    return {
        "observation": steps["observation"][t],
        "action_chunk": torch.stack(actions),
        "action_mask": torch.tensor([first <= t + i - start <= last for i in range(H)]),
        "action": torch.stack(actions)[start : start + H_A],
        "is_demo": torch.tensor([False]),
        ("next", "observation"): steps["next", "observation"][stop],
        ("next", "reward"): sum(GAMMA**i * steps["next", "reward"][t + i] for i in range(k)),
        ("next", "steps_to_next_obs"): torch.tensor([k]),
        ("next", "done"): torch.tensor([ends[stop]]),
        ("next", "terminated"): steps["next", "terminated"][stop],
        ("next", "truncated"): torch.tensor([ends[stop]]) & ~steps["next", "terminated"][stop],
        ("next", "success"): steps["next", "success"][stop],
    }


@pytest.mark.parametrize("alignment", ["newest", "oldest"])
@pytest.mark.parametrize("fragments", [[20], [7, 1, 9], [9, 9, 9, 9]])
def test_steps_are_folded_as_by_hand(store, alignment, fragments):
    envs, room = 3, 22
    ring = LazyTensorStorage(room * envs, ndim=2)
    buffer = mixed(store, online=ring, online_ratio=1.0, batch_size=500, demo_options={"alignment": alignment})
    history = step_episodes(envs, sum(fragments), seed=sum(fragments))
    done = 0
    for length in fragments:
        index = buffer.extend(history[:, done : done + length])
        assert index.shape == (length, envs)
        done += length
    kept = history[:, max(0, done - room) :]
    length = kept.shape[1]
    assert (buffer.write_count, buffer.num_online_rows) == (envs * done, envs * length)
    start = 0 if alignment == "newest" else T - 1
    position = {kept[e, t]["action"].sum().item(): (e, t) for e in range(envs) for t in range(length)}
    seen = set()
    for row in [*buffer.sample(), *buffer[len(store) :]]:
        e, t = position[row["action"][0].sum().item()]
        for key, value in fold_by_hand(kept[e], t, start).items():
            torch.testing.assert_close(row[key], value, rtol=1e-6, atol=1e-6)
        if row.get("index", None) is not None:
            seen.add((e, t))
    assert seen == {(e, t) for e in range(envs) for t in range(length - H_A + 1)}


def test_folded_steps_equal_folded_demonstrations(tmp_path):
    """One collection, once as demonstrations and once as steps."""
    episodes = collect_demonstrations(3, quality="mixed", seed=0)
    length = min(len(episode["action"]) for episode in episodes)
    episodes = [
        {key: value[: length + (key == "observation")] if value.ndim else value for key, value in episode.items()}
        for episode in episodes
    ]
    store = DemoStore.from_episodes(episodes, tmp_path / "planar")
    demos = demo_buffer(store)
    obs = torch.stack([episode["observation"] for episode in episodes])
    obs = torch.stack([torch.cat([obs[:, :1], obs[:, :-1]], 1), obs], 2)
    success = torch.stack([episode["success"] for episode in episodes])[..., None]
    last = torch.zeros_like(success)
    last[:, -1] = True
    steps = TensorDict(
        {
            "observation": obs[:, :-1],
            "action": torch.stack([episode["action"] for episode in episodes]),
            "next": {
                "observation": obs[:, 1:],
                "reward": torch.stack([episode["reward"] for episode in episodes])[..., None],
                "done": success | last,
                "terminated": success,
                "truncated": last & ~success,
                "success": success,
            },
        },
        [3, length],
    )
    buffer = MixedReplayBuffer(demos, online=LazyTensorStorage(3 * length, ndim=2))
    index = buffer.extend(steps)
    rows = buffer[index.T.reshape(-1)]
    wanted = demos[:]
    # What follows a success is another episode to an environment, and the same one to a demonstration.
    rows["action_mask"], wanted["action_mask"] = torch.zeros(2, len(wanted))
    keys = [key for key in wanted.keys(True, True) if key not in ("action_chunk", "action", "is_demo")]
    alive = success.cumsum(1).sum(2).reshape(-1) == 0
    for key in keys:
        assert torch.equal(rows[key][alive], wanted[key][alive]), key


def test_an_episode_that_was_left_without_a_flag_ends_its_chunks(store):
    buffer = mixed(store, online=LazyTensorStorage(40, ndim=2))
    steps = step_episodes(1, 12, seed=0)
    for key in ("done", "terminated", "truncated"):
        steps["next", key] = torch.zeros(1, 12, 1, dtype=torch.bool)
    steps["collector", "traj_ids"] = torch.tensor([[0] * 4 + [1] * 8])
    first, second = steps[:, :8], steps[:, 8:].clone()
    second["collector", "traj_ids"] += 1
    buffer.extend(first)
    buffer.extend(second)
    rows = buffer[len(store) :]
    assert rows["next", "steps_to_next_obs"].flatten().tolist() == [3, 3, 2, 1, 3, 3, 2, 1, 3, 3, 2, 1]
    assert rows["next", "truncated"].flatten().tolist() == [False, True, True, True] * 2 + [False] * 4
    assert rows["action_mask"].sum(1).tolist() == [4, 3, 2, 1] * 3


def test_steps_may_be_memory_mapped(store, tmp_path):
    rings = LazyMemmapStorage(45, scratch_dir=tmp_path / "ring", ndim=2), LazyTensorStorage(45, ndim=2)
    one, other = (mixed(store, online=ring) for ring in rings)
    for part in step_episodes(3, 25, seed=2).split(5, 1):
        one.extend(part)
        other.extend(part)
    assert same(one[:], other[:])
    one.dumps(tmp_path / "dump")
    other.empty()
    other.loads(tmp_path / "dump")
    rows = other[:]
    assert same(one[:], rows)


def test_steps_go_on_after_a_resume_as_other_episodes(store, tmp_path):
    def make():
        return mixed(store, online=LazyTensorStorage(2 * 15, ndim=2), generator=torch.Generator().manual_seed(0))

    buffer, other = make(), make()
    steps = step_episodes(2, 30, seed=1)
    for part in steps[:, :20].split(10, 1):
        buffer.extend(part)
    buffer.sample()
    save_checkpoint(tmp_path / "a.torchrl", state={"buffer": buffer})
    load_checkpoint(tmp_path / "a.torchrl").restore(state={"buffer": other})
    assert all(same(buffer.sample(), other.sample()) for _ in range(5))
    assert same(buffer[:], other[:])
    index = other.extend(steps[:, 20:])
    assert torch.equal(index, buffer.extend(steps[:, 20:]))
    newest_before = len(store) + (19 % 15) * 2
    row = other[newest_before]
    assert row["next", "steps_to_next_obs"].item() == 1
    assert row["next", "done"].item()


def test_steps_of_other_collections_are_refused(store):
    buffer = mixed(store, online=LazyTensorStorage(40, ndim=2), online_ratio=1.0)
    buffer.extend(step_episodes(2, 2, seed=0))
    assert buffer.sample()["is_demo"].all()  # no chunk is complete yet
    buffer.add(step_episodes(2, 1, seed=1)[:, 0])
    assert not buffer.sample()["is_demo"].any()
    with pytest.raises(ValueError, match="3 environments were written to a ring of 2"):
        buffer.extend(step_episodes(3, 2, seed=0))
    with pytest.raises(ValueError, match="split_trajs"):
        buffer.extend(step_episodes(2, 2, seed=0).set(("collector", "mask"), torch.ones(2, 2, dtype=torch.bool)))
    with pytest.raises(ValueError, match="without SMDPChunk"):
        buffer.extend(transitions(2, 3))


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_no_window_crosses_environments_or_episodes(tmp_path_factory, data):
    envs, seed = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99))
    fragments = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    folder = tmp_path_factory.mktemp("store")
    episode = {"observation": torch.zeros(9, STATE_DIM), "action": torch.zeros(8, ACTION_DIM)}
    store = DemoStore.from_episodes([episode], folder / "demos")
    buffer = mixed(store, online=LazyTensorStorage(16 * envs, ndim=2), online_ratio=1.0, batch_size=200)
    steps = step_episodes(envs, sum(fragments), seed=seed)
    steps["action"] = steps["collector", "traj_ids"][..., None].expand(-1, -1, ACTION_DIM).float().clone()
    for part in steps.split(fragments, dim=1):
        buffer.extend(part)
    batch = buffer.sample()
    online = ~batch["is_demo"].squeeze(-1)
    chunk = batch["action_chunk"][online]
    assert torch.equal(chunk, chunk[:, :1].expand_as(chunk))


# Environments -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planar_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planar")
    return DemoStore.from_episodes(collect_demonstrations(4, seed=0), folder / "store")


def test_a_stock_collector_writes_into_it(planar_store):
    env = TransformedEnv(
        PlanarPickPlaceEnv(4, max_episode_steps=10, seed=0),
        Compose(RewardSum(), *history_transforms(T), SMDPChunk(H_A, gamma=GAMMA)),
    )
    buffer = mixed(planar_store, batch_size=32)
    collector = Collector(env, frames_per_batch=32, total_frames=64, replay_buffer=buffer)
    for _ in collector:
        pass
    collector.shutdown()
    assert (buffer.write_count, buffer.num_online_rows) == (64, 50)
    batch = buffer.sample()
    assert batch["is_demo"].sum() == 16
    assert torch.equal(batch["action_mask"][16:].sum(1, keepdim=True), batch["next", "steps_to_next_obs"][16:])
    assert batch["next", "steps_to_next_obs"][16:].unique().tolist() == [1, 3]


def test_a_stock_collector_of_steps(planar_store):
    env = TransformedEnv(PlanarPickPlaceEnv(4, max_episode_steps=10, seed=0), Compose(*history_transforms(T)))
    buffer = mixed(planar_store, online=LazyTensorStorage(400, ndim=2), batch_size=64)
    collector = Collector(env, frames_per_batch=48, total_frames=96)
    for data in collector:
        buffer.extend(data)
    collector.shutdown()
    online = buffer.sample()[32:]
    observation, action = online["observation"][:, -1], online["action"]
    base = PlanarPickPlaceEnv(32, max_episode_steps=10)
    state = base.reset(TensorDict({"observation": observation}, [32]), set_state=True)
    k = online["next", "steps_to_next_obs"]
    for i in range(H_A):
        after = base.step(state.set("action", action[:, i]))["next"]
        ends_here = (k == i + 1).squeeze(-1)
        torch.testing.assert_close(after["observation"][ends_here], online["next", "observation"][ends_here, -1])
        state = after.select("observation", "done", "terminated", "truncated")


class TestStepsAtTheRoot:
    """TorchRL's losses look for the executed steps there; rows have both entries, whatever the sampler."""

    @pytest.mark.parametrize("sampler", [RandomSampler, SamplerWithoutReplacement])
    def test_demonstrations(self, store, sampler):
        batch = demo_buffer(store, sampler=sampler(), batch_size=32).sample()
        assert torch.equal(batch["steps_to_next_obs"], batch["next", "steps_to_next_obs"])
        assert batch["steps_to_next_obs"].unique().tolist() == [1, 2, 3]

    @pytest.mark.parametrize("stale", [False, True])
    def test_transitions(self, store, stale):
        buffer, data = mixed(store, online_ratio=0.5, batch_size=64), transitions(3, 4)
        if stale:  # as from chunk environments in worker processes
            data["steps_to_next_obs"] = torch.full((3, 4, 1), H_A)
        buffer.extend(data)
        batch = buffer.sample()
        assert torch.equal(batch["steps_to_next_obs"], batch["next", "steps_to_next_obs"])
        assert batch[32:]["steps_to_next_obs"].unique().tolist() == [1, 2, 3]

    def test_steps(self, store):
        buffer = mixed(store, online=LazyTensorStorage(200, ndim=2), online_ratio=1.0, batch_size=64)
        env = TransformedEnv(PlanarPickPlaceEnv(2, max_episode_steps=7), Compose(*history_transforms(T)))
        data = env.rollout(30, break_when_any_done=False)
        data["observation"] = data["observation"][..., :STATE_DIM]
        data["next", "observation"] = data["next", "observation"][..., :STATE_DIM]
        data["action"] = data["action"][..., :ACTION_DIM]
        buffer.extend(data)
        batch = buffer.sample()
        assert torch.equal(batch["steps_to_next_obs"], batch["next", "steps_to_next_obs"])
        assert batch["steps_to_next_obs"].unique().tolist() == [1, 2, 3]

    def test_it_can_be_left_out(self, store):
        buffer = mixed(store, exclude_keys=["steps_to_next_obs"])
        buffer.extend(transitions(3, 4))
        assert "steps_to_next_obs" not in buffer.sample()

    def test_the_state_holds_it_no_second_time(self, store):
        buffer = mixed(store)
        buffer.extend(transitions(3, 4))
        assert "steps_to_next_obs" not in buffer.storage.state_dict()["online"]
