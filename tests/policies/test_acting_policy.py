"""From checkpoints to the policies that act, by kind, and environments for training."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import CheckpointError

from torchrl_flow.envs import make_task_env, task_info
from torchrl_flow.modules import (
    FlowActorConfig,
    NoiseNetConfig,
    SingleStepActor,
    StatePolicyConfig,
    make_flow_actor,
    make_noise_net,
    make_state_policy,
)
from torchrl_flow.policies import (
    POLICY_KINDS,
    PolicyKind,
    RunLabels,
    acting,
    checkpoint_env,
    load_acting_policy,
    policy_kind,
    run_labels,
    training_env_options,
)
from torchrl_flow.runs import load_checkpoint, save_checkpoint
from torchrl_flow.training import NonFiniteError

CONFIG = FlowActorConfig(
    action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1, num_steps=2
)
TASK = {"task": "planar", "obs_mode": "state", "control_mode": "delta_position"}


def perturbed(actor):
    for parameter in actor.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return actor


def saved(path, modules, **parts):
    return save_checkpoint(path, modules=modules, **{"task": TASK, "actor_config": CONFIG, **parts})


def test_the_averaged_flow_acts_where_there_is_an_average(tmp_path):
    actors = {role: perturbed(make_flow_actor(CONFIG)) for role in ("policy", "ema_policy")}
    path = saved(tmp_path / "a.torchrl", actors, config={"seed": 3, "label": "big"})
    policy, checkpoint = load_acting_policy(path)
    data = TensorDict(observation=torch.randn(5, 1, 12), noise=torch.randn(5, 8, 3), batch_size=[5])
    assert torch.equal(policy(data.clone())["action"], actors["ema_policy"](data.clone())["action"])
    assert not policy.training
    assert run_labels(checkpoint) == RunLabels("shortcut_flow", "big", 3)


def test_a_flow_trained_with_noise_acts_without_it(tmp_path):
    flow = perturbed(make_flow_actor(CONFIG))
    modules = {"policy": flow, "noise_net": make_noise_net(NoiseNetConfig(), flow)}
    path = saved(tmp_path / "a.torchrl", modules, metadata={"module_configs": {"noise_net": NoiseNetConfig()}})
    policy, checkpoint = load_acting_policy(path)
    data = TensorDict(observation=torch.randn(5, 1, 12), noise=torch.randn(5, 8, 3), batch_size=[5])
    assert torch.equal(policy(data.clone())["action"], flow(data.clone())["action"])
    assert policy_kind(checkpoint).name == "noisy flow"
    assert run_labels(checkpoint) == RunLabels("reinflow", "K=2", 0)


@pytest.mark.parametrize(
    ("config", "recipe"),
    [({"alpha": 2.5}, "td3_bc"), ({"alpha": 0.0}, "bc"), ({"min_q_weight": 5.0}, "cql"), ({"expectile": 0.7}, "iql")],
)
def test_policies_of_states(tmp_path, config, recipe):
    description = StatePolicyConfig(4, 2, "deterministic", (8,), True)
    own = make_state_policy(description)
    path = save_checkpoint(
        tmp_path / "a.torchrl", modules={"policy": own}, config={"data": "d.npz", **config}, task=TASK,
        metadata={"module_configs": {"state_policy": description}},
    )  # fmt: skip
    policy, checkpoint = load_acting_policy(path)
    data = TensorDict(observation=torch.randn(5, 4), batch_size=[5])
    assert torch.equal(policy(data.clone())["action"], own(data.clone())["action"])
    kind = policy_kind(checkpoint)
    assert (kind.on_logged_data, kind.samples) == (True, False)
    assert run_labels(checkpoint).recipe == recipe


def test_a_flow_of_logged_data_acts_a_step_at_a_time(tmp_path):
    config = FlowActorConfig(action_dim=2, state_dim=4, obs_horizon=1, pred_horizon=1, act_horizon=1, width=8, depth=1)
    flow = perturbed(make_flow_actor(config))
    path = saved(tmp_path / "a.torchrl", {"policy": flow}, actor_config=config, config={"data": "d.npz"})
    policy, checkpoint = load_acting_policy(path)
    assert isinstance(policy, SingleStepActor)
    assert policy(TensorDict(observation=torch.randn(5, 4), batch_size=[5]))["action"].shape == (5, 2)
    assert policy_kind(checkpoint).on_logged_data
    # The same flow of a task in which chunks of one step are executed.
    path = saved(tmp_path / "b.torchrl", {"policy": flow}, actor_config=config, config={"demos": "d.h5"})
    assert policy_kind(load_checkpoint(path)).name == "flow"


def test_what_holds_no_policy_is_refused_with_what_it_holds(tmp_path):
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"belief": torch.nn.Linear(1, 1)}, task=TASK)
    with pytest.raises(CheckpointError, match=r"a\.torchrl holds no known kind of policy .*holds belief"):
        load_acting_policy(path)


def test_a_kind_of_ones_own(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "a.torchrl", modules={"table": torch.nn.Linear(1, 1)}, task=TASK)

    def load(checkpoint):
        table = torch.nn.Linear(1, 1)
        checkpoint.restore(modules={"table": table})
        return table

    kind = PolicyKind("table", lambda checkpoint: "table" in checkpoint.roles, load, lambda checkpoint: "tabular")
    monkeypatch.setattr(acting, "POLICY_KINDS", [kind, *POLICY_KINDS])
    policy, checkpoint = load_acting_policy(path)
    assert isinstance(policy, torch.nn.Linear)
    assert run_labels(checkpoint).recipe == "tabular"


@pytest.mark.parametrize(
    ("num_envs", "sim_backend", "options"),
    [
        (None, None, {"num_envs": None, "sim_backend": "physx_cpu"}),
        (0, None, {"num_envs": None, "sim_backend": "physx_cpu"}),
        (1, "physx_cpu", {"num_envs": None, "sim_backend": "physx_cpu"}),
        (50, "physx_cpu", {"num_envs": 50, "sim_backend": "physx_cpu"}),
    ],
)
def test_environments_of_maniskill_on_the_cpu(num_envs, sim_backend, options):
    found = training_env_options("PickCube-v1", num_envs=num_envs, sim_backend=sim_backend, planar_envs=512)
    assert found == options


@pytest.mark.parametrize(
    ("task", "num_envs", "sim_backend", "message"),
    [
        ("PickCube-v1", 50, "physx_cuda:1", "--sim-backend physx_cuda:1 of PickCube-v1 needs a CUDA device"),
        ("PickCube-v1", 1, "cuda", "--sim-backend must be physx_cpu or physx_cuda .*got cuda"),
        ("planar", 50, "physx_cpu", "leave it out for the planar task"),
        ("planar", -2, None, "--num-envs must be at least 0, got -2"),
    ],
)
def test_simulations_that_cannot_be_are_refused_in_one_line(task, num_envs, sim_backend, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=message) as refusal:
        training_env_options(task, num_envs=num_envs, sim_backend=sim_backend, planar_envs=512)
    assert "\n" not in str(refusal.value)


def test_several_environments_of_maniskill_are_simulated_on_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"planar_envs": 512, "sim_backend": None}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_env_options("PickCube-v1", num_envs=50, **options) == {"num_envs": 50, "sim_backend": "physx_cpu"}
    with pytest.raises(SystemExit, match=r"num_envs=50 is not possible for 'PickCube-v1' with obs_mode='rgb'"):
        training_env_options("PickCube-v1", num_envs=50, obs_mode="rgb", **options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_env_options("PickCube-v1", num_envs=50, **options) == {"num_envs": 50, "sim_backend": "physx_cuda"}
    assert training_env_options("planar", num_envs=None, **options) == {"num_envs": 512}
    assert training_env_options("planar", num_envs=0, **options) == {"num_envs": None}


def test_an_evaluation_has_the_time_limit_of_training(tmp_path):
    task = task_info(make_task_env("planar", num_envs=2, max_episode_steps=30))
    path = saved(tmp_path / "a.torchrl", {"policy": make_flow_actor(CONFIG)}, task=task)
    checkpoint = load_checkpoint(path)
    for given, wanted in ((None, 30), (12, 12)):
        env = checkpoint_env(checkpoint, num_envs=2, max_episode_steps=given)
        assert task_info(env)["max_episode_steps"] == wanted


def test_it_refuses_to_act_on_what_is_not_finite(tmp_path):
    policy, _ = load_acting_policy(saved(tmp_path / "a.torchrl", {"policy": make_flow_actor(CONFIG)}))
    data = TensorDict(observation=torch.zeros(5, 1, 12), batch_size=[5])
    policy(data.clone())
    data["observation"][2, 0, 7] = torch.nan
    with pytest.raises(NonFiniteError, match="'observation' is not finite in row 2"):
        policy(data.clone())
