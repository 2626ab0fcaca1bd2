"""What defines the demonstrations is compared with the environment before anything is learnt."""

from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pytest
import torch
from torchrl.checkpoint import CheckpointError

from torchrl_flow.data import (
    DataError,
    DataWarning,
    DemoStore,
    load_demonstrations,
    padding_of,
    require_demonstrations_of,
)
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import action_bounds, make_task_chunk_env, make_task_env, task_info
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.policies import checkpoint_env, policy_demonstrations
from torchrl_flow.runs import load_checkpoint, save_checkpoint

CHUNKS = {"pred_horizon": 4, "act_horizon": 2}
PLANAR = {"task": "planar", "control_mode": "delta_position", "obs_mode": "state", "max_episode_steps": 100}


def episode(seed=0, *, state_dim=12, action_dim=3, pixels=None, steps=6, **changes):
    generator = torch.Generator().manual_seed(seed)
    data = {
        "observation": torch.randn(steps + 1, state_dim, generator=generator),
        "action": torch.rand(steps, action_dim, generator=generator),
        "success": torch.arange(steps) == steps - 1,
        "seed": seed,
    }
    if pixels is not None:
        data["pixels"] = torch.zeros(steps + 1, 3, *pixels, dtype=torch.uint8)
    return {**data, **changes}


def source(root, episodes, *, num_demos=None, **info):
    DemoStore.from_episodes(episodes, root, task_info={**PLANAR, **info})
    return DemoSource(path=str(root), num_demos=num_demos)


def test_the_sizes_are_part_of_the_identity():
    assert task_info(make_task_env("planar", num_envs=2)) | PLANAR == {
        **task_info(make_task_env("planar")),
        **{"state_dim": 12, "pixels_size": None, "action_dim": 3, "reward_mode": "sparse"},
    }
    env = make_task_chunk_env("planar", obs_mode="rgb+state", obs_horizon=2, act_horizon=4, gamma=0.9)
    assert task_info(env)["pixels_size"] == [64, 64]
    low, high = action_bounds(env)
    assert low is not None
    assert high is not None
    assert (low.tolist(), high.tolist()) == ([-1.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({"state_dim": 40}, "state", "state_dim: demonstrations 40, here 12"),
        ({"action_dim": 7}, "state", "action_dim: demonstrations 7, here 3"),
        ({"pixels": (32, 32)}, "rgb+state", r"pixels_size: demonstrations \[32, 32\], here \[64, 64\]"),
        ({}, "rgb+state", r"pixels_size: demonstrations None, here \[64, 64\]"),
        ({"pixels": (64, 64)}, "state", r"pixels_size: demonstrations \[64, 64\], here None"),
    ],
)
def test_other_sizes_are_refused_naming_both(tmp_path, changes, mode, message):
    task = task_info(make_task_env("planar", obs_mode=mode))
    demos = source(tmp_path / "store", [episode(**changes)], obs_mode=None)
    with pytest.raises(DataError, match=message):
        demos.load(task, **CHUNKS)


def rewarded(root, mode, task_mode="sparse", **changes):
    rewards = torch.full((6,), 0.7)
    demos = source(root, [episode(reward=rewards, **changes)], reward_mode=mode)
    return lambda **options: demos.load({**PLANAR, "reward_mode": task_mode}, **CHUNKS, gamma=1.0, **options)


@pytest.mark.parametrize("mode", ["normalized_dense", "dense", None])
def test_rewards_of_another_mode_are_replaced_where_the_environment_is_sparse(tmp_path, mode):
    load = rewarded(tmp_path / "store", mode)
    with pytest.warns(DataWarning, match=f"mode {mode!r}.*'sparse'.*in place of the recorded rewards"):
        data = load()
    assert data[:]["next", "reward"].flatten().tolist() == [0, 0, 0, 0, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(uses_rewards=False)[[0]]["next", "reward"].item() == pytest.approx(1.4)


def test_failures_count_in_the_rewards_that_are_made(tmp_path):
    load = rewarded(tmp_path / "store", "dense", success=torch.zeros(6), fail=torch.arange(6) == 5)
    with pytest.warns(DataWarning, match="success less failure"):
        assert load()[:]["next", "reward"].flatten().tolist() == [0, 0, 0, 0, -1, -1]


def test_rewards_that_cannot_be_made_are_refused_naming_both_modes(tmp_path):
    with pytest.raises(DataError, match=r"'dense'.*'normalized_dense'"):
        rewarded(tmp_path / "a", "dense", "normalized_dense")()
    with pytest.warns(DataWarning, match="does not record the mode"):
        rewarded(tmp_path / "b", None, "dense")()
    DemoStore.from_episodes([episode(reward=torch.ones(6), success=torch.zeros(6))], tmp_path / "c",
                            task_info={**PLANAR, "reward_mode": "dense"}, metadata={"has_success": False})  # fmt: skip
    with pytest.raises(DataError, match=r"'dense'.*'sparse'"):
        DemoSource(path=str(tmp_path / "c"), num_demos=1).load({**PLANAR, "reward_mode": "sparse"}, **CHUNKS)


@pytest.mark.parametrize("mode", ["sparse", None])
def test_sparse_rewards_are_taken_as_they_are(tmp_path, mode):
    demos = source(tmp_path / "store", [episode()], reward_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demos.load(task_info(make_task_env("planar")), **CHUNKS)


def test_the_library_s_comparison_names_reward_modes_too():
    task = {**PLANAR, "reward_mode": "sparse"}
    require_demonstrations_of(PLANAR, {**task}, "x")
    with pytest.raises(DataError, match="reward_mode: demonstrations 'dense', here 'sparse'"):
        require_demonstrations_of(task, {**task, "reward_mode": "dense"}, "x")


def test_the_first_demonstrations_of_a_store_are_used(tmp_path):
    demos = source(tmp_path / "store", [episode(seed, steps=3 + seed) for seed in range(4)], num_demos=2)
    data = demos.load(PLANAR, **CHUNKS)
    alone = DemoStore.from_episodes([episode(seed, steps=3 + seed) for seed in range(2)], tmp_path / "alone")
    assert (data.store.num_episodes, len(data)) == (2, 7)
    for key, values in alone.statistics().items():
        for name, value in values.items():
            assert torch.equal(data.statistics()[key][name], value)
    limited = load_demonstrations(tmp_path / "store", max_episodes=2, **CHUNKS)
    assert (limited[:] == data[:]).all()
    assert torch.equal(
        limited[:]["next", "observation"], load_demonstrations(alone.root, **CHUNKS)[:]["next", "observation"]
    )
    assert load_demonstrations(tmp_path / "store", **CHUNKS).store.num_episodes == 4
    with pytest.warns(DataWarning, match="9 demonstrations were asked for and there are 4"):
        assert load_demonstrations(tmp_path / "store", max_episodes=9, **CHUNKS).store.num_episodes == 4
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load_demonstrations(tmp_path / "store", max_episodes=0, **CHUNKS)


def test_the_control_mode_of_demonstrations_is_known_before_they_are_read(tmp_path):
    assert source(tmp_path / "store", [episode()]).control_mode == "delta_position"
    assert DemoSource().control_mode is None
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file["traj_0/actions"], file["traj_0/obs"] = np.zeros((3, 8), "f4"), np.zeros((4, 2), "f4")
        file["traj_0/success"] = np.ones(3, bool)
    info = {"env_id": "PickCube-v1", "env_kwargs": {"control_mode": "pd_joint_pos"}}
    path.with_suffix(".json").write_text(
        json.dumps({"env_info": info, "episodes": [{"episode_id": 0}]}), encoding="utf-8"
    )
    assert DemoSource(path=str(path)).control_mode == "pd_joint_pos"


def test_absolute_positions_are_not_padded_with_zeros(tmp_path):
    modes = ["pd_joint_pos", "pd_ee_pose", "pd_joint_pos_vel", "pd_joint_delta_pos", "pd_joint_vel", None]
    assert [padding_of(mode) for mode in modes] == ["last"] * 3 + ["hold"] * 3
    last = episode()["action"][-1]
    for mode, expected in (
        ("pd_joint_pos", last),
        ("pd_joint_delta_pos", torch.stack([last[0] * 0, last[1] * 0, last[2]])),
    ):
        demos = source(tmp_path / mode, [episode()], control_mode=mode)
        chunk = demos.load({**PLANAR, "control_mode": mode}, padding="hold", **CHUNKS)[[5]]["action_chunk"][0]
        torch.testing.assert_close(chunk, torch.stack([last, expected, expected, expected]))


def checkpoint(path, task, **config):
    sizes = {"action_dim": 3, "state_dim": 12, **config}
    actor = make_flow_actor(FlowActorConfig(**sizes, obs_horizon=1, **CHUNKS, width=16, depth=1))
    save_checkpoint(path, modules={"policy": actor}, task=task, actor_config=actor.config)
    return load_checkpoint(path)


def test_checkpoints_without_sizes_load_and_still_refuse_other_demonstrations(tmp_path):
    old = {name: value for name, value in task_info(make_task_env("planar")).items() if "dim" not in name}
    del old["pixels_size"], old["reward_mode"]
    found = checkpoint(tmp_path / "a.torchrl", old)
    assert task_info(checkpoint_env(found, num_envs=1))["state_dim"] == 12
    with pytest.raises(DataError, match="state_dim: demonstrations 40, here 12"):
        policy_demonstrations(found, source(tmp_path / "store", [episode(state_dim=40)]), gamma=0.9)


def test_a_policy_of_other_sizes_than_the_environment_is_refused(tmp_path):
    task = {name: value for name, value in task_info(make_task_env("planar")).items() if "dim" not in name}
    with pytest.raises(CheckpointError, match="state_dim: checkpoint 40, here 12"):
        checkpoint_env(checkpoint(tmp_path / "a.torchrl", task, state_dim=40), num_envs=1)
    with pytest.raises(CheckpointError, match="state_dim: checkpoint 11, here 12"):
        checkpoint_env(checkpoint(tmp_path / "b.torchrl", {**task, "state_dim": 11}), num_envs=1)


def test_the_time_limit_of_the_policy_s_stage_is_kept(tmp_path):
    found = checkpoint(tmp_path / "a.torchrl", task_info(make_task_env("planar", max_episode_steps=33)))
    limits = [
        task_info(checkpoint_env(found, num_envs=1, max_episode_steps=n))["max_episode_steps"] for n in (None, 44)
    ]
    assert limits == [33, 44]


def test_options_without_an_effect_are_refused():
    with pytest.raises(ValueError, match=r"num_envs=50 .*'PickCube-v1' with obs_mode='rgb'.*[Ll]eave num_envs"):
        make_task_env("PickCube-v1", num_envs=50, obs_mode="rgb")
    with pytest.raises(ValueError, match="must be 'delta_position', got 'pd_joint_pos'"):
        make_task_env("planar", control_mode="pd_joint_pos")
