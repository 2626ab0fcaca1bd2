from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.checkpoint import Checkpoint, CheckpointError
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement

from tests.tiny_training import train
from torchrl_flow.envs import TaskInfo
from torchrl_flow.runs import (
    CheckpointDirectory,
    TrainingCheckpoint,
    latest_checkpoint,
    load_checkpoint,
    require_task,
    save_checkpoint,
)
from torchrl_flow.util import isolated_rng

TASK = {
    "task": "PushCube-v1",
    "control_mode": "pd_ee_delta_pose",
    "obs_mode": "state",
    "horizons": (2, 16, 8),
}


@dataclass
class Config:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    out: Path = Path("runs")


def parts(seed=0):
    torch.manual_seed(seed)
    policy, critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(3, 1)
    optimizer = torch.optim.AdamW([*policy.parameters(), *critic.parameters()], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    (policy(torch.randn(5, 3)).sum() + critic(torch.randn(5, 3)).sum()).backward()
    optimizer.step()
    scheduler.step()
    return policy, critic, optimizer, scheduler


def save(path, **overrides):
    policy, critic, optimizer, scheduler = parts()
    arguments = {
        "modules": {"policy": policy, "critic": critic},
        "optimizers": {"main": optimizer},
        "state": {"scheduler": scheduler},
        "config": Config(),
        "task": TASK,
        "actor_config": {"action_dim": 7},
        "counters": {"step": 5, "env_steps": 40},
        "metrics": {"eval/success_once": 0.25},
        "metadata": {"note": "x"},
    }
    save_checkpoint(path, **{**arguments, **overrides})
    return policy, critic, optimizer, scheduler


def test_round_trip_of_every_part(tmp_path):
    path = tmp_path / "a.torchrl"
    policy, critic, optimizer, scheduler = save(path)
    expected = (torch.rand(3), np.random.rand(3), random.random())

    checkpoint = load_checkpoint(path)
    assert checkpoint.roles == ("critic", "policy")
    assert checkpoint.optimizers == ("main",)
    assert checkpoint.states == ("scheduler",)
    assert checkpoint.config == {"lr": 1e-3, "betas": [0.9, 0.95], "out": "runs"}
    assert checkpoint.counters == {"step": 5, "env_steps": 40}
    assert checkpoint.actor_config == {"action_dim": 7}
    assert checkpoint.metrics == {"eval/success_once": 0.25}
    assert checkpoint.metadata == {"note": "x"}
    assert {"torchrl_flow", "torch", "torchrl", "tensordict", "python"} <= set(checkpoint.versions)

    new = parts(seed=1)
    step = checkpoint.restore(
        modules={"policy": new[0], "critic": new[1]},
        optimizers={"main": new[2]},
        state={"scheduler": new[3]},
        rng=True,
    )
    assert step == 5
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    assert random.random() == expected[2]
    for old_module, new_module in ((policy, new[0]), (critic, new[1])):
        for old, restored in zip(old_module.state_dict().values(), new_module.state_dict().values()):
            assert torch.equal(old, restored)
    old_state, new_state = optimizer.state_dict()["state"], new[2].state_dict()["state"]
    assert all(torch.equal(old_state[i][key], new_state[i][key]) for i in old_state for key in old_state[i])
    assert scheduler.state_dict() == new[3].state_dict()


def test_replay_buffers_and_samplers_are_kept(tmp_path):
    def make():
        return TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=SamplerWithoutReplacement(), batch_size=3)

    buffer, new = make(), make()
    buffer.extend(TensorDict(x=torch.arange(7.0), batch_size=[7]))
    buffer.sample()
    save_checkpoint(tmp_path / "a.torchrl", state={"buffer": buffer})
    expected = [buffer.sample()["x"] for _ in range(4)]
    load_checkpoint(tmp_path / "a.torchrl").restore(state={"buffer": new}, rng=True)
    assert len(new) == 7
    assert all(torch.equal(batch, new.sample()["x"]) for batch in expected)


def test_parts_are_read_one_by_one(tmp_path):
    policy, *_ = save(tmp_path / "a.torchrl")
    # A damaged optimiser must not stand in the way of evaluating the policy.
    with zipfile.ZipFile(tmp_path / "a.torchrl") as archive:
        damaged = next(info for info in archive.infolist() if "optimizer.main" in info.filename)
    content = bytearray((tmp_path / "a.torchrl").read_bytes())
    content[damaged.header_offset + 200] ^= 0xFF
    (tmp_path / "a.torchrl").write_bytes(content)
    checkpoint = load_checkpoint(tmp_path / "a.torchrl")
    assert torch.equal(checkpoint.state_dict("policy")["0.weight"], policy[0].weight)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.optimizer_state_dict("main")


def test_loading_runs_no_code_of_the_file(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_here",))

        def state_dict(self):
            return {"x": self}

        def load_state_dict(self, state):
            pass

    save_checkpoint(tmp_path / "a.torchrl", state={"bad": Malicious()})
    with pytest.raises(CheckpointError, match=r"a\.torchrl"):
        load_checkpoint(tmp_path / "a.torchrl").restore(state={"bad": Malicious()})
    assert not (tmp_path / "was_here").exists()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a checkpoint")


def of_torch_save(path):
    torch.save({"a": torch.zeros(2)}, path)


def zip_of_others(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def of_torchrl(path):
    Checkpoint(format="archive", policy=nn.Linear(1, 1)).save(path)


def with_manifest(change):
    def apply(path):
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(entries["manifest.json"])
        change(manifest)
        entries["manifest.json"] = json.dumps(manifest).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "truncated or damaged"),
        (half, "truncated or damaged"),
        (empty, "empty"),
        (text, "not a zip archive"),
        (of_torch_save, r"torch\.save"),
        (zip_of_others, "without manifest"),
        (of_torchrl, "not one of torchrl_flow"),
        (with_manifest(lambda m: m["metadata"].update(format_version=7)), "version 7.*reads version 1"),
        (with_manifest(lambda m: m.update(format="other")), "not a checkpoint of torchrl_flow"),
        (with_manifest(lambda m: m.pop("components")), "no component mapping"),
    ],
)
def test_refuses_by_name_and_reason(tmp_path, damage, reason):
    path = tmp_path / "a.torchrl"
    save(path)
    damage(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.torchrl"):
        load_checkpoint(tmp_path / "a.torchrl")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_missing_role_names_the_others_and_touches_nothing(tmp_path):
    save(tmp_path / "a.torchrl")
    policy = parts(seed=3)[0]
    before = policy[0].weight.clone()
    with pytest.raises(CheckpointError, match="no role 'target_critic'; it holds: critic, policy"):
        load_checkpoint(tmp_path / "a.torchrl").restore(modules={"policy": policy, "target_critic": nn.Linear(1, 1)})
    assert torch.equal(policy[0].weight, before)
    with pytest.raises(CheckpointError, match="no optimiser 'actor'; it holds: main"):
        load_checkpoint(tmp_path / "a.torchrl").optimizer_state_dict("actor")


def test_module_of_another_shape_is_refused(tmp_path):
    save(tmp_path / "a.torchrl")
    critic = nn.Linear(9, 1)
    before = critic.weight.clone()
    expected = r"module\.critic does not fit, size mismatch: weight \[1, \d+\] in the file, \[1, 9\] in the network"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "a.torchrl").restore(modules={"critic": critic})
    assert torch.equal(critic.weight, before)


def test_no_rng_no_exact_resume(tmp_path):
    save(tmp_path / "a.torchrl", rng=False)
    with pytest.raises(CheckpointError, match="random generators"):
        load_checkpoint(tmp_path / "a.torchrl").restore(rng=True)


def test_other_task_is_refused_with_both_values(tmp_path):
    save(tmp_path / "a.torchrl")
    checkpoint = load_checkpoint(tmp_path / "a.torchrl")
    require_task(checkpoint, {**TASK, "max_episode_steps": 100})
    with pytest.raises(CheckpointError) as caught:
        require_task(checkpoint, {**TASK, "task": "PickCube-v1", "obs_mode": "rgb", "robot": "panda"})
    for part in (
        "'PushCube-v1'",
        "'PickCube-v1'",
        "'state'",
        "'rgb'",
        "robot: checkpoint 'not recorded', here 'panda'",
    ):
        assert part in str(caught.value)
    assert "control_mode" not in str(caught.value)


def test_refuses_to_save_what_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="'policy' is a int"):
        save_checkpoint(tmp_path / "a.torchrl", modules={"policy": 3})
    with pytest.raises(ValueError, match="config holds"):
        save_checkpoint(tmp_path / "a.torchrl", config={"fn": object()})
    assert not list(tmp_path.iterdir())


def test_directory_keeps_the_last_and_the_best(tmp_path):
    checkpoints = CheckpointDirectory(tmp_path / "checkpoints", keep_last=2, keep_best="eval/success_once")
    assert checkpoints.latest() is None
    for step, metric in enumerate([0.1, 0.9, None, 0.3, 0.2, None]):
        metrics = {} if metric is None else {"eval/success_once": metric}
        checkpoints.save(step, modules={"policy": nn.Linear(1, 1)}, metrics=metrics)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"checkpoint-{step:012d}.torchrl" for step in (1, 4, 5)]
    assert checkpoints.best() == checkpoints.path(1)
    assert latest_checkpoint(tmp_path) == checkpoints.path(5)
    assert load_checkpoint(tmp_path).step == 5
    # A run that is killed while it saves leaves a broken newest file at worst under another name.
    shutil.copy(checkpoints.path(5), tmp_path / "checkpoints" / ".checkpoint-000000000006.torchrl.x")
    checkpoints.remove_leftovers()
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("again", [False, True])
def test_without_success_the_best_has_the_highest_return(tmp_path, again):
    directory, metric = tmp_path / "checkpoints", "eval/success_once"
    checkpoints = CheckpointDirectory(directory, keep_last=1, keep_best=metric)
    for step, value in enumerate([-3.0, -1.0, None, -2.0]):
        metrics = {} if value is None else {"eval/return": value}
        if again:  # as a resumed run does
            checkpoints = CheckpointDirectory(directory, keep_last=1, keep_best=metric)
        checkpoints.save(step, modules={"policy": nn.Linear(1, 1)}, metrics=metrics, metadata={"keep_best": metric})
    assert sorted(directory.iterdir()) == [checkpoints.path(1), checkpoints.path(3)]
    assert checkpoints.best() == checkpoints.path(1)
    assert load_checkpoint(tmp_path, which="best").step == 1


def test_with_success_returns_do_not_determine_the_best(tmp_path):
    checkpoints = CheckpointDirectory(tmp_path / "checkpoints", keep_last=1, keep_best="eval/success_once")
    for step, (success, value) in enumerate([(0.1, 9.0), (0.9, 1.0), (0.3, 5.0)]):
        metrics = {"eval/success_once": success, "eval/return": value}
        checkpoints.save(step, modules={"policy": nn.Linear(1, 1)}, metrics=metrics)
    assert checkpoints.best() == checkpoints.path(1)


def save_forever(path, module):
    while True:
        save_checkpoint(path, modules={"policy": module}, counters={"step": 2})


def test_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "a.torchrl"
    save(path, counters={"step": 1})
    first = path.read_bytes()
    module = nn.Linear(1000, 500)
    interrupted, untouched = 0, 0
    for delay in range(12):
        path.write_bytes(first)
        writer = multiprocessing.get_context("fork").Process(target=save_forever, args=(path, module))
        writer.start()
        while not list(tmp_path.glob(".a.torchrl.*")):
            time.sleep(1e-4)
        time.sleep(delay * 2e-3)
        writer.kill()
        writer.join()
        leftovers = list(tmp_path.glob(".a.torchrl.*"))
        interrupted += bool(leftovers)
        untouched += path.read_bytes() == first
        checkpoint = load_checkpoint(path)
        assert checkpoint.state_dict("policy")
        for leftover in leftovers:
            shutil.rmtree(leftover)
    assert interrupted
    assert untouched


def test_resuming_in_a_fresh_process_is_bit_exact(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with isolated_rng(0):
        train(tmp_path / "whole.torchrl", None, 20)
        train(tmp_path / "half.torchrl", None, 10)
    torch.set_num_threads(threads)
    module, root = "tests.tiny_training", Path(__file__).parents[2]
    arguments = [str(tmp_path / "resumed.torchrl"), str(tmp_path / "half.torchrl"), "20"]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    whole, half, resumed = (load_checkpoint(tmp_path / f"{name}.torchrl") for name in ("whole", "half", "resumed"))
    weights = [checkpoint.state_dict("policy") for checkpoint in (whole, half, resumed)]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[2][name])
        assert not torch.equal(weights[0][name], weights[1][name])
    moments = [checkpoint.optimizer_state_dict("main")["state"] for checkpoint in (whole, resumed)]
    for index, state in moments[0].items():
        assert all(torch.equal(value, moments[1][index][key]) for key, value in state.items())


def test_the_task_of_a_checkpoint_is_typed(tmp_path):
    save(tmp_path / "a.torchrl", task=TaskInfo.of({**TASK, "geometry": {"size": (1, 2)}}))
    task = load_checkpoint(tmp_path / "a.torchrl").task
    assert (task.task, task["task"], task.details["geometry"]) == ("PushCube-v1", "PushCube-v1", {"size": [1, 2]})
    assert task == {**TASK, "horizons": [2, 16, 8], "geometry": {"size": [1, 2]}}
    with pytest.raises(ValueError, match=r"unknown field 'obs_mod' in a TaskInfo. Did you mean obs_mode"):
        save(tmp_path / "b.torchrl", task={**{k: v for k, v in TASK.items() if k != "obs_mode"}, "obs_mod": "state"})


def test_a_checkpoint_whose_task_is_invalid_is_refused_naming_the_field(tmp_path):
    save(tmp_path / "a.torchrl")
    manifest = Checkpoint.manifest(tmp_path / "a.torchrl")
    manifest["metadata"]["task"] = {"task": 5}
    with pytest.raises(
        CheckpointError, match=r"a\.torchrl: the manifest's 'task' cannot be read: task of a task.*got 5"
    ):
        TrainingCheckpoint(tmp_path / "a.torchrl", manifest)
