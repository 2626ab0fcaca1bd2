"""Losses of this package in TorchRL's own trainers."""

from __future__ import annotations

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate
from torchrl.trainers import ReplayBufferTrainer, Trainer, UpdateWeights
from torchrl.trainers.algorithms import SACTrainer

from torchrl_flow.envs import PLANAR, PlanarPickPlaceEnv, make_chunk_env, task_info
from torchrl_flow.modules import (
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    SteeredFlowActor,
    make_flow_actor,
    make_latent_critics,
    make_latent_policy,
)
from torchrl_flow.objectives import LatentSACLoss
from torchrl_flow.policies import load_acting_policy, load_policy
from torchrl_flow.runs import save_checkpoint
from torchrl_flow.training import LossGroup, NamedLossStepper, NonFiniteError, SteeredCollector, with_finite_steps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
HORIZONS = {"obs_horizon": 2, "pred_horizon": 8, "act_horizon": 4}


def make_flow():
    torch.manual_seed(0)
    config = FlowActorConfig(action_dim=3, state_dim=12, width=16, depth=1, num_steps=2, **HORIZONS)
    return make_flow_actor(config, action_low=-torch.ones(3), action_high=torch.ones(3))


def make_env(num_envs=4):
    base = PlanarPickPlaceEnv(num_envs, max_episode_steps=20)
    return make_chunk_env(base, obs_horizon=2, act_horizon=4, gamma=0.99)


@pytest.fixture
def flow_checkpoint(tmp_path):
    # Elsewhere than below the current directory, demonstrations are made where their directory exists alone.
    (tmp_path / "demos").mkdir()
    flow, path = make_flow(), tmp_path / "bc" / "checkpoints" / "checkpoint-1.torchrl"
    path.parent.mkdir(parents=True)
    task = {**task_info(make_env()), "task": PLANAR}
    config = {"demonstrations": {"num_demos": 3, "folder": str(tmp_path / "demos")}}
    save_checkpoint(
        path, modules={"policy": flow}, task=task, actor_config=flow.config, counters={"step": 1}, config=config
    )
    return flow, path


def run_example(algorithm, path, output, **options):
    example = runpy.run_path(str(ROOT / "examples" / "trainer.py"))
    numbers = {
        "num_envs": 6,
        "rollout_steps": 4,
        "minibatch_size": 12,
        "eval_episodes": 3,
        "total_env_steps": 6 * 4 * 4 * 3,
    }
    args = example["Args"](policy=str(path), algorithm=algorithm, output=str(output), **{**numbers, **options})
    return example["main"](args)


LOGGED = {
    "reinflow": {"loss_objective", "loss_critic", "divergence"},
    "dsrl_ppo": {"loss_objective", "loss_critic"},
    "dsrl_sac": {"loss_qvalue", "loss_actor", "loss_alpha"},
    "awsc": {"loss_qvalue", "loss_actor", "policy_share"},
}


@pytest.mark.parametrize("algorithm", LOGGED)
def test_each_algorithm_in_a_trainer_of_torchrl(algorithm, flow_checkpoint, tmp_path, capsys):
    flow, path = flow_checkpoint
    result = run_example(algorithm, path, tmp_path / "out", eval_every=2)
    assert "before: 3 episodes" in capsys.readouterr().out
    assert result.episodes == 3
    trained, checkpoint = load_acting_policy(tmp_path / "out" / "policy.torchrl")
    changed = not all(torch.equal(a, b) for a, b in zip(flow.parameters(), load_policy(checkpoint)[0].parameters()))
    assert changed is not algorithm.startswith("dsrl")  # a flow that is steered stays as it is
    assert isinstance(trained, SteeredFlowActor) is algorithm.startswith("dsrl")
    if algorithm.startswith("dsrl"):
        assert any(parameter.abs().sum() > 0 for parameter in trained.policy.module[0].head.parameters())
    assert checkpoint.counters["step"] == 6 * 4 * 3  # chunks
    # Episodes of 20 steps are chunks of 4 steps each, but for those that a success ends.
    assert 6 * 4 * 3 <= checkpoint.counters["env_steps"] <= 6 * 4 * 4 * 3
    files = {file.stem: file for file in (tmp_path / "out").rglob("*.csv")}
    assert LOGGED[algorithm] | {"env_steps", "success"} <= set(files)
    evaluations = files["success_once"].read_text().strip().splitlines()
    assert len(evaluations) == 1  # after the second rollout of three


@pytest.mark.parametrize("algorithm", LOGGED)
def test_a_gradient_that_is_not_finite_changes_no_weight(algorithm, flow_checkpoint, tmp_path, monkeypatch):
    train, seen = Trainer.train, {}

    def spoiled(self):
        weights = [parameter for parameter in self.loss_module.parameters() if parameter.requires_grad]
        seen.update(weights=weights, calls=0, kept=None)

        def to_nan(gradient):
            seen["calls"] += 1
            if seen["calls"] < 3:
                return gradient
            seen["kept"] = [weight.detach().clone() for weight in weights]
            return gradient * torch.nan

        weights[0].register_hook(to_nan)
        train(self)

    monkeypatch.setattr(Trainer, "train", spoiled)
    with pytest.raises(NonFiniteError, match=r"Update \d+: the gradient of \w+ has norm nan\. The batch is finite"):
        run_example(algorithm, flow_checkpoint[1], tmp_path / "out")
    assert seen["calls"] == 3
    assert all(torch.equal(a, b) for a, b in zip(seen["weights"], seen["kept"], strict=True))
    assert all(weight.isfinite().all() for weight in seen["weights"])
    assert not (tmp_path / "out" / "policy.torchrl").exists()


@pytest.mark.parametrize(("quantity", "value"), [("observation", 1e30), ("reward", torch.nan)])
@pytest.mark.parametrize("algorithm", [name if name != "awsc" else pytest.param(name, marks=SLOW) for name in LOGGED])
def test_a_number_of_the_env_that_is_not_finite_is_named(
    algorithm, quantity, value, flow_checkpoint, tmp_path, monkeypatch
):
    step, count = PlanarPickPlaceEnv._step, [0]

    def broken(self, tensordict):
        out = step(self, tensordict)
        count[0] += self.batch_size.numel() == 6  # the evaluations have another number of environments
        if count[0] == 24 and self.batch_size.numel() == 6:
            out[quantity] = out[quantity].index_fill(0, torch.tensor([2]), value)
        return out

    # The 24th step is the last one of the second chunk of the second rollout of four.
    message = rf"Rollout 2: .*'next\.{quantity}' \(row 2: (nan|1\.0\d*e\+30)\).* where the row is the sub-environment"
    monkeypatch.setattr(PlanarPickPlaceEnv, "_step", broken)
    with pytest.raises(NonFiniteError, match=message):
        run_example(algorithm, flow_checkpoint[1], tmp_path / "out")
    assert not (tmp_path / "out" / "policy.torchrl").exists()


@pytest.mark.parametrize("algorithm", ["reinflow", "dsrl_sac"])
def test_a_policy_that_is_not_finite_is_neither_evaluated_nor_saved(algorithm, flow_checkpoint, tmp_path, monkeypatch):
    train = Trainer.train

    def spoiled(self):
        train(self)
        next(iter(self.loss_module.actor_network_params.parameters())).data.fill_(torch.nan)

    monkeypatch.setattr(Trainer, "train", spoiled)
    with pytest.raises(NonFiniteError, match="so the policy is neither evaluated nor saved"):
        run_example(algorithm, flow_checkpoint[1], tmp_path / "out")
    assert not (tmp_path / "out" / "policy.torchrl").exists()


def make_steered():
    flow = make_flow()
    policy = make_latent_policy(LatentPolicyConfig(), flow)
    critics = make_latent_critics(CriticConfig(num_qs=2, hidden_sizes=(16,)), flow, policy)
    return SteeredFlowActor(policy, flow), LatentSACLoss(policy, critics)


def parameters(module):
    return [p.detach().clone() for p in module.policy.parameters()]


def test_a_steered_flow_in_a_trainer_with_hooks():
    """The collector acts with a copy of the policy, which gets the weights by TorchRL's own hook."""
    steered, loss_module = make_steered()
    acting = SteeredFlowActor(*(make_steered()[0]._modules[name] for name in ("policy", "flow")))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(400), batch_size=16)
    groups = [
        LossGroup("loss_qvalue", torch.optim.Adam(loss_module.qvalue_network_params.parameters(), 1e-3)),
        LossGroup("loss_actor", torch.optim.Adam(loss_module.actor_network_params.parameters(), 1e-2)),
    ]
    collector = Collector(make_env(), acting, frames_per_batch=20, total_frames=60)
    stepper = NamedLossStepper(loss_module, groups, target_updater=SoftUpdate(loss_module, tau=0.01), utd_ratio=0.2)
    trainer = Trainer(
        collector=collector,
        total_frames=60,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss_module,
        optimization_stepper=stepper,
        replay_buffer=buffer,
        progress_bar=False,
    )
    trainer.register_op("batch_process", lambda data: data.reshape(-1))
    ReplayBufferTrainer(buffer).register(trainer)
    UpdateWeights(collector, 1, policy_weights_getter=partial(TensorDict.from_module, steered)).register(trainer)
    before = parameters(acting)
    trainer.train()
    assert stepper.num_updates == 12
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters(acting), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(parameters(steered), parameters(acting), strict=True))


@pytest.mark.parametrize("cls", [Collector, SteeredCollector])
def test_the_sac_trainer_sends_the_weights_of_a_part_of_what_acts(cls):
    """They are those of the loss's own policy."""
    steered, loss_module = make_steered()
    acting = SteeredFlowActor(*(make_steered()[0]._modules[name] for name in ("policy", "flow")))

    def trainer(collector):
        return SACTrainer(
            collector=collector,
            total_frames=20,
            frame_skip=1,
            optim_steps_per_batch=1,
            loss_module=loss_module,
            optimizer=torch.optim.Adam(loss_module.parameters(), 1e-2),
            replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(400), batch_size=16),
            target_net_updater=SoftUpdate(loss_module, tau=0.01),
            enable_logging=False,
            progress_bar=False,
            action_key="latent",
        )

    trainer(cls(make_env(), acting, frames_per_batch=20, total_frames=20)).train()
    assert loss_module.tensor_keys.action == "latent"
    assert any(p.abs().sum() > 0 for p in acting.policy.module[0].head.parameters())
    assert all(torch.equal(a, b) for a, b in zip(parameters(steered), parameters(acting), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must have an optimizer and no optimization_stepper, got optimizer=NoneType"),
        ({"optimizer": True, "clip_norm": 1.0, "clip_grad_norm": False}, "clip_grad_norm must be True, got False"),
    ],
)
def test_trainers_that_cannot_be_checked_are_refused(options, message):
    steered, loss_module = make_steered()
    if "optimizer" in options:
        options = {**options, "optimizer": torch.optim.Adam(loss_module.parameters(), 1e-2)}
    trainer = Trainer(
        collector=SteeredCollector(make_env(), steered, frames_per_batch=20, total_frames=20),
        total_frames=20,
        frame_skip=1,
        optim_steps_per_batch=1,
        loss_module=loss_module,
        progress_bar=False,
        **options,
    )
    with pytest.raises(ValueError, match=message):
        with_finite_steps(trainer)
