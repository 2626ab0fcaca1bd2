"""TorchRL's value estimators, losses and collectors on chunks, against loops with gamma^k."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector, MultiCollector
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import SACLoss, ValueEstimators
from torchrl.objectives.value import GAE, TD0Estimator

from tests.envs._envs import HandLoop, ScriptedEnv
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms

GAMMA, LMBDA, HORIZON = 0.9, 0.7, 4
STEPS = ("next", "steps_to_next_obs")


def make_env(base=None):
    return TransformedEnv(base or ScriptedEnv(0, (3,), honours_step=False), SMDPChunk(HORIZON, gamma=GAMMA))


@pytest.fixture
def rollout():
    torch.manual_seed(0)
    return make_env().rollout(14, break_when_any_done=False)


@pytest.fixture
def value_net():
    torch.manual_seed(1)
    return ValueOperator(nn.Linear(4, 1), in_keys=["observation"])


def td_targets(rollout, value_net):
    """The targets r + gamma^k V(s') of each transition, as lists `[row][time]`, with k, V(s) and done."""
    with torch.no_grad():
        value = value_net(rollout.select("observation"))["state_value"]
        next_value = value_net(rollout["next"].select("observation"))["state_value"]
    rows = []
    for b in range(rollout.shape[0]):
        row = []
        for t in range(rollout.shape[1]):
            nxt = rollout["next"][b, t]
            k = nxt["steps_to_next_obs"].item()
            bootstrap = 0.0 if nxt["terminated"].item() else next_value[b, t].item()
            target = nxt["reward"].item() + GAMMA**k * bootstrap
            row.append((target, k, value[b, t].item(), nxt["done"].item()))
        rows.append(row)
    return rows


def test_rewards_are_those_of_a_loop(rollout):
    for b in range(3):
        loop = HandLoop(b, GAMMA)
        for t in range(rollout.shape[1]):
            wanted = loop.chunk([[0.0, 0.0]] * HORIZON)
            assert rollout["next", "reward"][b, t].item() == pytest.approx(wanted["reward"])
            if wanted["done"]:
                loop.reset()
    assert rollout["next", "steps_to_next_obs"].unique().tolist() == [1, 2, 3, 4]
    assert rollout["next", "truncated"].any()


def test_td0(rollout, value_net):
    estimator = TD0Estimator(gamma=GAMMA, value_network=value_net)
    estimator.set_keys(steps_to_next_obs=STEPS)
    target = estimator.value_estimate(rollout)
    wanted = torch.tensor([[step[0] for step in row] for row in td_targets(rollout, value_net)])
    torch.testing.assert_close(target.squeeze(-1), wanted)


def test_td0_finds_k_at_the_root_where_nothing_is_set(rollout, value_net):
    rollout = rollout[:, :-1]  # the last step is taken by `step` alone, which a TransformedEnv does not extend
    target = TD0Estimator(gamma=GAMMA, value_network=value_net).value_estimate(rollout).squeeze(-1)
    wanted = torch.tensor([[step[0] for step in row] for row in td_targets(rollout, value_net)])
    assert (rollout["next", "truncated"] & (rollout[STEPS] < HORIZON)).any()
    torch.testing.assert_close(target, wanted)


@pytest.mark.parametrize("vectorized", [False, True])
def test_gae(rollout, value_net, vectorized):
    gae = GAE(gamma=GAMMA, lmbda=LMBDA, value_network=value_net, vectorized=vectorized)
    gae.set_keys(steps_to_next_obs=STEPS)
    gae(rollout)
    for b, row in enumerate(td_targets(rollout, value_net)):
        advantage, wanted = 0.0, []
        for target, k, value, done in reversed(row):
            advantage = target - value + (0.0 if done else GAMMA**k * LMBDA * advantage)
            wanted.append((advantage, advantage + value))
        wanted = torch.tensor(wanted[::-1])
        torch.testing.assert_close(rollout["advantage"][b, :, 0], wanted[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rollout["value_target"][b, :, 0], wanted[:, 1], rtol=1e-4, atol=1e-4)


class Point(torch.distributions.Distribution):
    """A distribution without randomness, with a log-probability that is easy to write down."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    def rsample(self, sample_shape=()):
        return self.loc

    def log_prob(self, value):
        return 0.3 * self.loc.sum((-2, -1)) - 1.0

    @property
    def mean(self):
        return self.loc

    deterministic_sample = mean


class ChunkQ(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4 + 2 * HORIZON, 1)

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action.flatten(-2)], -1))


def make_actor(cls=Point):
    net = nn.Sequential(nn.Linear(4, 2 * HORIZON), nn.Tanh(), nn.Unflatten(-1, (HORIZON, 2)))
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc"])
    return ProbabilisticActor(
        module,
        in_keys=["loc"],
        distribution_class=cls,
        return_log_prob=True,
        default_interaction_type="random",
    )


def test_sac(rollout):
    torch.manual_seed(2)
    actor, batch = make_actor(), rollout.reshape(-1)
    critics = [ValueOperator(ChunkQ(), ["observation", "action"], ["state_action_value"]) for _ in range(2)]
    loss = SACLoss(
        actor_network=actor,
        qvalue_network=critics,
        num_qvalue_nets=2,
        loss_function="l2",
        alpha_init=0.2,
        fixed_alpha=True,
        target_entropy=-8.0,
        delay_qvalue=True,
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    loss.value_estimator.set_keys(steps_to_next_obs=STEPS)
    out = loss(batch.clone())

    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(batch.numel()):
            step = batch[i]
            nxt = step["next"]
            loc = actor[0](nxt.select("observation"))["loc"]
            log_prob = 0.3 * loc.sum().item() - 1.0
            q_next = min(c.module(nxt["observation"], loc).item() for c in critics)
            bootstrap = 0.0 if nxt["terminated"].item() else q_next - 0.2 * log_prob
            target = nxt["reward"].item() + GAMMA ** nxt["steps_to_next_obs"].item() * bootstrap
            total += sum((c.module(step["observation"], step["action"]).item() - target) ** 2 for c in critics)
            count += 1
    assert out["loss_qvalue"].item() == pytest.approx(total / count, rel=1e-4)
    out["loss_actor"].backward(retain_graph=True)
    assert all(p.grad is not None for p in loss.actor_network_params.values(True, True))


def constant_policy(value=0.25, batch=(3,)):
    def act(observation):
        return torch.full((*observation.shape[:-1], HORIZON, 2), value)

    return TensorDictModule(act, in_keys=["observation"], out_keys=["action"])


@pytest.mark.parametrize("base", [None, "serial"])
def test_collector(base):
    if base == "serial":
        base = SerialEnv(3, [partial(ScriptedEnv, row) for row in range(3)])
    torch.manual_seed(0)
    collector = Collector(
        make_env(base), constant_policy(), frames_per_batch=30, total_frames=90, init_random_frames=30
    )
    batches = [batch.clone() for batch in collector]
    collector.shutdown()
    assert [batch.shape for batch in batches] == [(3, 10)] * 3  # a frame is a chunk
    assert all(batch["action"].shape == (3, 10, HORIZON, 2) for batch in batches)
    assert batches[0]["action"].unique().numel() == 3 * 10 * HORIZON * 2  # random chunks, whole ones
    assert (batches[1]["action"] == 0.25).all()
    data = torch.cat(batches, -1)
    for b in range(3):
        loop = HandLoop(b, GAMMA)
        for t in range(data.shape[1]):
            wanted = loop.chunk(data["action"][b, t].tolist())
            assert data["next", "reward"][b, t].item() == pytest.approx(wanted["reward"])
            assert data[STEPS][b, t].item() == wanted["steps_to_next_obs"]
            if wanted["done"]:
                loop.reset()


def make_worker_env():
    base = ScriptedEnv(0, (3,), honours_step=False)
    return TransformedEnv(base, Compose(*history_transforms(2), SMDPChunk(HORIZON, gamma=GAMMA)))


def act_on_history(observation):
    return torch.full((*observation.shape[:-2], HORIZON, 2), 0.25)


@pytest.mark.slow
def test_collectors_in_spawned_processes():
    policy = TensorDictModule(act_on_history, in_keys=["observation"], out_keys=["action"])
    collector = MultiCollector(
        [make_worker_env] * 2, policy, sync=True, frames_per_batch=60, total_frames=60, cat_results="stack"
    )
    try:
        (batch,) = list(collector)
    finally:
        collector.shutdown()
    assert batch.shape == (2, 3, 10)
    loop = HandLoop(0, GAMMA, 2)
    for t in range(10):
        wanted = loop.chunk(batch["action"][0, 0, t].tolist())
        assert batch["next", "reward"][:, 0, t].flatten().tolist() == pytest.approx([wanted["reward"]] * 2)
        torch.testing.assert_close(batch["next", "observation"][0, 0, t], torch.tensor(wanted["observation"]))
        if wanted["done"]:
            loop.reset()
