"""SMDPChunk against a plain loop: kind of env x position of the end x length of the chunk."""

from __future__ import annotations

import doctest
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import Compose, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from tests.envs._envs import NAMES, HandLoop, ScriptedEnv
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms, smdp

GAMMA = 0.9
CHECKED = ("reward", "steps_to_next_obs", "done", "terminated", "truncated", "success")


def chunked(env, act_horizon, *before, **kwargs):
    transform = SMDPChunk(act_horizon, gamma=GAMMA, return_mask=True, return_step_rewards=True, **kwargs)
    return TransformedEnv(env, Compose(*before, transform))


def worker(row, act_horizon, obs_horizon=0, **kwargs):
    before = history_transforms(obs_horizon) if obs_horizon else ()
    return chunked(ScriptedEnv(row, **kwargs), act_horizon, *before)


def workers(num, make, *args, **kwargs):
    return [partial(make, row, *args, **kwargs) for row in range(num)]


def fork(makers):
    return ParallelEnv(len(makers), makers, mp_start_method="fork")  # starts in a fraction of spawn's time


def rows_of_three(index, **kwargs):
    return ScriptedEnv(3 * index, (3,), **kwargs)


def transform_outside(base):
    def make(act_horizon, obs_horizon=0):
        before = history_transforms(obs_horizon) if obs_horizon else ()
        return chunked(base(), act_horizon, *before)

    return make


# name -> (act_horizon, obs_horizon) -> env
KINDS = {
    "unbatched": transform_outside(lambda: ScriptedEnv(0)),
    "serial": transform_outside(lambda: SerialEnv(3, workers(3, ScriptedEnv))),
    "parallel": transform_outside(lambda: fork(workers(2, ScriptedEnv))),
    "locked": transform_outside(lambda: ScriptedEnv(0, (9,))),
    "locked, ignores _step": transform_outside(lambda: ScriptedEnv(0, (9,), honours_step=False)),
    "locked, nested batch": transform_outside(lambda: ScriptedEnv(0, (2, 3))),
    "serial of locked": transform_outside(lambda: SerialEnv(2, workers(2, rows_of_three))),
    "serial of locked, ignores _step": transform_outside(
        lambda: SerialEnv(2, workers(2, rows_of_three, honours_step=False))
    ),
    "in serial workers": lambda a, o=0: SerialEnv(3, workers(3, worker, a, o)),
    "in parallel workers": lambda a, o=0: fork(workers(2, worker, a, o)),
    "in locked serial workers": lambda a, o=0: SerialEnv(
        1, [partial(worker, 0, a, o, batch_size=(3,), honours_step=False)]
    ),
}


def check(data, wanted, index, context):
    """Compares a row of a step's result with what the plain loop says."""
    got = data["next"].reshape(-1)[index]
    for key in CHECKED:
        assert got[key].tolist() == [pytest.approx(wanted[key])], (key, context)
    assert got["executed_mask"].tolist() == wanted["executed_mask"], context
    assert got["step_rewards"].tolist() == pytest.approx(wanted["step_rewards"]), context
    observation = torch.tensor(wanted["observation"]).reshape(got["observation"].shape)
    torch.testing.assert_close(got["observation"], observation, msg=lambda m: f"{context}: {m}")


def play(env, act_horizon, obs_horizon=1, chunks=45, shape=None):
    """Plays chunks of random actions with auto-reset and checks each; returns the table's cells it met."""
    torch.manual_seed(0)
    td = env.reset() if shape is None else env.reset(TensorDict(batch_size=shape))
    loops = [HandLoop(row, GAMMA, obs_horizon) for row in range(td.numel())]
    cells = set()
    for _ in range(chunks):
        td = env.rand_action(td)
        td["action"] = (4 * td["action"]).round() / 4  # sums are exact
        chunk = td["action"].reshape(-1, act_horizon, 2).tolist()
        roots = td["observation"].reshape(len(loops), -1).tolist()
        data, td = env.step_and_maybe_reset(td)
        for index, (loop, actions, root) in enumerate(zip(loops, chunk, roots)):
            assert root == pytest.approx([x for frame in loop.history() for x in frame]), (loop.name, "root")
            context = (loop.name, index, loop.t)
            wanted = loop.chunk(actions)
            check(data, wanted, index, context)
            cells.add((loop.name, wanted["steps_to_next_obs"], wanted["done"]))
            if wanted["done"]:
                loop.reset()
    assert (td["steps_to_next_obs"] == act_horizon).all()
    return cells


@pytest.mark.parametrize("act_horizon", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_table(kind, act_horizon):
    env = KINDS[kind](act_horizon)
    try:
        cells = play(env, act_horizon)
    finally:
        env.close(raise_if_closed=False)
    # Every row of the table was met, ended ones with the k that its end asks for.
    assert {name for name, _, _ in cells} == set(NAMES)
    ends = {
        "first step": 0,
        "second step": 1,
        "middle": 2,
        "fourth step": 3,
        "truncation": 2,
        "third chunk": 9,
    }
    for name, end in ends.items():
        assert (name, end % act_horizon + 1, True) in cells
    assert {k for name, k, _ in cells if name == "never"} == {act_horizon}


@pytest.mark.parametrize("obs_horizon", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_table_with_history(kind, obs_horizon):
    env = KINDS[kind](4, obs_horizon)
    try:
        play(env, 4, obs_horizon, chunks=25)
    finally:
        env.close(raise_if_closed=False)


@pytest.mark.parametrize("kind", KINDS)
def test_specs(kind):
    env = KINDS[kind](3, 2)
    try:
        check_env_specs(env)
        batch = env.batch_size
        assert env.full_action_spec["action"].shape == (*batch, 3, 2)
        assert env.rand_action(env.reset())["action"].shape == (*batch, 3, 2)
        assert env.rollout(2, break_when_any_done=False)["action"].shape == (*batch, 2, 3, 2)
    finally:
        env.close(raise_if_closed=False)


def test_docstring():
    assert doctest.testmod(smdp).failed == 0


def test_the_spec_of_k_admits_zero_for_sub_environments_that_stand_still():
    spec = chunked(ScriptedEnv(), 4).observation_spec["steps_to_next_obs"]
    assert (int(spec.space.low.min()), int(spec.space.high.max())) == (0, 4)
