"""RatioSampler and MixedStorage with stock storages in stock buffers."""

from __future__ import annotations

import pickle

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    SamplerWithoutReplacement,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers.samplers import Sampler

import torchrl_flow
from torchrl_flow.data import DemoKeepingWriter, LinearRatio, MixedStorage, OnlineWriter, RatioSampler

STORAGES = {"tensor": LazyTensorStorage, "memmap": LazyMemmapStorage, "list": ListStorage}
DEMOS, ROOM, BATCH = 12, 20, 8


def rows(values, is_demo, *, mark=True):
    values = torch.as_tensor(values, dtype=torch.float32)
    data = TensorDict(x=values, batch_size=[len(values)])
    return data.set("is_demo", torch.full((len(values), 1), is_demo)) if mark else data


def demo_rows(mark=True):
    """Demonstrations have negative values, online rows positive ones: what is drawn tells where it came from."""
    return rows(-1.0 - torch.arange(float(DEMOS)), True, mark=mark)


def online_rows(first, number, mark=True):
    return rows(1.0 + first + torch.arange(float(number)), False, mark=mark)


def make(mode, kind="tensor", **options):
    """A stock buffer that holds the demonstrations, and whether its rows are marked."""
    ratio = {"online_ratio": options.pop("online_ratio", 0.5), "if_empty": options.pop("if_empty", "demos")}
    samplers = options.pop("samplers", ())
    if mode == "mixed":
        demos = STORAGES[kind](DEMOS)
        demos.set(torch.arange(DEMOS), demo_rows(False))
        other = LazyMemmapStorage if kind == "tensor" else LazyTensorStorage
        storage = MixedStorage(demos, other(ROOM))
        options |= {"writer": OnlineWriter(), "collate_fn": lambda drawn: drawn}
        return TensorDictReplayBuffer(
            storage=storage, sampler=RatioSampler(*samplers, **ratio), batch_size=BATCH, **options
        )
    number = DEMOS if mode == "offset" else None
    sampler = RatioSampler(*samplers, **ratio, num_demos=number)
    options = {"writer": DemoKeepingWriter(DEMOS), **options}
    buffer = TensorDictReplayBuffer(storage=STORAGES[kind](DEMOS + ROOM), sampler=sampler, batch_size=BATCH, **options)
    buffer.extend(demo_rows(mode == "entry"))
    return buffer


MODES = [(mode, kind) for mode in ("offset", "entry", "mixed") for kind in STORAGES]


@pytest.mark.parametrize(("mode", "kind"), MODES)
def test_every_batch_is_half_and_half_as_the_online_part_grows_and_wraps(mode, kind):
    buffer, mark = make(mode, kind), mode == "entry"
    assert (buffer.sample()["x"] < 0).all(), "nothing is online yet"
    drawn, first = set(), 0
    for number in (1, 3, 7, 9, 6, 20, 5):
        index = buffer.extend(online_rows(first, number, mark))
        assert buffer[index]["x"].tolist() == online_rows(first, number)["x"].tolist()
        first += number
        kept = {float(x) for x in range(max(1, first - ROOM + 1), first + 1)}
        for _ in range(5):
            batch = buffer.sample()
            assert (batch["x"] < 0).tolist() == [True] * 4 + [False] * 4
            assert set(batch["x"][4:].tolist()) <= kept, "a row that was overwritten"
            drawn |= set(batch["x"].tolist())
            assert torch.equal(buffer[batch["index"]]["x"], batch["x"])
    for _ in range(60):
        drawn |= set(buffer.sample()["x"].tolist())
    # All demonstrations are still there, and all of what the ring holds is drawn.
    assert {x for x in drawn if x < 0} == set(demo_rows()["x"].tolist())
    assert kept <= drawn
    assert len(buffer) == DEMOS + ROOM


@pytest.mark.parametrize(("mode", "kind"), [mode for mode in MODES if mode[1] != "list"])
@pytest.mark.parametrize("by", ["state_dict", "dumps"])
def test_draws_go_on_from_a_state(mode, kind, by, tmp_path):
    def samplers():
        return SamplerWithoutReplacement(), SamplerWithoutReplacement()

    schedule = LinearRatio(0.0, 1.0, 8)
    source = make(mode, kind, samplers=samplers(), online_ratio=schedule)
    source.extend(online_rows(0, 15, mode == "entry"))
    for _ in range(3):
        source.sample()
    target = make(mode, kind, samplers=samplers(), online_ratio=schedule)
    if by == "state_dict":
        target.load_state_dict(source.state_dict())
    else:
        source.dumps(tmp_path / "buffer")
        target.loads(tmp_path / "buffer")
    drawn = []
    for buffer in (source, target):
        torch.manual_seed(3)
        batches = [buffer.sample()["x"] for _ in range(4)]
        buffer.extend(online_rows(15, 9, mode == "entry"))
        drawn.append(torch.stack([*batches, *(buffer.sample()["x"] for _ in range(4))]))
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] > 0).sum(1).tolist() == [3, 4, 5, 6, 7, 8, 8, 8]
    assert len(source) == len(target)


@pytest.mark.parametrize(("mode", "kind"), [("offset", "tensor"), ("entry", "memmap"), ("mixed", "tensor")])
def test_shares_are_exact_with_prefetched_batches_too(mode, kind):
    buffer = make(mode, kind, prefetch=3, online_ratio=0.25)
    buffer.extend(online_rows(0, 10, mode == "entry"))
    for step in range(12):
        # What was fetched ahead may be older than the last rows, and has its share all the same.
        assert (buffer.sample()["x"] > 0).sum() == 2
        buffer.extend(online_rows(10 + step, 1, mode == "entry"))


def test_marked_rows_may_lie_anywhere_and_be_replaced_by_a_stock_writer():
    sampler = RatioSampler()
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=sampler, batch_size=BATCH)
    for x, is_demo in enumerate([True, False, False, True, False, True]):
        buffer.add(rows([float(x)], is_demo)[0])
    for _ in range(5):
        batch = buffer.sample()
        assert batch["is_demo"].squeeze(-1).tolist() == [True] * 4 + [False] * 4
        assert set(batch["x"][:4].tolist()) <= {0.0, 3.0, 5.0}
    buffer.extend(rows(torch.arange(6.0, 12.0), False))  # over rows 0 and 1
    for _ in range(5):
        batch = buffer.sample()
        assert set(batch["x"][:4].tolist()) <= {3.0, 5.0}
        assert (~batch["is_demo"][4:]).all()
    buffer.extend(rows(torch.arange(12.0, 16.0), False))  # over the last demonstrations
    with pytest.raises(RuntimeError, match="4 of 8 rows must be demonstrations, but the storage has none"):
        buffer.sample()
    buffer.empty()
    buffer.extend(rows(torch.zeros(4), True))
    assert buffer.sample()["is_demo"].all()


def test_a_storage_of_steps_and_environments():
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(24, ndim=2), sampler=RatioSampler(), batch_size=BATCH, dim_extend=0
    )
    flags = torch.zeros(4, 3, 1, dtype=torch.bool)
    flags[:, 1] = True
    buffer.extend(TensorDict(x=torch.arange(12.0).reshape(4, 3), is_demo=flags, batch_size=[4, 3]))
    for _ in range(5):
        batch = buffer.sample()
        assert batch["is_demo"].squeeze(-1).tolist() == [True] * 4 + [False] * 4
        assert (batch["x"][:4] % 3 == 1).all()


class Greedy(Sampler):
    """Draws the row of the highest priority, as far as it was told of any."""

    def __init__(self):
        self.priorities = {}

    def sample(self, storage, batch_size):
        return torch.full((batch_size,), max(self.priorities, key=self.priorities.get)), {}

    def update_priority(self, index, priority, *, storage=None):
        self.priorities.update(zip(index.tolist(), priority.tolist()))

    def mark_update(self, index, *, storage=None):
        self.priorities.update(dict.fromkeys(index.tolist(), 1.0))

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        raise NotImplementedError

    def _empty(self):
        self.priorities = {}

    def dumps(self, path):
        raise NotImplementedError

    def loads(self, path):
        raise NotImplementedError


@pytest.mark.parametrize("mode", ["offset", "mixed"])
def test_priorities_reach_the_sampler_of_the_part(mode):
    samplers = Greedy(), Greedy()
    buffer = make(mode, samplers=samplers)
    buffer.extend(online_rows(0, 10, False))
    assert samplers[1].priorities == dict.fromkeys(range(10), 1.0)
    if mode == "offset":
        assert samplers[0].priorities == dict.fromkeys(range(DEMOS), 1.0)
    priority = torch.zeros(DEMOS + 10)
    priority[2], priority[DEMOS + 4] = 5.0, 7.0
    buffer.update_priority(torch.arange(DEMOS + 10), priority)
    assert (samplers[0].priorities[2], samplers[1].priorities[4]) == (5.0, 7.0)
    assert (len(samplers[0].priorities), len(samplers[1].priorities)) == (DEMOS, 10)
    assert buffer.sample()["x"].tolist() == [-3.0] * 4 + [5.0] * 4


def test_a_stock_writer_that_goes_round_over_demonstrations_is_refused():
    sampler = RatioSampler(num_demos=DEMOS)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(20), sampler=sampler, batch_size=BATCH)
    buffer.extend(demo_rows())
    buffer.extend(online_rows(0, 8))
    assert (buffer.sample()["x"] < 0).sum() == 4
    with pytest.raises(
        RuntimeError, match=r"row 0, one of the 12 demonstrations, was overwritten.*DemoKeepingWriter\(12\)"
    ):
        buffer.extend(online_rows(8, 1))
    mixed = make("mixed")
    stock = TensorDictReplayBuffer(
        storage=mixed.storage, sampler=RatioSampler(), batch_size=BATCH, collate_fn=lambda drawn: drawn
    )
    with pytest.raises(RuntimeError, match="OnlineWriter"):
        stock.extend(online_rows(0, 2, False))


def test_parts_with_other_entries_are_refused_by_name():
    demos = LazyTensorStorage(4)
    demos.set(torch.arange(4), TensorDict(x=torch.zeros(4), only_demos=torch.zeros(4), batch_size=[4]))
    buffer = TensorDictReplayBuffer(
        storage=MixedStorage(demos, LazyTensorStorage(4)),
        sampler=RatioSampler(),
        writer=OnlineWriter(),
        collate_fn=lambda drawn: drawn,
        batch_size=4,
    )
    buffer.extend(TensorDict(x=torch.zeros(2), only_online=torch.zeros(2), batch_size=[2]))
    with pytest.raises(ValueError, match=r"\['only_demos'\].*\['only_online'\]"):
        buffer.sample()


def test_demonstrations_that_change_later_are_refused():
    demos = LazyTensorStorage(8)
    demos.set(torch.arange(4), demo_rows(False)[:4])
    storage = MixedStorage(demos, LazyTensorStorage(4))
    demos.set(torch.arange(4, 6), demo_rows(False)[4:6])
    with pytest.raises(RuntimeError, match=r"were 4 demonstrations .* are 6 now"):
        storage.get(torch.arange(2))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: RatioSampler(if_empty="wait"), "if_empty"),
        (lambda: RatioSampler(num_demos=-1), "num_demos"),
        (lambda: RatioSampler(online_ratio=1.5), "online_ratio"),
        (lambda: DemoKeepingWriter(-1), "num_demos"),
        (lambda: MixedStorage(LazyTensorStorage(4), LazyTensorStorage(4)), "holds no rows"),
        (lambda: make("offset").extend(online_rows(0, 21)), "21 rows in one call exceed the online part of 20"),
        (lambda: filled(rows([1.0], True, mark=False)).sample(), r"no entry 'is_demo'.*they have \['index', 'x'\]"),
        (lambda: filled(TensorDict(is_demo=torch.ones(3), batch_size=[3])).sample(), "must be bool.*float32"),
        (lambda: filled(demo_rows(), Greedy()).sample(), "give num_demos"),
    ],
)
def test_refusals(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def filled(data, *samplers):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(32), sampler=RatioSampler(*samplers), batch_size=4)
    buffer.extend(data)
    return buffer


def test_a_sampler_is_pickled_without_the_storage():
    buffer = make("entry")
    buffer.extend(online_rows(0, 5))
    buffer.sample()
    copied = pickle.loads(pickle.dumps(buffer.sampler))
    assert copied._split._parts is None
    assert copied.sample(buffer.storage, 4)[0].shape == (4,)


def test_both_are_public():
    assert torchrl_flow.RatioSampler is RatioSampler
    assert torchrl_flow.MixedStorage is MixedStorage
