"""Rollouts of the first process that is ready: nothing is lost, the weights follow, and a dead process is named."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest
import torch

from tests.training.test_collectors import (
    change,
    ends,
    is_running,
    log_prob,
    make_env,
    make_policy,
    rollouts_of,
)
from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import CollectorError, CollectorRollouts, RayRollouts, make_rollouts


@pytest.fixture
def collecting():
    """Make rollouts that end with the test."""
    made = []

    def make(*args, **kwargs):
        made.append(rollouts_of(*args, **{"wait_for_all": False, **kwargs}))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()


def follows(before, after):
    """Whether a rollout continues another one: each episode that has not ended goes on."""
    going_on = ~before["next", "done"][:, -1].squeeze(-1)
    return bool(going_on.any()) and torch.equal(
        before["next", "observation"][:, -1][going_on], after["observation"][:, 0][going_on]
    )


def test_a_rollout_is_that_of_one_process_and_a_slow_learner_loses_none(collecting):
    rollouts = collecting(make_policy())
    assert rollouts.chunks == 12
    data = [rollouts.collect()]
    time.sleep(3)  # TorchRL's queue has one place: the other processes would discard a rollout after a second
    data += [rollouts.collect() for _ in range(5)]
    assert all(one.shape == (4, 3) for one in data)
    chains = []
    for one in data:
        chain = next((chain for chain in chains if follows(chain[-1], one)), None)
        if chain is None:
            chains.append([one])
        else:
            chain.append(one)
    # Every rollout continues the one before it of the same process: there are as many chains as processes.
    assert [len(chain) > 1 for chain in chains] == [True, True]
    starts = torch.cat([chain[0]["observation"][:, 0] for chain in chains]).reshape(8, -1)
    assert len(starts.unique(dim=0)) == 8
    assert rollouts.state_dict() == {"collected": 6}


def test_the_copies_of_the_policy_follow_the_learner(collecting):
    policy = make_policy()
    rollouts = collecting(policy)
    rollouts.collect()
    change(policy, 1)
    # Rollouts that were finished or running have the weights of before; after two of each process they are over.
    for _ in range(5):
        data = rollouts.collect()
    torch.testing.assert_close(log_prob(policy, data), data["flow", "log_prob"], rtol=1e-4, atol=1e-5)
    change(policy, 2)
    assert not torch.allclose(log_prob(policy, data), data["flow", "log_prob"], rtol=1e-2)


@pytest.mark.slow
def test_the_learner_is_not_touched_and_keeps_its_threads(collecting):
    policy = make_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    rollouts = collecting(policy)
    rollouts.collect()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(parameter.is_shared() for parameter in policy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    rollouts.close()
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_environments_that_are_not_batched(collecting):
    rollouts = collecting(make_policy(), make=functools.partial(make_env, None), num_envs=None)
    assert rollouts.chunks == 3
    assert rollouts.collect().shape == (1, 3)


def test_a_resumed_run_starts_other_episodes_after_as_many_rollouts(collecting, tmp_path):
    rollouts = collecting(make_policy())
    first = torch.cat([rollouts.collect()["observation"][:, 0] for _ in range(2)])
    path = save_checkpoint(tmp_path / "a.torchrl", state={"rollouts": rollouts})
    resumed = collecting(make_policy())
    load_checkpoint(path).restore(state={"rollouts": resumed})
    assert resumed.state_dict() == {"collected": 2}
    starts = resumed.collect()["observation"][:, 0]
    assert torch.equal(starts[:, 0], starts[:, 1])  # the first frame of a history is repeated at an episode's start
    assert not (starts.flatten(1)[:, None] == first.flatten(1)).all(-1).any()


@pytest.mark.parametrize("when", ["collecting", pytest.param("waiting", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_named(collecting, when):
    rollouts = collecting(make_policy())
    rollouts.collect()
    victim, pid = rollouts.collector.procs[1], rollouts.collector.procs[0].pid
    os.kill(victim.pid, signal.SIGKILL)
    if when == "waiting":
        victim.join(10)
    message = r"Rollout \d+: collector process 2 of 2 has ended \(killed by SIGKILL\)\. .*--resume"
    # The other process may deliver what it has finished.
    with pytest.raises(CollectorError, match=message):
        list(iter(rollouts.collect, None))
    assert ends(pid)


def test_closing_ends_processes_that_collect_and_collecting_goes_on_with_new_ones(collecting):
    rollouts = collecting(make_policy())
    rollouts.collect()
    pids = [process.pid for process in rollouts.collector.procs]
    rollouts.close()  # the processes are in the middle of a rollout, or wait with one
    assert rollouts.collector is None
    assert not any(is_running(pid) for pid in pids)
    assert rollouts.collect().shape == (4, 3)
    assert rollouts.state_dict() == {"collected": 2}


def test_the_environments_say_whether_a_rollout_waits_for_all():
    make = functools.partial(make_env, 2)
    for wait, chunks in ((True, 12), (False, 6)):
        for ray, kind in ((False, CollectorRollouts), (True, RayRollouts)):
            envs = CollectorEnvs(make, 2, 2, on_ray=ray, wait_for_all=wait)
            rollouts = make_rollouts(envs, make_policy(), 3)
            assert isinstance(rollouts, kind)
            assert (rollouts.wait_for_all, rollouts.chunks) == (wait, chunks)
    assert make_rollouts(envs, make_policy(), 3, wait_for_all=True).chunks == 12
