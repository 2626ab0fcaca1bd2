"""Rows of demonstrations are what the environment gives online, also where a task can be lost."""

from __future__ import annotations

import importlib.util
import json

import h5py
import numpy as np
import pytest
import torch

from tests.envs.fake_maniskill import FailingManiSkill
from torchrl_flow.data import (
    DataError,
    DataWarning,
    DemoReplayBuffer,
    DemoStore,
    Episode,
    cut_after_success,
    drop_idle_steps,
    read_maniskill,
)
from torchrl_flow.envs import ManiSkillWrapper, make_chunk_env

OUTCOMES = ("reward", "done", "terminated", "truncated", "success", "steps_to_next_obs")
# Ends after 6 steps of the clock, in success, in failure, and in failure at the last step of the clock.
ACTIONS = {
    "limit": [0.1, -0.1] * 3,
    "success": [0.5] * 5,
    "failure": [-0.5] * 5,
    "late failure": [0.0, 0.0, 0.0, -0.7, -0.6, -0.9],
}


def record(env, actions):
    """Steps until the episode ends; what a recorder writes, step by step."""
    data = env.reset(seed=0)
    frames, steps = [data["observation"]], []
    for x in actions:
        action = torch.tensor([x, 0.2])
        data = env.step(data.set("action", action))["next"]
        frames.append(data["observation"])
        fail = bool(env._env.unwrapped._fail())
        steps.append((action.numpy(), bool(data["success"]), fail, bool(data["terminated"]), bool(data["truncated"])))
        if data["done"]:
            break
    action, success, fail, terminated, truncated = (np.asarray(column) for column in zip(*steps))
    flags = {"success": success, "fail": fail, "terminated": terminated, "truncated": truncated}
    return {"obs": torch.stack(frames).numpy(), "actions": action, **flags}


def write(path, entries, **env_kwargs):
    with h5py.File(path, "w") as file:
        for number, entry in enumerate(entries):
            for key, value in entry.items():
                file.create_dataset(f"traj_{number}/{key}", data=value)
    episodes = [{"episode_id": i, "elapsed_steps": len(entry["actions"])} for i, entry in enumerate(entries)]
    info = {"env_id": "Fake-v1", "env_kwargs": {"obs_mode": "state", **env_kwargs}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("act_horizon", [1, 2, 4])
@pytest.mark.parametrize("kind", ACTIONS)
def test_offline_rows_equal_online_ones(tmp_path, kind, act_horizon):
    base = ManiSkillWrapper(FailingManiSkill(1, max_episode_steps=6), seed=0)
    entry = record(base, ACTIONS[kind])
    assert entry["fail"].any() == ("failure" in kind)
    store = read_maniskill(write(tmp_path / "t.h5", [entry]), tmp_path / "store")
    options = {"act_horizon": act_horizon, "gamma": 0.9}
    demos = DemoReplayBuffer(store, pred_horizon=4, **options)

    env = make_chunk_env(ManiSkillWrapper(FailingManiSkill(1, max_episode_steps=6), seed=0), obs_horizon=1, **options)
    data, start = env.reset(seed=0), 0
    while not data["done"]:
        row = demos[[start]][0]
        torch.testing.assert_close(row["observation"], data["observation"])
        data = env.step(data.set("action", row["action"]))["next"]
        # Whether the clock ran out at the step that ended the task, the rows of demonstrations do not say.
        for key in OUTCOMES if not data["terminated"] else [key for key in OUTCOMES if key != "truncated"]:
            torch.testing.assert_close(row["next", key], data[key], msg=f"{kind}, step {start}: {key}")
        torch.testing.assert_close(row["next", "observation"], data["observation"])
        start += int(data["steps_to_next_obs"])
    assert start == len(entry["actions"])


def test_a_failure_that_is_not_the_last_step_ends_the_chunk(tmp_path):
    fail = torch.tensor([False, False, True, False, False])
    data = {"observation": torch.rand(6, 2), "action": torch.rand(5, 1), "fail": fail}
    store = DemoStore.from_episodes([data], tmp_path / "store")
    assert store.steps["reward"].flatten().tolist() == [0, 0, -1, 0, 0]
    following = DemoReplayBuffer(store, pred_horizon=4, act_horizon=4, gamma=1.0)[:]["next"]
    assert following["terminated"].flatten().tolist() == [True, True, True, False, False]
    assert following["truncated"].flatten().tolist() == [False, False, False, True, True]
    assert following["steps_to_next_obs"].flatten().tolist() == [3, 2, 1, 2, 1]
    assert following["reward"].flatten().tolist() == [-1, -1, -1, 0, 0]
    assert not following["success"].any()
    going_on = DemoReplayBuffer(store, pred_horizon=4, act_horizon=4, terminate_on_success=False)[:]["next"]
    assert not going_on["terminated"].any()
    assert going_on["steps_to_next_obs"].flatten().tolist() == [4, 4, 3, 2, 1]


def test_other_ends_are_kept_and_give_no_reward(tmp_path):
    data = {"observation": torch.rand(4, 2), "action": torch.rand(3, 1), "terminated": torch.tensor([[0], [0], [1]])}
    store = DemoStore.from_episodes([data], tmp_path / "store")
    following = DemoReplayBuffer(store, pred_horizon=2, act_horizon=1)[[2]]["next"]
    assert following["terminated"].all()
    assert not following["truncated"].any()
    assert following["reward"].item() == 0


def test_a_store_made_before_failures_were_kept_opens(tmp_path):
    data = {"observation": torch.rand(4, 2), "action": torch.rand(3, 1), "success": torch.tensor([0, 0, 1])}
    root = DemoStore.from_episodes([data], tmp_path / "store").root
    metadata = json.loads((root / "metadata.json").read_text(encoding="utf-8"))
    meta = json.loads((root / "steps" / "meta.json").read_text(encoding="utf-8"))
    for name in ("fail", "terminated"):
        del metadata["columns"]["steps"][name], meta[name]
        (root / "steps" / f"{name}.memmap").unlink()
    for name in ("reward_mode", "digest", "changed_ns"):
        metadata.pop(name)
    (root / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    (root / "steps" / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    store = DemoStore.open(root)
    assert store.task_info["reward_mode"] is None
    assert set(store.episode(0).keys()) == {"observation", "action", "reward", "success", "perturbed", "seed"}
    following = DemoReplayBuffer(store, pred_horizon=2, act_horizon=1)[:]["next"]
    assert following["terminated"].flatten().tolist() == [False, False, True]


def test_episodes_survive_a_copy_with_all_flags(tmp_path):
    flags = {name: torch.rand(5) > 0.5 for name in ("success", "fail", "perturbed", "terminated")}
    data = {"observation": torch.rand(6, 2), "action": torch.rand(5, 1), **flags}
    first = DemoStore.from_episodes([data], tmp_path / "a")
    copy = DemoStore.from_episodes(first, tmp_path / "b").episode(0)
    for name in ("success", "fail", "perturbed"):
        assert torch.equal(copy[name].flatten(), flags[name])
    assert torch.equal(copy["terminated"].flatten(), flags["terminated"] | flags["success"] | flags["fail"])


def test_trimming_keeps_failures():
    fail = torch.tensor([False, False, True, False])
    data = {"observation": torch.zeros(5, 2), "action": torch.zeros(4, 2), "fail": fail, "reward": torch.zeros(4)}
    kept = drop_idle_steps(Episode.from_mapping(data))
    assert kept.fail is not None
    assert kept.terminated is not None
    assert kept.fail.tolist() == [True, False]  # the step that fails, and the one after it, at which that changes
    assert kept.terminated.tolist() == [True, False]
    assert cut_after_success(Episode.from_mapping(data)).fail is not None


def test_flags_must_be_flags():
    data = {"observation": torch.zeros(4, 2), "action": torch.zeros(3, 1)}
    with pytest.raises(DataError, match=r"`fail` must hold 0 and 1 alone, got 0\.5 at row 1"):
        Episode.from_mapping({**data, "fail": torch.tensor([0, 0.5, 1])})
    with pytest.raises(DataError, match="`success` must hold 0 and 1 alone, got nan at row 2"):
        Episode.from_mapping({**data, "success": torch.tensor([0, 1, torch.nan])})


@pytest.mark.skipif(importlib.util.find_spec("mani_skill") is None, reason="needs mani_skill")
def test_a_task_of_maniskill_that_can_fail(tmp_path):
    from torchrl_flow.envs import ManiSkillEnv

    # It tells no success, for which ManiSkill's sparse mode has no reward.
    mode = {"reward_mode": "normalized_dense"}
    options = {"control_mode": "pd_joint_delta_pos", "max_episode_steps": 60, "visuals": False, **mode}
    env = ManiSkillEnv("MS-CartpoleBalance-v1", **options)
    base = env._env.unwrapped
    base._fail = lambda: base.evaluate()["fail"]
    data = env.reset(seed=0)
    frames, outcomes, fails, actions = [data["observation"]], [], [], []
    while not data["done"]:
        data = env.step(data.set("action", torch.ones(env.action_spec.shape)))["next"]
        frames.append(data["observation"])
        outcomes.append(data.select("reward", "terminated", "truncated", "done", "success"))
        actions.append(np.ones(env.action_spec.shape, np.float32))
        fails.append(bool(base._fail()))
    env.close()
    assert fails[-1], "the pole did not fall"
    entry = {"obs": torch.stack(frames).numpy(), "actions": np.stack(actions), "fail": np.array(fails)}
    entry["rewards"] = torch.stack([outcome["reward"] for outcome in outcomes]).flatten().numpy()
    with pytest.warns(DataWarning, match="has no `success`"):
        store = read_maniskill(write(tmp_path / "t.h5", [entry], **mode), tmp_path / "store")
    assert store.task_info["reward_mode"] == "normalized_dense"
    assert not store.has_success
    rows = DemoReplayBuffer(store, pred_horizon=1, act_horizon=1)[:]["next"]
    for key in ("reward", "terminated", "truncated", "done", "success"):
        assert torch.equal(rows[key], torch.stack([outcome[key] for outcome in outcomes])), key
