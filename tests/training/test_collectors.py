"""Rollouts of several processes: their data, their weights, their seeds, and what ends them."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest
import torch

from torchrl_flow.envs import CollectorEnvs, PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import (
    FEATURES_KEY,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    flow_on_features,
    make_flow_actor,
    make_noise_net,
)
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import (
    ChunkRollouts,
    CollectorError,
    CollectorRollouts,
    NonFiniteError,
    append_features,
    make_rollouts,
)


class BrokenEnv(PlanarPickPlaceEnv):
    """Gives a reward that is no number in its third step, or fails there."""

    steps = 0
    raises = False

    def _step(self, tensordict):
        out = super()._step(tensordict)
        self.steps += 1
        if self.steps == 3 and self.raises:
            raise OSError("the robot is on fire")
        if self.steps == 3:
            out["reward"][1] = float("nan")
        return out


class FailingEnv(BrokenEnv):
    raises = True


def make_env(num_envs, kind=PlanarPickPlaceEnv):
    return make_chunk_env(kind(num_envs, max_episode_steps=30), obs_horizon=2, act_horizon=4, gamma=0.9)


def unmakeable():
    raise ValueError("there is no such robot")


def make_policy():
    torch.manual_seed(0)
    config = FlowActorConfig(
        action_dim=3, state_dim=12, obs_horizon=2, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=2
    )
    actor = make_flow_actor(config, action_low=-torch.ones(3), action_high=torch.ones(3))
    return NoisyFlowActor(actor, make_noise_net(NoiseNetConfig(sigma_min=0.05), actor))


def change(policy, step):
    """An update of the learner: other weights, and less noise."""
    for parameter in policy.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    policy.noise_net.set_sigma_max(0.3 - 0.05 * step)


def rollouts_of(policy, make=None, num_envs: int | None = 4, **options):
    make = make or functools.partial(make_env, num_envs)
    return CollectorRollouts(CollectorEnvs(make, 2, num_envs), policy, 3, **{"seed": 0, **options})


@pytest.fixture
def collecting():
    """Make rollouts that end with the test."""
    made = []

    def make(*args, **kwargs):
        made.append(rollouts_of(*args, **kwargs))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()


def log_prob(policy, data):
    with torch.no_grad():
        return policy.get_dist(data).log_prob(data["flow", "x_next"])


def test_the_copies_of_the_policy_follow_the_learner(collecting):
    policy = make_policy()
    rollouts = collecting(policy)
    for step in range(3):
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        change(policy, step)
        data = rollouts.collect()
        now = policy.state_dict()
        assert any(not torch.equal(before[name], now[name]) for name in now)
        states = rollouts.collector.state_dict()
        for number in range(2):
            held = states[f"worker{number}"]["policy_state_dict"]
            assert set(held) == set(now)
            for name, value in now.items():
                assert torch.equal(held[name], value), (step, number, name)
        # The chains were drawn by what the learner now scores them by, the bound of the noise included.
        torch.testing.assert_close(log_prob(policy, data), data["flow", "log_prob"], rtol=1e-4, atol=1e-5)
        policy.noise_net.set_sigma_max(0.35)
        assert not torch.allclose(log_prob(policy, data), data["flow", "log_prob"], rtol=1e-2)


@pytest.mark.slow
def test_the_learner_is_not_touched_and_keeps_its_threads(collecting):
    policy = make_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    flags = [parameter.requires_grad for parameter in policy.parameters()]
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    rollouts = collecting(policy)
    rollouts.collect()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)
    assert [parameter.requires_grad for parameter in policy.parameters()] == flags
    assert not any(parameter.is_shared() for parameter in policy.parameters())
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name])
    rollouts.close()
    assert torch.get_num_threads() == threads


def test_episodes_go_on_and_the_data_are_those_of_one_process(collecting):
    policy = make_policy()
    keep = {"keep": ("observation", "action", "flow"), "keep_next": ("observation", "reward", "done", "success")}
    rollouts = collecting(policy, **keep)
    first, second = rollouts.collect(), rollouts.collect()
    one = ChunkRollouts(make_env(8), policy, 3, seed=0, **keep).collect()
    assert first.shape == second.shape == one.shape == (8, 3)
    assert rollouts.chunks == 24
    for key in one.keys(True, True):
        assert first[key].shape == one[key].shape, key
        assert first[key].dtype == one[key].dtype, key
    assert set(first.keys(True, True)) == set(one.keys(True, True))
    # Episodes of 30 steps: six chunks of four do not end one, but by success.
    going_on = ~first["next", "done"][:, -1].squeeze(-1)
    assert going_on.any()
    ends, starts = first["next", "observation"][:, -1], second["observation"][:, 0]
    assert torch.equal(ends[going_on], starts[going_on])
    # No two sub-environments have the same episode, nor the two processes the same noise.
    assert len(first["observation"][:, 0].reshape(8, -1).unique(dim=0)) == 8
    assert len(first["flow", "x"][:, 0].reshape(8, -1).unique(dim=0)) == 8
    # What one rollout returned is not written over by the next one.
    again = first["observation"].clone()
    rollouts.collect()
    assert torch.equal(first["observation"], again)


@pytest.mark.slow
def test_what_is_collected_depends_on_seed_and_weights_alone(collecting):
    policy = make_policy()
    data = [[rollouts.collect() for _ in range(2)] for rollouts in (collecting(policy), collecting(policy))]
    other = collecting(policy, seed=1).collect()
    for one, another in zip(*data, strict=True):
        for key in one.keys(True, True):
            assert torch.equal(one[key], another[key]), key
    assert not torch.equal(other["observation"][:, 0], data[0][0]["observation"][:, 0])


@pytest.mark.slow
def test_environments_that_are_not_batched_and_preparation(collecting):
    seen = []

    def prepare(step):
        seen.append(step.shape)
        step["next"].set("doubled", 2 * step["next", "reward"])
        return step

    rollouts = collecting(make_policy(), make=functools.partial(make_env, None), num_envs=None, prepare=prepare)
    data = rollouts.collect()
    assert data.shape == (2, 3)
    assert rollouts.chunks == 6
    assert seen == [torch.Size([2])] * 3
    assert torch.equal(data["next", "doubled"], 2 * data["next", "reward"])
    assert not any("collector" in str(key) for key in data.keys(True, True))


def make_pixel_env():
    base = PlanarPickPlaceEnv(2, max_episode_steps=30, from_pixels=True)
    return make_chunk_env(base, obs_horizon=1, act_horizon=4, gamma=0.9, obs_keys=("observation", "pixels"))


@pytest.mark.slow
def test_features_of_a_frozen_encoder_are_made_by_the_processes(collecting):
    torch.manual_seed(0)
    sizes = {"action_dim": 3, "state_dim": 12, "pred_horizon": 8, "act_horizon": 4, "width": 16, "depth": 1}
    config = FlowActorConfig(**sizes, obs_horizon=1, num_steps=2, pixels_size=(64, 64), pixel_features=8)
    flow = make_flow_actor(config)
    noisy = NoisyFlowActor(flow_on_features(flow), make_noise_net(NoiseNetConfig((8,)), flow))
    envs = append_features(CollectorEnvs(make_pixel_env, 2, 2), flow)
    rollouts = make_rollouts(envs, noisy, 3, seed=0)
    try:
        data = rollouts.collect()
    finally:
        rollouts.close()
    for part in (data, data["next"]):
        with torch.no_grad():
            expected = flow.features(part)
        torch.testing.assert_close(part[FEATURES_KEY].reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_prob(noisy, data), data["flow", "log_prob"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_starts_other_episodes_after_as_many_rollouts(collecting, tmp_path):
    policy = make_policy()
    rollouts = collecting(policy)
    first = rollouts.collect()
    path = save_checkpoint(tmp_path / "a.torchrl", state={"rollouts": rollouts})
    resumed = collecting(policy)
    load_checkpoint(path).restore(state={"rollouts": resumed})
    assert resumed.state_dict() == {"collected": 1}
    starts = resumed.collect()["observation"][:, 0]
    assert not torch.equal(starts, first["observation"][:, 0])
    # The first frame of a history is repeated at the start of an episode.
    assert torch.equal(starts[:, 0], starts[:, 1])


@pytest.mark.parametrize(
    "when",
    ["collecting", pytest.param("waiting", marks=pytest.mark.slow), pytest.param("updating", marks=pytest.mark.slow)],
)
def test_a_process_that_is_killed_is_named(collecting, when):
    rollouts = collecting(make_policy())
    rollouts.collect()
    victim, other = rollouts.collector.procs[1], rollouts.collector.procs[0]
    pid = other.pid
    if when == "waiting":
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(10)
    else:
        update = rollouts.collector.update_policy_weights_

        def killing(weights):
            if when == "collecting":
                update(weights)
            else:
                os.kill(victim.pid, signal.SIGSTOP)
            os.kill(victim.pid, signal.SIGKILL)
            if when == "updating":
                update(weights)

        rollouts.collector.update_policy_weights_ = killing
    message = r"Rollout 2: collector process 2 of 2 has ended \(killed by SIGKILL\)\. .*--resume"
    with pytest.raises(CollectorError, match=message):
        rollouts.collect()
    assert ends(pid)


def ends(pid):
    """Whether a process ends within five seconds."""
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("wait_for_all", [True, False])
def test_a_process_whose_environment_fails_is_named(collecting, wait_for_all):
    rollouts = collecting(make_policy(), make=functools.partial(make_env, 4, FailingEnv), wait_for_all=wait_for_all)
    with pytest.raises(CollectorError, match=r"Rollout 1: collector process [12] of 2 has ended \(exit code 1; its "):
        rollouts.collect()


def test_processes_that_cannot_start_say_why_in_one_line(collecting):
    with pytest.raises(CollectorError, match="could not start: ValueError: there is no such robot") as caught:
        collecting(make_policy(), make=unmakeable).collect()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("wait_for_all", [True, False])
def test_a_number_that_is_not_finite_is_named_with_its_sub_environment(collecting, wait_for_all):
    rollouts = collecting(make_policy(), make=functools.partial(make_env, 4, BrokenEnv), wait_for_all=wait_for_all)
    with pytest.raises(NonFiniteError, match=r"Rollout 1: .*'next.reward' \(row 1: nan\).* 4 of each collector"):
        rollouts.collect()


@pytest.mark.slow
def test_closing_ends_the_processes_and_collecting_goes_on_with_new_ones(collecting):
    rollouts = collecting(make_policy())
    rollouts.collect()
    pids = [process.pid for process in rollouts.collector.procs]
    for pid in pids:
        os.kill(pid, signal.SIGINT)  # as Ctrl-C in a terminal does: they collect on
    assert rollouts.collect().shape == (8, 3)
    rollouts.close()
    assert rollouts.collector is None
    assert not any(is_running(pid) for pid in pids)
    assert rollouts.collect().shape == (8, 3)
    assert rollouts.state_dict() == {"collected": 3}


def test_an_environment_of_this_process_is_collected_from_in_this_process():
    rollouts = make_rollouts(make_env(2), make_policy(), 3, seed=0)
    assert isinstance(rollouts, ChunkRollouts)
    rollouts.collect()
    rollouts.close()
    rollouts.close()
    assert rollouts.env.is_closed


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        CollectorRollouts(CollectorEnvs(functools.partial(make_env, 2), 2, 2), make_policy(), 0)
    for numbers, name in (((0, 2), "processes"), ((2, 0), "num_envs")):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            CollectorEnvs(functools.partial(make_env, 2), *numbers)
