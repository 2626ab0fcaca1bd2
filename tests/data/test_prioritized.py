"""Prioritised replay by trees of NumPy: frequencies, weights, and losses that use them."""

from __future__ import annotations

import io
import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data import PrioritizedSampler as CompiledSampler
from torchrl.data.replay_buffers.scheduler import LinearScheduler

from tests.data.test_mixed_replay import demo_buffer, mixed, transitions
from tests.objectives.test_aw_flow import make_batch
from tests.objectives.test_aw_flow import make_loss as make_aw_loss
from tests.objectives.test_chunk_critic_loss import make_loss as make_critic_loss
from torchrl_flow.data import DataError, DemoKeepingWriter, PrioritizedSampler, RatioSampler
from torchrl_flow.data.prioritized import _Tree

ALPHA, BETA, EPS = 0.6, 0.4, 1e-8


def make_buffer(rows=20, priorities=None, capacity=64, **options):
    sampler = PrioritizedSampler(capacity, **{"alpha": ALPHA, "beta": BETA, **options})
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity), sampler=sampler, batch_size=256, priority_key="td_error"
    )
    data = TensorDict(x=torch.arange(rows), batch_size=[rows])
    if priorities is not None:
        data["td_error"] = torch.as_tensor(priorities)
    buffer.extend(data)
    return buffer


def probabilities(priorities, alpha=ALPHA):
    powers = (torch.as_tensor(priorities, dtype=torch.float64) + EPS) ** alpha
    return powers / powers.sum()


def chi_square(counts, wanted):
    expected = wanted * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


class TestDraws:
    @pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
    def test_frequencies(self, alpha):
        torch.manual_seed(0)
        priorities = torch.rand(40) * 5 + 0.01
        buffer = make_buffer(40, priorities, alpha=alpha)
        index = buffer.sample(200_000)["index"]
        counts = torch.bincount(index, minlength=40).double()
        # 39 degrees of freedom: 99.9 % of samples lie below 72.05.
        assert chi_square(counts, probabilities(priorities, alpha)) < 72.05
        if alpha:
            assert chi_square(counts, torch.full((40,), 1 / 40, dtype=torch.float64)) > 1000

    def test_frequencies_after_updates_through_the_buffer(self):
        torch.manual_seed(1)
        buffer, known = make_buffer(30), torch.ones(30)
        for _ in range(5):
            batch = buffer.sample(8)
            batch["td_error"] = torch.rand(8) * 3
            buffer.update_tensordict_priority(batch)
            rows = batch["index"]
            # A row that was drawn twice has two errors: the larger or the later one counts, as the tree says.
            known[rows] = torch.from_numpy(buffer.sampler._sum_tree[rows] ** (1 / ALPHA)).float()
        counts = torch.bincount(buffer.sample(200_000)["index"], minlength=30).double()
        assert chi_square(counts, probabilities(known)) < 58.30  # 29 degrees of freedom

    def test_weights_are_those_of_the_formula(self):
        priorities = torch.rand(20) * 5 + 0.01
        batch = make_buffer(20, priorities).sample()
        share = probabilities(priorities)
        wanted = (20 * share) ** -BETA
        wanted = wanted / wanted.max()
        torch.testing.assert_close(batch["priority_weight"], wanted[batch["index"]].float())

    def test_a_fixed_seed_repeats_draws(self):
        buffer = make_buffer(20, torch.rand(20))
        first, second = (torch.manual_seed(3) and buffer.sample()["index"] for _ in range(2))
        assert torch.equal(first, second)
        buffer.set_rng(torch.Generator().manual_seed(5))
        first = buffer.sample()["index"]
        buffer.set_rng(torch.Generator().manual_seed(5))
        assert torch.equal(first, buffer.sample()["index"])

    def test_a_row_of_priority_0_needs_eps(self):
        buffer = make_buffer(10, torch.tensor([0.0] * 9 + [1.0]), alpha=1.0)
        assert buffer.sample(1000)["index"].unique().tolist() == [9]
        buffer = make_buffer(10, torch.tensor([0.0] * 9 + [1.0]), alpha=1.0, eps=0.0)
        with pytest.raises(ValueError, match="set eps above 0"):
            buffer.sample()

    def test_rows_of_several_dimensions(self):
        sampler = PrioritizedSampler(40, 1.0, 1.0)
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(40, ndim=2), sampler=sampler, batch_size=400)
        buffer.extend(TensorDict(x=torch.arange(20).reshape(5, 4), batch_size=[5, 4]))
        buffer.update_priority((torch.tensor([2]), torch.tensor([3])), torch.tensor([1e6]))
        batch = buffer.sample()
        # TorchRL stores time first: row (2, 3) is step 2 of environment 3.
        assert (batch["x"] == 3 * 4 + 2).float().mean() > 0.99

    @settings(max_examples=50, deadline=None)
    @given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=70), data=st.data())
    def test_the_tree_equals_running_sums(self, values, data):
        tree = _Tree(len(values), np.add, 0.0)
        tree[np.arange(len(values))] = values
        again = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=5))
        for place in again:
            values[place] = data.draw(st.floats(0, 1e6))
            tree[place] = values[place]
        assert tree.total == pytest.approx(sum(values), rel=1e-12)
        if sum(values) > 1e-6:
            mass = (np.arange(50) + 0.5) / 50 * tree.total
            found, sums = tree.find(mass), np.cumsum(values)
            assert (np.asarray(values)[found] > 0).all()
            tolerance = 1e-9 * tree.total
            assert (sums[found] >= mass - tolerance).all()
            assert (sums[found] - np.asarray(values)[found] <= mass + tolerance).all()


class TestPriorities:
    def test_new_rows_have_the_largest_one_so_far(self):
        buffer = make_buffer(4, torch.tensor([1.0, 5.0, 2.0, 0.5]))
        buffer.extend(TensorDict(x=torch.arange(2), td_error=torch.zeros(2), batch_size=[2]))
        buffer.sampler.mark_update(torch.tensor([4, 5]))
        powers = buffer.sampler._sum_tree[np.arange(6)]
        np.testing.assert_allclose(powers[4:], (5.0 + EPS) ** ALPHA)

    def test_annealing_keeps_priorities(self):
        buffer = make_buffer(20, torch.arange(1.0, 21.0), alpha=0.4)
        scheduler = LinearScheduler(buffer.sampler, param_name="alpha", final_value=1.0, num_steps=2)
        scheduler.step()
        scheduler.step()
        powers = buffer.sampler._sum_tree[np.arange(20)]
        np.testing.assert_allclose(powers / powers.sum(), probabilities(torch.arange(1.0, 21.0), 1.0), rtol=1e-5)

    def test_the_largest_in_the_buffer_can_be_asked_for(self):
        buffer = make_buffer(3, torch.tensor([1.0, 9.0, 2.0]), max_priority_within_buffer=True)
        buffer.update_priority(torch.tensor([1]), torch.tensor([0.5]))
        assert float(buffer.sampler.default_priority) == pytest.approx(2.0, rel=1e-5)

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_what_is_no_priority_is_refused_and_changes_nothing(self, value):
        buffer = make_buffer(3, torch.tensor([1.0, 2.0, 3.0]))
        before = buffer.sampler._sum_tree[np.arange(3)].copy()
        with pytest.raises(ValueError, match="priorities must be finite and at least 0"):
            buffer.update_priority(torch.tensor([0, 1]), torch.tensor([4.0, value]))
        np.testing.assert_array_equal(buffer.sampler._sum_tree[np.arange(3)], before)

    def test_an_empty_update(self):
        buffer = make_buffer(3, torch.tensor([1.0, 2.0, 3.0]))
        buffer.update_priority(torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        assert buffer.sample()["index"].max() <= 2

    def test_emptied_it_forgets(self):
        buffer = make_buffer(20, torch.arange(1.0, 21.0))
        buffer.empty()
        buffer.extend(TensorDict(x=torch.arange(2), batch_size=[2]))
        np.testing.assert_allclose(buffer.sampler._sum_tree[np.arange(4)], [1.0, 1.0, 0.0, 0.0])

    def test_arguments(self):
        with pytest.raises(ValueError, match="alpha must be greater or equal than 0"):
            PrioritizedSampler(4, -0.1, 0.5)
        with pytest.raises(ValueError, match="device must be the CPU"):
            PrioritizedSampler(4, 0.5, 0.5, device="cuda")
        storage = LazyTensorStorage(30)
        storage.set(range(20), TensorDict(x=torch.arange(20), batch_size=[20]))
        with pytest.raises(ValueError, match="the storage has 20 rows, and max_capacity is 10"):
            PrioritizedSampler(10, 0.5, 0.5).sample(storage, 3)
        with pytest.raises(RuntimeError, match="empty storage"):
            PrioritizedSampler(10, 0.5, 0.5).sample(LazyTensorStorage(30), 3)

    def test_it_is_one_of_torchrl_and_says_nothing_of_the_extension(self, caplog):
        with caplog.at_level(logging.WARNING, logger="torchrl"):
            sampler = PrioritizedSampler(4, 0.5, 0.5)
        assert isinstance(sampler, CompiledSampler)
        assert not caplog.records


class TestState:
    def test_it_goes_on_bit_for_bit(self):
        torch.manual_seed(0)
        buffer, other = make_buffer(20, torch.rand(20)), make_buffer(20, torch.rand(20), alpha=0.1, beta=0.9)
        state = io.BytesIO()
        torch.save(buffer.sampler.state_dict(), state)
        state.seek(0)
        other.sampler.load_state_dict(torch.load(state, weights_only=True))
        self.check_same(buffer, other)

    def test_files(self, tmp_path):
        buffer, other = make_buffer(20, torch.rand(20)), make_buffer(20, torch.rand(20), alpha=0.1, beta=0.9)
        for _ in range(2):  # a second time over the first one
            buffer.sampler.dumps(tmp_path / "sampler")
        other.sampler.loads(tmp_path / "sampler")
        self.check_same(buffer, other)

    def test_files_before_the_first_row(self, tmp_path):
        PrioritizedSampler(8, 0.6, 0.4).dumps(tmp_path)
        sampler = PrioritizedSampler(8, 0.1, 0.4)
        sampler.loads(tmp_path)
        assert (sampler.alpha, float(sampler.default_priority)) == (0.6, 1.0)

    @staticmethod
    def check_same(buffer, other):
        assert (other.sampler.alpha, other.sampler.beta) == (ALPHA, BETA)
        for _ in range(3):
            torch.manual_seed(7)
            first = buffer.sample()
            torch.manual_seed(7)
            second = other.sample()
            assert torch.equal(first["index"], second["index"])
            assert torch.equal(first["priority_weight"], second["priority_weight"])
            for each in (buffer, other):
                each.update_priority(first["index"][:4], torch.arange(1.0, 5.0))
            assert float(buffer.sampler.default_priority) == float(other.sampler.default_priority)

    def test_another_capacity_is_refused(self, tmp_path):
        sampler = make_buffer(20).sampler
        sampler.dumps(tmp_path)
        other = PrioritizedSampler(32, 0.6, 0.4)
        with pytest.raises(RuntimeError, match="64 priorities were saved, and max_capacity is 32"):
            other.load_state_dict(sampler.state_dict())
        with pytest.raises(RuntimeError, match="64 priorities were saved"):
            other.loads(tmp_path)
        (tmp_path / "sumtree.memmap").unlink()
        with pytest.raises(DataError, match=str(tmp_path)):
            other.loads(tmp_path)

    def test_pickle(self):
        sampler = pickle.loads(pickle.dumps(make_buffer(20, torch.rand(20)).sampler))
        assert sampler._sum_tree.total > 0


class TestMixedBuffers:
    def test_online_rows_by_their_td_error(self, store):
        buffer = mixed(
            store,
            online_ratio=0.5,
            batch_size=64,
            online_sampler=PrioritizedSampler(50, 1.0, 0.5),
            priority_key="td_error",
        )
        rows = buffer.extend(transitions(10))
        batch = buffer.sample()
        assert (batch["priority_weight"] == 1).all()  # all have the priority of new rows
        batch["td_error"] = torch.where(batch["index"] == rows[3], 1e6, 1e-3)
        buffer.update_tensordict_priority(batch)
        batch = buffer.sample()
        online = batch["index"][32:]
        assert (online == rows[3]).float().mean() > 0.9
        assert (batch["priority_weight"][:32] == 1).all()
        assert (batch["priority_weight"][32:] < 1).any()

    def test_demonstrations(self, store):
        buffer = mixed(store, online_ratio=0.0, batch_size=500, demo_sampler=PrioritizedSampler(len(store), 1.0, 0.5))
        assert buffer.sample()["index"].unique().numel() > 0.9 * len(store)
        buffer.update_priority(torch.arange(len(store)), torch.where(torch.arange(len(store)) == 5, 1.0, 1e-9))
        assert (buffer.sample()["index"] == 5).float().mean() > 0.99

    def test_a_buffer_of_demonstrations_alone(self, store):
        buffer = demo_buffer(store, sampler=PrioritizedSampler(len(store), 1.0, 0.5), batch_size=500)
        buffer.update_priority(torch.arange(len(store)), torch.where(torch.arange(len(store)) == 5, 1.0, 1e-9))
        assert (buffer.sample()["index"] == 5).float().mean() > 0.99

    def test_the_whole_buffer_goes_on_from_its_state(self, store, tmp_path):
        def make():
            return mixed(store, online_ratio=0.5, online_sampler=PrioritizedSampler(50, 0.6, 0.4))

        buffer, by_state, by_files = make(), make(), make()
        buffer.extend(transitions(10))
        buffer.update_priority(len(store) + torch.arange(10), torch.rand(10))
        by_state.load_state_dict(buffer.state_dict())
        buffer.dumps(tmp_path / "buffer")
        by_files.loads(tmp_path / "buffer")
        torch.manual_seed(0)
        wanted = buffer.sample()
        for other in (by_state, by_files):
            torch.manual_seed(0)
            assert torch.equal(other.sample()["index"], wanted["index"])

    def test_a_stock_storage_with_demonstrations_first(self):
        sampler = RatioSampler(online_sampler=PrioritizedSampler(100, 1.0, 1.0), online_ratio=0.5, num_demos=10)
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(100), sampler=sampler, writer=DemoKeepingWriter(10), batch_size=200
        )
        buffer.extend(TensorDict(x=torch.arange(30), batch_size=[30]))
        buffer.update_priority(torch.arange(30), torch.where(torch.arange(30) == 12, 1e6, 1e-6))
        index = buffer.sample()["index"]
        assert (index[100:] == 12).float().mean() > 0.99
        assert index[:100].max() < 10


class TestLosses:
    """By full correction, the gradient that is expected of draws by priority is that of the rows drawn uniformly."""

    PRIORITIES = torch.tensor([1, 2, 1, 4, 3, 1, 2, 5])

    def weighted(self, rows):
        """All draws in the proportion of their probabilities, with the weights that a sampler gives."""
        buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(8), sampler=PrioritizedSampler(8, 1.0, 1.0, eps=0.0), batch_size=500
        )
        buffer.extend(rows)
        buffer.update_priority(torch.arange(8), self.PRIORITIES.float())
        batch = buffer.sample()
        weight = torch.zeros(8)
        weight[batch["index"]] = batch["priority_weight"]
        assert (weight > 0).all()
        draws = torch.arange(8).repeat_interleave(self.PRIORITIES)
        return draws, rows[draws].set("priority_weight", weight[draws])

    @staticmethod
    def gradients(loss, parameters):
        return torch.autograd.grad(loss, list(parameters), allow_unused=True)

    def check(self, found, wanted, other):
        assert len(found) == len(wanted)
        pairs = [(a, b, c) for a, b, c in zip(found, wanted, other, strict=True) if b is not None]
        assert pairs
        for a, b, _ in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert any(not torch.allclose(c, b, rtol=1e-2) for _, b, c in pairs)

    @pytest.mark.parametrize("make", [lambda: make_critic_loss(num_qs=2, num_min_qs=2), lambda: make_aw_loss()])
    def test_critics(self, make):
        loss, rows = make(), make_batch()
        loss.next_value = lambda following: following["observation"].mean((-2, -1)).unsqueeze(-1)
        _, batch = self.weighted(rows)
        unweighted = batch.exclude("priority_weight")
        results = [
            self.gradients(loss.qvalue_loss(data)[0], loss.critic_parameters()) for data in (batch, rows, unweighted)
        ]
        self.check(*results)
        # The error that was written is what the next draw goes by.
        assert batch["td_error"].shape == (19,)
        assert (batch["td_error"] >= 0).all()

    def test_the_actor_of_awsc(self):
        loss, rows = make_aw_loss(baseline="policy", weight_clip=1e6, beta=1.0), make_batch()
        draws, batch = self.weighted(rows)
        values = torch.randn(2, 8)
        results = []
        for data, index in ((batch, draws), (rows, torch.arange(8)), (batch.exclude("priority_weight"), draws)):
            torch.manual_seed(0)  # the same flow time and noise for a row, however often it is drawn
            errors, metrics = loss._flow_errors(rows)
            loss._relative_values = lambda *_, index=index: values[:, index]
            found, _ = loss.actor_loss(data, (errors[index], metrics), q=values[:, index])
            results.append(self.gradients(found, loss.actor_parameters()))
        self.check(*results)
