"""The chunk functions against plain Python loops."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrl_flow.functional import chunk
from torchrl_flow.functional.chunk import (
    chunk_return,
    executed_mask,
    executed_slice,
    executed_steps,
    latch,
    value_bound,
)

finite = st.floats(-10, 10, width=32)
wild = st.one_of(finite, st.sampled_from([math.inf, -math.inf, math.nan]))


@st.composite
def chunks(draw):
    """Rewards, done and flags of some rows, as nested lists `[rows][steps]`."""
    rows, steps = draw(st.integers(1, 4)), draw(st.integers(1, 7))

    def table(elements):
        return draw(st.lists(st.lists(elements, min_size=steps, max_size=steps), min_size=rows, max_size=rows))

    rewards, done, flags = table(finite), table(st.booleans()), table(st.booleans())
    junk = table(wild)
    for r in range(rows):  # what an environment returns after the end is of no meaning
        end = done[r].index(True) + 1 if True in done[r] else steps
        rewards[r][end:] = junk[r][end:]
    return rewards, done, flags


def loop(rewards, done, flags, gamma):
    """One row, step by step, as an environment loop would run it."""
    total, seen, k = 0.0, False, 0
    for reward, ended, flag in zip(rewards, done, flags):
        total += gamma**k * reward
        seen = seen or flag
        k += 1
        if ended:
            break
    return total, seen, k


@settings(max_examples=150, deadline=None)
@given(chunks(), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_equal_to_a_loop(tables, gamma):
    rewards, done, flags = tables
    done_t, flags_t = torch.tensor(done), torch.tensor(flags)
    executed = executed_mask(done_t)
    returns = chunk_return(torch.tensor(rewards, dtype=torch.float64), executed, gamma)
    latched, steps = latch(flags_t, executed), executed_steps(done_t)
    assert steps.dtype is torch.int64
    for r, row in enumerate(zip(rewards, done, flags)):
        total, seen, k = loop(*row, gamma)
        assert returns[r].tolist() == [pytest.approx(total, abs=1e-9)]
        assert latched[r].tolist() == [seen]
        assert steps[r].tolist() == [k]
        assert executed[r].tolist() == [i < k for i in range(len(row[0]))]


@settings(max_examples=50, deadline=None)
@given(chunks())
def test_batch_dimensions_do_not_mix(tables):
    done = torch.tensor(tables[1])
    nested = done[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(executed_mask(nested)[:, 1], executed_mask(done))
    torch.testing.assert_close(executed_steps(done[0]), executed_steps(done)[0])


def test_gradient_reaches_executed_rewards_only():
    rewards = torch.tensor([[1.0, 2.0, float("nan")]], requires_grad=True)
    chunk_return(rewards, torch.tensor([[True, True, False]]), 0.5).sum().backward()
    torch.testing.assert_close(rewards.grad, torch.tensor([[1.0, 0.5, 0.0]]))


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.sampled_from(["newest", "oldest"]))
def test_executed_slice(pred, act, obs, alignment):
    # The predicted steps are relative to the newest observation's step, which is step 0.
    first = 0 if alignment == "newest" else -(obs - 1)
    predicted = list(range(first, first + pred))
    wanted = list(range(act))
    if set(wanted) <= set(predicted):
        assert predicted[executed_slice(pred, act, obs, alignment)] == wanted
    else:
        with pytest.raises(ValueError, match="pred_horizon"):
            executed_slice(pred, act, obs, alignment)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: executed_slice(0, 1), "pred_horizon must be at least 1, got 0"),
        (lambda: executed_slice(4, 0), "act_horizon must be at least 1"),
        (lambda: executed_slice(4, 1, 0), "obs_horizon must be at least 1"),
        (lambda: executed_slice(4, 2, 1, "middle"), "alignment must be 'newest' or 'oldest'"),
        (lambda: executed_mask(torch.zeros(3)), "done must be a bool tensor"),
        (lambda: executed_mask(torch.zeros((), dtype=torch.bool)), "done must have shape"),
        (lambda: executed_mask(torch.zeros(2, 0, dtype=torch.bool)), "k_max >= 1"),
        (lambda: chunk_return(torch.zeros(2, 1), torch.ones(2, 3) > 0, 0.9), "one shape"),
        (lambda: chunk_return(torch.zeros(2, 3), torch.ones(2, 3), 0.9), "executed must be a bool"),
        (lambda: chunk_return(torch.zeros(3).long(), torch.ones(3) > 0, 0.9), "floating point"),
        (lambda: chunk_return(torch.zeros(3), torch.ones(3) > 0, 1.5), "gamma must lie in"),
        (lambda: latch(torch.ones(2, 1) > 0, torch.ones(2, 3) > 0), "one shape"),
        (lambda: latch(torch.ones(3), torch.ones(3) > 0), "flags must be a bool"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_docstrings():
    assert doctest.testmod(chunk, extraglobs={"torch": torch}).failed == 0


def test_a_bound_of_values_is_that_of_the_geometric_series():
    reward, steps = torch.tensor([[2.0], [-3.0], [0.0]], dtype=torch.float64), torch.tensor([[1], [3], [2]])
    bound = value_bound(reward, steps, 0.9)
    expected = [2.0 / 0.1, 3.0 / (1 - 0.9**3), 0.0]
    torch.testing.assert_close(bound.flatten(), torch.tensor(expected, dtype=torch.float64))
    # Summed term by term, 3.0 every third step.
    assert abs(bound[1].item() - sum(3.0 * 0.9 ** (3 * n) for n in range(200))) < 1e-6
    assert value_bound(reward, steps, 1.0).flatten().tolist() == [torch.inf, torch.inf, 0.0]
    with pytest.raises(ValueError, match="gamma"):
        value_bound(reward, steps, 1.1)
    with pytest.raises(ValueError, match="shape"):
        value_bound(reward, steps[:2], 0.9)
