"""The executed steps at the root of a transition; ``test_stale_root.py`` has the sources that leave it wrong."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector, MultiCollector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs import (
    Compose,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs.utils import check_env_specs, step_mdp
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss, SACLoss, SoftUpdate
from torchrl.trainers.algorithms import PPOTrainer, SACTrainer

from tests.envs._envs import HandLoop, ScriptedEnv
from torchrl_flow.envs import ChunkEnv, CopyStepsToRoot, SMDPChunk, make_chunk_env

GAMMA, HORIZON, ROWS = 0.9, 4, 3
ROOT, STEPS = "steps_to_next_obs", ("next", "steps_to_next_obs")


def plain_env(row=None):
    base = ScriptedEnv(0, (ROWS,), honours_step=False) if row is None else ScriptedEnv(row)
    return TransformedEnv(base, SMDPChunk(HORIZON, gamma=GAMMA))


def made_env(row=None):
    base = ScriptedEnv(0, (ROWS,), honours_step=False) if row is None else ScriptedEnv(row)
    return make_chunk_env(base, obs_horizon=1, act_horizon=HORIZON, gamma=GAMMA)


def chunks_around_workers(batched):
    base = batched(ROWS, [partial(ScriptedEnv, row) for row in range(ROWS)])
    return make_chunk_env(base, obs_horizon=1, act_horizon=HORIZON, gamma=GAMMA)


def chunks_in_workers(batched):
    base = batched(ROWS, [partial(plain_env, row) for row in range(ROWS)])
    return TransformedEnv(base, CopyStepsToRoot())


ENVS = {
    "TransformedEnv": plain_env,
    "make_chunk_env": made_env,
    "SerialEnv inside": partial(chunks_around_workers, SerialEnv),
    "SerialEnv outside": partial(chunks_in_workers, SerialEnv),
    "ParallelEnv inside": partial(chunks_around_workers, ParallelEnv),
    "ParallelEnv outside": partial(chunks_in_workers, ParallelEnv),
    "transform around": lambda: TransformedEnv(made_env(), StepCounter()),
}


def check(data, rows=range(ROWS)):
    """Compares both entries of ``[rows, time]`` with what a loop counts."""
    assert data.ndim == 2
    wanted = []
    for row in rows:
        loop, counts = HandLoop(row, GAMMA), []
        for _ in range(data.shape[1]):
            outcome = loop.chunk([[0.0, 0.0]] * HORIZON)
            counts.append(outcome["steps_to_next_obs"])
            if outcome["done"]:
                loop.reset()
        wanted.append(counts)
    assert data[STEPS].squeeze(-1).tolist() == wanted
    assert data[ROOT].squeeze(-1).tolist() == wanted
    assert {1, 2, 3, 4} <= {count for counts in wanted for count in counts} or data.shape[1] < 8


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ENVS if "Parallel" in name]


@pytest.fixture(params=[*(name for name in ENVS if "Parallel" not in name), *SLOW])
def env(request):
    made = ENVS[request.param]()
    yield made
    made.close(raise_if_closed=False)


class TestEnvironments:
    def test_collector(self, env):
        collector = Collector(env, frames_per_batch=ROWS * 5, total_frames=ROWS * 15)
        batches = [batch.clone() for batch in collector]
        check(torch.cat(batches, -1))

    def test_rollout_that_goes_on(self, env):
        data = env.rollout(14, break_when_any_done=False)
        if not isinstance(env, ChunkEnv):
            data = data[:, :-1]  # TorchRL takes the last step by `step` alone
        check(data)

    def test_rollout_to_the_first_done(self, env):
        assert env.rollout(5)[ROOT].squeeze(-1).tolist() == [[1], [2], [3]]

    def test_rollout_until_all_are_done(self, env):
        data = env.rollout(5, break_when_any_done=False, break_when_all_done=True)
        assert (data[ROOT] == data[STEPS]).all()

    def test_specs(self, env):
        check_env_specs(env)

    def test_the_transition_before_stays_as_it_was(self, env):
        carry, kept = env.reset(), []
        for _ in range(8):
            data, carry = env.step_and_maybe_reset(env.rand_action(carry))
            kept.append((data, data[STEPS].clone()))
        for data, steps in kept:
            assert (data[STEPS] == steps).all()
            assert (data[ROOT] == steps).all()


@pytest.mark.parametrize("make", [plain_env, made_env])
class TestStep:
    def test_a_loop_with_step_mdp_changes_no_transition_before(self, make):
        env = make()
        carry, kept = env.reset(), []
        for number in range(6):
            data = env.step(env.rand_action(carry))
            kept.append((data, data[STEPS].clone()))
            if number % 2:  # a loop may change its ways
                _, carry = env.step_and_maybe_reset(env.rand_action(step_mdp(data)))
            else:
                carry = step_mdp(data)
        assert all((data[STEPS] == steps).all() for data, steps in kept)
        if make is made_env:
            assert all((data[ROOT] == steps).all() for data, steps in kept)

    def test_views_of_collected_data_stay_as_they_were(self, make):
        env = make()
        data = env.rollout(6, break_when_any_done=False)
        before = data.clone()
        env.step(env.rand_action(data["next"][:, 2]))
        env.step_and_maybe_reset(env.rand_action(data["next"][:, 2]))
        assert (data == before).all()


def test_step_alone_writes_the_root():
    env = made_env()
    data = env.step(env.rand_action(env.reset()))
    assert data[ROOT].flatten().tolist() == [1, 2, 3]
    data = env.rand_action(env.reset())
    data["_step"] = torch.tensor([[True], [False], [True]])
    data = env.step(data)
    assert data[ROOT].tolist() == data[STEPS].tolist()
    assert data[STEPS][1].item() == 0  # a row that was not stepped


def test_other_keys_and_order_of_transforms():
    base = ScriptedEnv(0, (ROWS,), honours_step=False)
    chunk = SMDPChunk(HORIZON, gamma=GAMMA, steps_key=("chunk", "k"))
    env = ChunkEnv(base, Compose(chunk, StepCounter()))
    check_env_specs(env)
    data = env.rollout(8, break_when_any_done=False)
    assert (data["chunk", "k"] == data["next", "chunk", "k"]).all()
    assert data["next", "chunk", "k"].unique().tolist() == [1, 2, 3, 4]


def test_an_unbatched_env():
    env = made_env(0)
    data = env.rollout(14, break_when_any_done=False)
    check(data.unsqueeze(0), rows=[0])


def test_wrapped_again_it_keeps_its_class():
    env = TransformedEnv(made_env(), RewardSum(in_keys=["reward"], out_keys=["sum"]))
    assert isinstance(env.base_env, ChunkEnv)


def test_random_chunks_in_an_env_with_transforms():
    base = TransformedEnv(ScriptedEnv(0, (ROWS,), honours_step=False), StepCounter())
    env = make_chunk_env(base, obs_horizon=1, act_horizon=HORIZON, gamma=GAMMA)
    for each in (env, TransformedEnv(env, StepCounter(step_count_key="chunks"))):
        assert each.rand_action(each.reset())["action"].shape == (ROWS, HORIZON, 2)


def test_episodes_go_on_unharmed():
    """The same numbers as without the root entry: a hand-written loop over `step` and `reset`."""
    env, loop_env = made_env(), made_env()
    torch.manual_seed(0)
    data = env.rollout(10, break_when_any_done=False)
    carry = loop_env.reset()
    for t in range(10):
        stepped = loop_env.step(carry.set("action", data["action"][:, t]))
        for key in ("observation", "reward", "done", "success", "steps_to_next_obs"):
            torch.testing.assert_close(stepped["next", key], data["next", key][:, t])
        carry = loop_env.maybe_reset(loop_env.step_mdp(stepped))


class TestCopyStepsToRoot:
    def test_postproc_of_a_collector(self):
        env = SerialEnv(ROWS, [partial(plain_env, row) for row in range(ROWS)])
        collector = Collector(env, frames_per_batch=ROWS * 14, total_frames=ROWS * 14, postproc=CopyStepsToRoot())
        (batch,) = list(collector)
        check(batch)

    def test_replay_buffer(self):
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), transform=CopyStepsToRoot(), batch_size=32)
        data = made_env().rollout(14, break_when_any_done=False).exclude(ROOT)
        buffer.extend(data.reshape(-1))
        sample = buffer.sample()
        assert (sample[ROOT] == sample[STEPS]).all()
        assert sample[STEPS].unique().numel() > 1

    def test_its_input_stays_as_it_was(self):
        data = TensorDict({"next": {ROOT: torch.tensor([[3]])}, ROOT: torch.tensor([[4]])}, batch_size=[1])
        out = CopyStepsToRoot()(data.lock_())
        assert data[ROOT].item() == 4
        assert out[ROOT].item() == 3

    def test_data_without_k_is_an_error(self):
        data = TensorDict({"next": {"reward": torch.zeros(1, 1)}}, batch_size=[1])
        with pytest.raises(ValueError, match=r"no 'steps_to_next_obs' under 'next', .* it has \['reward'\]"):
            CopyStepsToRoot()(data)
        nested = TensorDict({"next": {"agent": {"reward": torch.zeros(1, 1)}}}, batch_size=[1])
        with pytest.raises(ValueError, match=r"it has \[\"\('agent', 'reward'\)\"\]"):
            CopyStepsToRoot()(nested)
        with pytest.raises(ValueError, match=r"it has \[\]"):
            CopyStepsToRoot()(TensorDict(batch_size=[1]))


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_collectors_in_processes(sync):
    joined = {"cat_results": 0} if sync else {}
    collector = MultiCollector([made_env] * 2, None, sync=sync, frames_per_batch=60, total_frames=60, **joined)
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    for batch in batches:
        assert (batch[ROOT] == batch[STEPS]).all()
        assert batch[STEPS].unique().tolist() == [1, 2, 3, 4]


def gaussian():
    net = nn.Sequential(nn.Flatten(-2), nn.Linear(4, 2 * HORIZON * 2), nn.Unflatten(-1, (HORIZON, 4)))
    parameters = TensorDictModule(net, ["observation"], ["parameters"])
    split = TensorDictModule(NormalParamExtractor(), ["parameters"], ["loc", "scale"])
    return ProbabilisticActor(
        TensorDictSequential(parameters, split),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        distribution_kwargs={"event_dims": 2},
        return_log_prob=True,
    )


class ChunkQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4 + 2 * HORIZON, 1)

    def forward(self, observation, action):
        return self.net(torch.cat([observation.flatten(-2), action.flatten(-2)], -1))


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestTrainers:
    """TorchRL's trainers, with nothing set that speaks of k."""

    def test_ppo_trainer(self):
        torch.manual_seed(0)
        actor = gaussian()
        value = ValueOperator(nn.Sequential(nn.Flatten(-2), nn.Linear(4, 1)), ["observation"], ["state_value"])
        loss = ClipPPOLoss(actor, value, entropy_bonus=False)
        trainer = PPOTrainer(
            collector=Collector(made_env(), actor, frames_per_batch=ROWS * 10, total_frames=ROWS * 20),
            total_frames=ROWS * 20,
            frame_skip=1,
            optim_steps_per_batch=2,
            loss_module=loss,
            optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
            num_epochs=1,
            replay_buffer=TensorDictReplayBuffer(
                storage=LazyTensorStorage(ROWS * 10), sampler=SamplerWithoutReplacement(), batch_size=ROWS * 5
            ),
            progress_bar=False,
            gamma=GAMMA,
        )
        gae, seen = trainer._modules["value_estimator"].value_estimator, []
        key = gae.tensor_keys.steps_to_next_obs
        gae.register_forward_pre_hook(lambda _, args: seen.append((args[0][key], args[0][STEPS])))
        trainer.train()
        assert len(seen) == 2
        assert all((read == executed).all() for read, executed in seen)
        assert seen[0][0].unique().tolist() == [1, 2, 3, 4]

    def test_sac_trainer(self, monkeypatch):
        torch.manual_seed(0)
        actor = gaussian()
        critic = ValueOperator(ChunkQ(), ["observation", "action"], ["state_action_value"])
        loss = SACLoss(actor, critic, target_entropy=-8.0)
        loss.make_value_estimator(gamma=GAMMA)
        trainer = SACTrainer(
            collector=Collector(made_env(), actor, frames_per_batch=ROWS * 10, total_frames=ROWS * 20),
            total_frames=ROWS * 20,
            frame_skip=1,
            optim_steps_per_batch=2,
            loss_module=loss,
            optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
            replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(1000), batch_size=16),
            target_net_updater=SoftUpdate(loss, tau=0.01),
            enable_logging=False,
            progress_bar=False,
        )
        estimator, seen = loss.value_estimator, []
        value_estimate = estimator.value_estimate

        def recorded(data, *args, **kwargs):
            seen.append((data[estimator.tensor_keys.steps_to_next_obs], data[STEPS]))
            return value_estimate(data, *args, **kwargs)

        monkeypatch.setattr(estimator, "value_estimate", recorded)
        trainer.train()
        assert len(seen) == 4
        assert all((read == executed).all() for read, executed in seen)


@pytest.mark.slow
def test_a_killed_worker_of_a_parallel_env_is_named():
    env = chunks_around_workers(ParallelEnv)
    workers = env.base_env
    while not isinstance(workers, ParallelEnv):
        workers = workers.base_env
    env.rollout(2)
    os.kill(workers._workers[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker 1 (dead|\(exit code -9\))"):
        env.rollout(2)
    with pytest.raises(RuntimeError, match="worker 1"):
        env.close()
