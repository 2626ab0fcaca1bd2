from __future__ import annotations

import pytest
import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.data import require_demonstrations_of
from torchrl_flow.envs import make_chunk_env, make_task_env, task_info
from torchrl_flow.evaluation import evaluate
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.policies import checkpoint_env, load_policy
from torchrl_flow.runs import load_checkpoint, save_checkpoint


def saved(path, *, task=None, roles=("policy", "ema_policy")):
    env = make_task_env("planar", num_envs=2)
    config = FlowActorConfig(
        action_dim=3, state_dim=12, obs_horizon=1, pred_horizon=8, act_horizon=4, width=16, depth=1
    )
    actors = {}
    for number, role in enumerate(roles):
        torch.manual_seed(number)
        actors[role] = make_flow_actor(config)
        for parameter in actors[role].parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(path, modules=actors, task=task or task_info(env), actor_config=config.to_dict())
    return actors


def test_the_averaged_policy_is_taken_where_there_is_one(tmp_path):
    actors = saved(tmp_path / "a.torchrl")
    policy, checkpoint = load_policy(tmp_path / "a.torchrl")
    for name, value in actors["ema_policy"].state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)
    raw, _ = load_policy(checkpoint, role="policy")
    assert torch.equal(raw.state_dict()["velocity_network.linear_in.weight"],
                       actors["policy"].state_dict()["velocity_network.linear_in.weight"])  # fmt: skip
    saved(tmp_path / "b.torchrl", roles=("policy",))
    assert load_policy(tmp_path / "b.torchrl")[1].roles == ("policy",)


def test_a_checkpoint_tells_its_environment_and_results_do_not_depend_on_the_batch(tmp_path):
    saved(tmp_path / "a.torchrl")
    policy, checkpoint = load_policy(tmp_path / "a.torchrl")
    outcomes = []
    for num_envs in (None, 2, 5):
        env = checkpoint_env(checkpoint, num_envs=num_envs, max_episode_steps=12)
        result = evaluate(env, policy, [3, 4, 5, 6], progress=False)
        trace = env.rollout(2)["next", "steps_to_next_obs"]
        assert trace.max() == 4
        outcomes.append((result.returns, result.lengths))
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcomes[1]))
    assert all(torch.equal(a, b) for a, b in zip(outcomes[0], outcomes[2]))


def test_another_geometry_is_another_task(tmp_path):
    task = task_info(make_task_env("planar"))
    saved(tmp_path / "a.torchrl", task={**task, "control_mode": "torque"})
    with pytest.raises(CheckpointError, match=r"control_mode.*'torque'.*'delta_position'"):
        checkpoint_env(load_checkpoint(tmp_path / "a.torchrl"))
    saved(tmp_path / "b.torchrl", task={"x": 1})
    with pytest.raises(CheckpointError, match="names no task"):
        checkpoint_env(load_checkpoint(tmp_path / "b.torchrl"))


def test_a_checkpoint_without_a_policy_says_so(tmp_path):
    save_checkpoint(tmp_path / "a.torchrl", modules={"critic": torch.nn.Linear(1, 1)})
    with pytest.raises(CheckpointError, match="actor_config"):
        load_policy(tmp_path / "a.torchrl")


def test_demonstrations_of_another_task_are_refused_with_both_values():
    task = {"task": "PickCube-v1", "control_mode": "pd_ee_delta_pose", "obs_mode": "state"}
    require_demonstrations_of(task, {**task, "max_episode_steps": 7}, "x.h5")
    require_demonstrations_of(task, dict.fromkeys(task), "x.h5")
    with pytest.raises(ValueError, match=r"x\.h5.*'PushCube-v1'.*'PickCube-v1'"):
        require_demonstrations_of(task, {**task, "task": "PushCube-v1"}, "x.h5")


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="'depth'"):
        make_task_env("planar", obs_mode="depth")
    with pytest.raises(ValueError, match="planar"):
        make_task_env("planar", obs_mode="rgb")


def test_the_task_is_found_below_transforms():
    base = make_task_env("planar")
    env = make_chunk_env(base, obs_horizon=1, act_horizon=2, gamma=0.9)
    assert task_info(env) == task_info(base)
    assert task_info(env)["task"] == "planar"
