"""Rollouts of Ray workers and updates of several learners: data, weights, seeds, and what a death leaves."""

from __future__ import annotations

import functools
import os
import signal

import pytest
import torch

from tests.training.test_collectors import BrokenEnv, FailingEnv, change, log_prob, make_env, make_policy, unmakeable
from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.training import CollectorError, NonFiniteError, RayRollouts, make_rollouts
from torchrl_flow.util.ray_cluster import RayError, connect_ray, disconnect_ray, ray_session

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def session():
    """One Ray for all tests; it leaves the handler of SIGTERM as it is."""
    before = signal.getsignal(signal.SIGTERM)
    connect_ray(None, 2)
    assert signal.getsignal(signal.SIGTERM) is before
    yield
    disconnect_ray()


@pytest.fixture
def collecting():
    """Make rollouts that end with the test."""
    made = []

    def make(policy, make=None, num_envs: int | None = 4, workers=2, **options):
        envs = CollectorEnvs(make or functools.partial(make_env, 4), workers, num_envs, on_ray=True)
        made.append(make_rollouts(envs, policy, 3, **{"seed": 0, **options}))
        assert isinstance(made[-1], RayRollouts)
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()


def test_on_policy_rollouts_follow_the_learner_and_go_on_where_they_were(collecting):
    policy = make_policy()
    rollouts = collecting(policy)
    assert rollouts.chunks == 24
    first = rollouts.collect()
    change(policy, 0)
    second = rollouts.collect()
    assert first.shape == second.shape == (8, 3)
    # The chains were drawn by what the learner now scores them by, the bound of the noise included.
    torch.testing.assert_close(log_prob(policy, second), second["flow", "log_prob"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(log_prob(policy, first), first["flow", "log_prob"], rtol=1e-2)
    going_on = ~first["next", "done"][:, -1].squeeze(-1)
    assert going_on.any()
    assert torch.equal(first["next", "observation"][:, -1][going_on], second["observation"][:, 0][going_on])
    # No two sub-environments have the same episode, nor the workers the same noise.
    assert len(first["observation"][:, 0].reshape(8, -1).unique(dim=0)) == 8
    assert len(first["flow", "x"][:, 0].reshape(8, -1).unique(dim=0)) == 8
    first["observation"].zero_()  # it can be written to


@pytest.mark.slow
def test_two_runs_are_equal_and_a_resumed_one_starts_other_episodes(collecting):
    data = []
    for _ in range(2):
        rollouts = collecting(make_policy())
        data.append(rollouts.collect())
        state = rollouts.state_dict()
        rollouts.close()
    assert all(torch.equal(data[0][key], data[1][key]) for key in data[0].keys(True, True))
    resumed = collecting(make_policy())
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state == {"collected": 1, "replaced": 0}
    starts = resumed.collect()["observation"][:, 0]
    assert not torch.equal(starts, data[0]["observation"][:, 0])


def test_a_worker_that_is_killed_is_replaced_and_its_rollout_is_collected_again(collecting, caplog):
    policy = make_policy()
    rollouts = collecting(policy)
    first = rollouts.collect()
    (_, killed), other = rollouts.places
    os.kill(killed, signal.SIGKILL)
    change(policy, 0)
    data = rollouts.collect()
    assert data.shape == (8, 3)
    assert rollouts.metrics() == {"replaced_workers": 1}
    assert rollouts.state_dict() == {"collected": 2, "replaced": 1}
    assert f"Rollout 2, Ray worker 1 of 2 (process {killed} on " in caplog.text
    assert "has ended; a new one takes its place (1 so far)" in caplog.text
    # The new worker has the newest weights and new episodes; the other one goes on in its own.
    torch.testing.assert_close(log_prob(policy, data), data["flow", "log_prob"], rtol=1e-4, atol=1e-5)
    starts, ends = data["observation"][:, 0], first["next", "observation"][:, -1]
    going_on = ~first["next", "done"][4:, -1].squeeze(-1)
    assert torch.equal(ends[4:][going_on], starts[4:][going_on])
    assert not torch.equal(starts[:4], first["observation"][:4, 0])
    assert torch.equal(starts[:4, 0], starts[:4, 1])  # the first frame of a history is repeated
    assert rollouts.places[1] == other
    assert rollouts.places[0] not in (None, (other[0], killed), other)


@pytest.mark.slow
def test_off_policy_rollouts_are_those_of_one_worker_at_a_time(collecting):
    policy = make_policy()
    rollouts = collecting(policy, wait_for_all=False)
    assert rollouts.chunks == 12
    data = [rollouts.collect() for _ in range(6)]
    assert {tuple(part.shape) for part in data} == {(4, 3)}
    # Both workers deliver, and nothing comes twice.
    firsts = torch.stack([part["flow", "x"][:, 0] for part in data]).flatten(0, 1)
    assert len(firsts.reshape(24, -1).unique(dim=0)) == 24
    _, pid = next(place for place in rollouts.places if place is not None)
    os.kill(pid, signal.SIGKILL)
    more = [rollouts.collect() for _ in range(4)]
    assert {tuple(part.shape) for part in more} == {(4, 3)}
    assert rollouts.replaced == 1
    assert rollouts.state_dict()["collected"] == 10


@pytest.mark.slow
def test_environments_that_are_not_batched_preparation_and_kept_entries(collecting):
    def prepare(step):
        step["next"].set("doubled", 2 * step["next", "reward"])
        return step

    make = functools.partial(make_env, None)
    rollouts = collecting(make_policy(), make=make, num_envs=None, workers=1, prepare=prepare, keep=["observation"])
    data = rollouts.collect()
    assert data.shape == (1, 3)
    assert set(data.keys()) == {"observation", "next"}
    assert torch.equal(data["next", "doubled"], 2 * data["next", "reward"])


@pytest.mark.slow
def test_an_environment_that_fails_is_named(collecting):
    with pytest.raises(CollectorError, match=r"Rollout 1, Ray worker [12] of 2 .*OSError: the robot is on fire"):
        collecting(make_policy(), make=functools.partial(make_env, 4, FailingEnv)).collect()
    with pytest.raises(NonFiniteError, match=r"Rollout 1, Ray worker [12] of 2: .*'next.reward' \(row 1: nan\)"):
        collecting(make_policy(), make=functools.partial(make_env, 4, BrokenEnv)).collect()


class DyingEnv(FailingEnv):
    """Ends its process in its third step."""

    def _step(self, tensordict):
        try:
            return super()._step(tensordict)
        except OSError:
            os.kill(os.getpid(), signal.SIGKILL)
            raise


@pytest.mark.slow
def test_a_worker_that_dies_each_time_ends_the_run(collecting):
    rollouts = collecting(make_policy(), make=functools.partial(make_env, 4, DyingEnv), workers=1)
    with pytest.raises(CollectorError, match=r"has died 4 times without a rollout .*--resume"):
        rollouts.collect()
    assert rollouts.replaced == 3
    assert rollouts.places == []


@pytest.mark.slow
def test_workers_that_cannot_start_say_why_in_one_line(collecting):
    with pytest.raises(CollectorError, match=r"could not start: .*ValueError: there is no such robot") as caught:
        collecting(make_policy(), make=unmakeable, workers=1).collect()
    assert "\n" not in str(caught.value)
    with pytest.raises(CollectorError, match=r"3 Ray workers cannot start\. Ray has 2 CPUs, and 3 processes need one"):
        collecting(make_policy(), workers=3).collect()


def test_wrong_numbers_are_refused():
    envs = CollectorEnvs(functools.partial(make_env, 2), 2, 2, on_ray=True)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        RayRollouts(envs, make_policy(), 0)
    with pytest.raises(RayError, match="Ray has 2 CPUs, and 5 processes need one each"), ray_session(None, 5):
        pass
    assert ray.is_initialized()
