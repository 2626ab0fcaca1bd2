from __future__ import annotations

import os
import signal

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ParallelEnv

from tests.tiny_envs import CountdownEnv
from torchrl_flow.envs import PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import ChunkRollouts, CollectorError, NonFiniteError, minibatches


def make(obs_horizon=1, **kwargs):
    env = make_chunk_env(PlanarPickPlaceEnv(3, max_episode_steps=10), obs_horizon=obs_horizon, act_horizon=4, gamma=0.9)

    def policy(data):
        return data.set("action", torch.rand(3, 4, 3) * 2 - 1)

    return ChunkRollouts(env, policy, 4, seed=0, **kwargs)


def test_a_rollout_goes_on_where_the_last_one_ended():
    rollouts = make()
    first, second = rollouts.collect(), rollouts.collect()
    assert first.shape == second.shape == (3, 4)
    # Chunks of 4, 4 and 2 steps: the fourth one is the first of its episode, the fifth goes on.
    assert torch.equal(first["next", "observation"][:, -1], second["observation"][:, 0])
    assert not torch.equal(first["next", "observation"][:, 2], first["observation"][:, 3])


@pytest.mark.parametrize("obs_horizon", [1, 3])
def test_a_rollout_resumes_from_a_checkpoint_in_the_middle_of_an_episode(tmp_path, obs_horizon):
    rollouts = make(obs_horizon)
    rollouts.collect()
    path = save_checkpoint(tmp_path / "a.torchrl", state={"rollouts": rollouts})
    expected = rollouts.collect()
    other = make(obs_horizon)
    load_checkpoint(path).restore(state={"rollouts": other}, rng=True)
    found = other.collect()
    for key in expected.keys(True, True):
        assert torch.equal(found[key], expected[key]), key


def test_kept_entries_alone_are_kept():
    data = make(keep=("observation", "absent"), keep_next=("reward", "done")).collect()
    assert set(data.keys(True, True)) == {"observation", ("next", "reward"), ("next", "done")}


def test_minibatches_hold_every_row_once():
    data = TensorDict(x=torch.arange(12), batch_size=[12])
    rows = torch.cat([part["x"] for part in minibatches(data, 4)])
    assert rows.tolist() != list(range(12))
    assert sorted(rows.tolist()) == list(range(12))
    assert [part.shape[0] for part in minibatches(data, 100)] == [12]
    with pytest.raises(ValueError, match="size"):
        next(minibatches(data, 0))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps"):
        ChunkRollouts(make().env, lambda data: data, 0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("reward", r"'(next\.)?reward' \(row 1"),
        ("observation", r"'(next\.)?observation' \(row 1"),
        # The environment refuses an action before it executes it.
        ("action", r"the action 'action' is not finite at \[2, 0, 0\]"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_its_sub_environment(key, message):
    rollouts = make()
    rollouts.collect()
    step, policy = rollouts.env.base_env._step, rollouts.policy

    def bad_step(data):
        out = step(data)
        if key != "action":
            out[key][1] = float("nan")
        return out

    def bad_policy(data):
        data = policy(data)
        data["action"][2, 0, 0] = float("inf") if key == "action" else 0.0
        return data

    rollouts.env.base_env._step, rollouts.policy = bad_step, bad_policy
    with pytest.raises(NonFiniteError, match=message):
        rollouts.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its workers")
def test_a_killed_worker_of_a_parallel_env_is_named():
    workers = ParallelEnv(3, CountdownEnv, mp_start_method="fork")
    env = make_chunk_env(workers, obs_horizon=1, act_horizon=2, gamma=0.9)
    rollouts = ChunkRollouts(env, env.rand_action, 2)
    rollouts.collect()
    os.kill(workers._workers[1].pid, signal.SIGKILL)
    told = (
        r"Rollout 2: worker 2 of the 3 of the ParallelEnv has ended \(killed by SIGKILL\).*last checkpoint \(--resume\)"
    )
    with pytest.raises(CollectorError, match=told):
        rollouts.collect()


def test_another_error_of_an_environment_is_not_that_of_a_worker():
    rollouts = make()
    rollouts.policy = lambda data: (_ for _ in ()).throw(RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        rollouts.collect()
