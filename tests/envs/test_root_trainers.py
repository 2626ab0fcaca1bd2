"""TorchRL's trainers discount chunks by gamma^k with nothing set that speaks of k; see also ``test_root_steps.py``."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.modules import ValueOperator
from torchrl.objectives import A2CLoss, DDPGLoss, IQLLoss, ReinforceLoss, SoftUpdate, TD3Loss
from torchrl.objectives.value import advantages
from torchrl.trainers.algorithms import A2CTrainer, DDPGTrainer, IQLTrainer, ReinforceTrainer, TD3Trainer
from torchrl.trainers.algorithms.td3 import TD3OptimizationStepper

from tests.envs.test_root_steps import GAMMA, HORIZON, ROWS, STEPS, ChunkQ, gaussian, made_env

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def deterministic():
    net = nn.Sequential(nn.Flatten(-2), nn.Linear(4, HORIZON * 2), nn.Tanh(), nn.Unflatten(-1, (HORIZON, 2)))
    return TensorDictModule(net, ["observation"], ["action"])


def critic():
    return ValueOperator(ChunkQ(), ["observation", "action"], ["state_action_value"])


def value():
    return ValueOperator(nn.Sequential(nn.Flatten(-2), nn.Linear(4, 1)), ["observation"], ["state_value"])


LOSSES = {
    DDPGTrainer: lambda: DDPGLoss(deterministic(), critic(), delay_actor=True),
    TD3Trainer: lambda: TD3Loss(deterministic(), critic(), bounds=(-1.0, 1.0)),
    IQLTrainer: lambda: IQLLoss(gaussian(), critic(), value_network=value()),
    A2CTrainer: lambda: A2CLoss(gaussian(), value(), entropy_bonus=False),
    ReinforceTrainer: lambda: ReinforceLoss(gaussian(), value()),
}
ON_POLICY = (A2CTrainer, ReinforceTrainer)


def make_trainer(kind, loss):
    frames = ROWS * 10
    policy = loss.actor_network
    sampler = {"sampler": SamplerWithoutReplacement()} if kind in ON_POLICY else {}
    options = {
        "collector": Collector(made_env(), policy, frames_per_batch=frames, total_frames=2 * frames),
        "replay_buffer": TensorDictReplayBuffer(storage=LazyTensorStorage(frames), batch_size=16, **sampler),
    }
    if kind is TD3Trainer:
        actor = torch.optim.Adam(loss.actor_network_params.flatten_keys().values(), 1e-3)
        values = torch.optim.Adam(loss.qvalue_network_params.flatten_keys().values(), 1e-3)
        options["optimization_stepper"] = TD3OptimizationStepper(actor, values)
    else:
        options["optimizer"] = torch.optim.Adam(loss.parameters(), 1e-3)
    if kind in ON_POLICY:
        options |= {"gamma": GAMMA, "num_epochs": 1}
    else:
        options["target_net_updater"] = SoftUpdate(loss, tau=0.01)
    return kind(
        total_frames=2 * frames,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        enable_logging=False,
        progress_bar=False,
        save_trainer_file=None,
        **options,
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_a_trainer_reads_the_executed_steps(kind, monkeypatch):
    torch.manual_seed(0)
    loss = LOSSES[kind]()
    if kind not in ON_POLICY:
        loss.make_value_estimator(gamma=GAMMA)
    trainer, seen = make_trainer(kind, loss), []
    if kind in ON_POLICY:
        estimator = trainer._modules["value_estimator"].value_estimator
        estimator.register_forward_pre_hook(
            lambda module, args: seen.append((args[0][module.tensor_keys.steps_to_next_obs], args[0][STEPS]))
        )
    else:
        estimator, discounts = loss.value_estimator, []
        value_estimate, td0 = estimator.value_estimate, advantages.td0_return_estimate

        def recorded(data, *args, **kwargs):
            result = value_estimate(data, *args, **kwargs)
            seen.append(((discounts.pop().log() / math.log(GAMMA)).round(), data[STEPS]))
            return result

        def recorded_td0(gamma, **kwargs):
            discounts.append(gamma)
            return td0(gamma=gamma, **kwargs)

        monkeypatch.setattr(estimator, "value_estimate", recorded)
        monkeypatch.setattr(advantages, "td0_return_estimate", recorded_td0)
    trainer.train()
    assert len(seen) >= 2
    assert all((read == executed).all() for read, executed in seen)
    assert {1, 2, 3, 4} == set(torch.cat([executed.flatten() for _, executed in seen]).tolist())
