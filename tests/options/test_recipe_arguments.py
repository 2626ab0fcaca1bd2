"""What the shared options make of a recipe's run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.options import (
    AdvantageWeightArgs,
    ChainPPOArgs,
    CompileArgs,
    LatentCriticArgs,
    OnlineArgs,
    SweepArgs,
    TrainingArgs,
)


@dataclasses.dataclass(kw_only=True)
class Args(TrainingArgs):
    width: int = 3


def test_a_run_is_opened_under_the_name_of_its_script_with_the_options_as_its_configuration(tmp_path):
    args = Args(runs=str(tmp_path), seed=4)
    with args.open_run("mine", task={"task": "planar"}, config={"demonstrations": {"num_demos": 2}}) as run:
        assert run.directory == tmp_path / "mine"
        assert run.config == {**dataclasses.asdict(args), "demonstrations": {"num_demos": 2}}
        assert run.task == {"task": "planar"}
    (start,) = json.loads((tmp_path / "mine" / "provenance.json").read_text(encoding="utf-8"))
    assert start["recipe"] == Path(__file__).stem
    named = Args(runs=str(tmp_path), name="other")
    with named.open_run("mine", task={}) as run:
        assert run.directory.name == "other"


def test_environment_options_are_those_of_make_training_envs():
    args = OnlineArgs(num_envs=5, collectors=2, after_success="continue", gamma=0.5, max_episode_steps=7)
    assert args.env_options() == {
        "num_envs": 5,
        "sim_backend": None,
        "collectors": 2,
        "ray_workers": None,
        "ray_address": None,
        "collector_sync": True,
        "max_episode_steps": 7,
        "after_success": "continue",
        "gamma": 0.5,
        "episodes": 100,
    }


def test_options_of_the_loss_of_a_chain_have_its_names():
    args = ChainPPOArgs(clip=0.1, entropy_coef=0.2, value_coef=0.3, anchor_coef=0.4, target_kl=0.5, mean_bound=2.0)
    assert args.loss_options() == {
        "clip_epsilon": 0.1,
        "entropy_coeff": 0.2,
        "critic_coeff": 0.3,
        "anchor_coeff": 0.4,
        "target_kl": 0.5,
        "warmup_steps": 20_000,
        "noise_schedule": "linear",
        "noise_decay_steps": 6_000_000,
    }
    assert args.chain_options() == {"log_prob_reduction": "mean", "mean_bound": 2.0, "train_encoder": False}


def test_options_of_latent_losses_have_their_names():
    args = LatentCriticArgs(distillation="both", gamma=0.5, tau=0.1, alpha=0.2, target_entropy=None)
    expected = {"mode": "both", "gamma": 0.5, "tau": 0.1, "alpha_init": 0.2, "target_entropy": "auto"}
    pairs = {"num_latents": 8, "within_state_weight": 30.0}
    assert args.sac_options() == {**expected, **pairs}
    assert args.distillation_rows(torch.arange(256)).tolist() == [*range(32)]
    assert args.distillation_rows(torch.arange(4)).tolist() == [0]
    args.target_entropy, args.distill_latents = -1.5, 1
    assert args.sac_options() == {**expected, "target_entropy": -1.5}
    args.distillation, args.distill_latents = "aliased", 8
    assert args.sac_options() == {**expected, "mode": "aliased", "target_entropy": -1.5}
    assert len(args.distillation_rows(torch.arange(256))) == 256


def test_options_of_the_advantage_weighted_update():
    args = AdvantageWeightArgs(policy="runs/a", lr=0.1, critic_lr=0.2, tau=0.3, ema=0.4, act_horizon=4)
    assert args.stepper_options() == {"lr": 0.1, "critic_lr": 0.2, "tau": 0.3, "ema": 0.4}
    assert args.wanted_horizons() == {"obs_horizon": None, "pred_horizon": None, "act_horizon": 4}


def test_sweep_options_are_those_of_run_sweep():
    args = SweepArgs(directory="runs/sweep", workers=3, threads=2, device="cuda", address="ray")
    assert args.sweep_options() == {
        "workers": 3,
        "cpus_per_run": 2,
        "gpus_per_run": None,
        "device": "cuda",
        "address": "ray",
    }


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"device": "cuda"}])
def test_cuda_graphs_need_compilation_and_a_gpu(options):
    with pytest.raises(SystemExit, match="--cuda-graphs needs --compile and a GPU: give --compile --device cuda"):
        CompileArgs(cuda_graphs=True, **options).check()
    CompileArgs(cuda_graphs=True, compile=True, device="cuda:1").check()


def test_cuda_graphs_are_refused_where_the_automatic_device_is_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = CompileArgs(cuda_graphs=True, compile=True, device="auto")
    args.check()
    with pytest.raises(SystemExit, match="--cuda-graphs needs --compile and a GPU"):
        args.prepare()


def test_results_of_a_cuda_graph_are_copied_before_the_next_replay(monkeypatch):
    memory = torch.zeros(3)

    def replay(value):  # writes its results to the same memory at every call
        memory.fill_(value)
        return memory, {"loss": memory}, TensorDict(loss=memory)

    given = []
    monkeypatch.setattr(torch, "compile", lambda function, options: given.append(options) or function)
    compute = CompileArgs(cuda_graphs=True, compile=True, device="cuda").compiled(replay)
    first = compute(1.0)
    compute(2.0)
    assert all(torch.equal(value, torch.ones(3)) for value in (first[0], first[1]["loss"], first[2]["loss"]))
    assert given == [{"fallback_random": True, "triton.cudagraphs": True}]


def test_asynchronous_collection_is_refused_where_it_has_no_sense():
    OnlineArgs(collectors=2, collector_sync=False).check()
    OnlineArgs(ray_workers=1, collector_sync=False).check()
    with pytest.raises(SystemExit, match="no effect in one process: give --collectors 2 or more"):
        OnlineArgs(collector_sync=False).check()
    with pytest.raises(SystemExit, match=r"off-policy recipes: .* chunks drawn by the current policy"):
        ChainPPOArgs(collectors=2, collector_sync=False).check()


def test_a_loss_and_its_methods_are_compiled_at_their_first_call(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, options: compiled.append(function) or function)

    class Loss:
        def __call__(self, batch):
            return "loss", batch

        def qvalue_loss(self, batch):
            return "critic", batch

    loss = Loss()
    assert TrainingArgs().compute(loss) is None
    compute = TrainingArgs(compile=True).compute(loss)
    assert not compiled
    assert [compute(1), compute(2, "qvalue_loss"), compute(3, "qvalue_loss")] == [
        ("loss", 1),
        ("critic", 2),
        ("critic", 3),
    ]
    assert compiled == [loss, loss.qvalue_loss]
