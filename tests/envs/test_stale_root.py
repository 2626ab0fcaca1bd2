"""TorchRL's losses and GAE, with nothing set that names k, where the root entry of k is wrong: targets by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv, SerialEnv
from torchrl.envs.utils import step_mdp
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import GAE

from tests.envs.test_root_steps import GAMMA, HORIZON, ROOT, ROWS, STEPS, plain_env
from tests.objectives.test_chunk_estimator import OFF_POLICY, ON_POLICY, target_of, value


def from_workers(batched):
    env = batched(ROWS, [partial(plain_env, row) for row in range(ROWS)])
    (batch,) = list(Collector(env, frames_per_batch=ROWS * 8, total_frames=ROWS * 8))
    return batch.clone()


def from_step():
    env, steps = plain_env(), []
    carry = env.reset()
    for _ in range(8):
        steps.append(env.step(env.rand_action(carry)))
        carry = env.maybe_reset(step_mdp(steps[-1]))
    return torch.stack(steps, -1)


def from_last_steps():
    lasts = [plain_env().rollout(n, break_when_any_done=False)[:, -1] for n in range(1, 8)]
    return torch.stack(lasts, -1)


SOURCES = {
    "workers of SerialEnv": partial(from_workers, SerialEnv),
    "workers of ParallelEnv": partial(from_workers, ParallelEnv),
    "step": from_step,
    "last steps of rollouts": from_last_steps,
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if "Parallel" in name else name for name in SOURCES],
)
def collected(request):
    torch.manual_seed(0)
    return SOURCES[request.param]()


@pytest.fixture
def data(collected):
    """Transitions ``[rows, time]``; the value of an observation is its first entry, 0 before the chunk."""
    data = collected.clone()
    assert (data[ROOT] != data[STEPS]).any()
    assert {1, 2, 3, 4} <= set(data[STEPS].unique().tolist())
    for place in (data, data["next"]):
        place["observation"] = place["observation"][..., :2].clone()
    data["observation"][..., 0] = 0.0
    return data


def targets(data):
    """R + gamma^k V of each row of ``[B]``."""
    rows = []
    for row in data["next"].unbind(0):
        bootstrap = 0.0 if row["terminated"].item() else row["observation"][0].item()
        rows.append(row["reward"].item() + GAMMA ** row["steps_to_next_obs"].item() * bootstrap)
    return rows


@pytest.mark.parametrize("name", OFF_POLICY)
def test_targets(name, data):
    loss = OFF_POLICY[name](HORIZON)
    loss.make_value_estimator(gamma=GAMMA)
    flat = data.reshape(-1)
    found = [target_of(loss, row.clone()) for row in flat.split(1)]
    assert found == pytest.approx(targets(flat), rel=1e-5)


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("kind", [ValueEstimators.TD0, ValueEstimators.GAE])
def test_value_targets_of_losses_on_policy(kind, name, data):
    loss = ON_POLICY[name](HORIZON)
    loss.make_value_estimator(kind, gamma=GAMMA)
    found = data.reshape(-1, 1)  # each transition is a trajectory
    loss.value_estimator(found, params=loss.critic_network_params, target_params=loss.target_critic_network_params)
    assert found["value_target"].flatten().tolist() == pytest.approx(targets(data.reshape(-1)), rel=1e-5)


@pytest.mark.parametrize("vectorized", [False, True])
def test_gae(vectorized, data):
    GAE(gamma=GAMMA, lmbda=0.7, value_network=value(), vectorized=vectorized)(data)
    for row in data.unbind(0):
        advantage, wanted = 0.0, []
        for step, target in zip(reversed(row.unbind(0)), reversed(targets(row)), strict=True):
            later = 0.0 if step["next", "done"].item() else advantage
            advantage = target + GAMMA ** step[STEPS].item() * 0.7 * later
            wanted.append(advantage)
        torch.testing.assert_close(row["advantage"].flatten(), torch.tensor(wanted[::-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["SACLoss", "TQCLoss"])
def test_a_loss_leaves_the_batch_as_it_was(name, data):
    loss = OFF_POLICY[name](HORIZON)
    loss.make_value_estimator(gamma=GAMMA)
    flat: TensorDict = data.reshape(-1)
    before = flat.clone()
    target_of(loss, flat[:1])
    assert set(flat.keys(True, True)) == set(before.keys(True, True))
    assert (flat[ROOT] == before[ROOT]).all()
    assert loss.value_estimator.tensor_keys.steps_to_next_obs == ROOT
