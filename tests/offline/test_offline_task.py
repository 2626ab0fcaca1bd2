"""Logged transitions without an environment, boxes of actions, and reports of offline baselines."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.objectives import TD3BCLoss

from tests.examples.own_data import kill_when, words
from torchrl_flow.data import DataError, DataWarning
from torchrl_flow.evaluation import OfflineTask, episode_returns
from torchrl_flow.modules import ActionBox, StatePolicyConfig, make_state_policy, make_state_values
from torchrl_flow.offline import offline_task
from torchrl_flow.offline.report import write_offline_report
from torchrl_flow.options import refusals_in_one_line
from torchrl_flow.recsys import (
    CollectSlatesArgs,
    SlateModels,
    SlateModelsArgs,
    SlateTask,
    collect_slates,
    model_training,
    q_diagnostics,
    train_slate_models,
)
from torchrl_flow.recsys.collect import NpzStream
from torchrl_flow.runs import Run


def write(path, rows=6, **changes):
    generator = np.random.default_rng(1)
    arrays = {
        "observations": generator.normal(size=(rows, 3)),
        "actions": generator.uniform(-4.0, 9.0, size=(rows, 2)),
        "rewards": np.arange(rows, dtype=float),
        "next_observations": generator.normal(size=(rows, 3)),
        "terminals": np.zeros(rows, bool),
    }
    np.savez(path, **{name: value for name, value in {**arrays, **changes}.items() if value is not None})
    return path


def test_action_box_maps_there_and_back():
    box = ActionBox(torch.tensor([-2.0, 1.0, 3e-7]), torch.tensor([6.0, 1.0, 5e-7]))
    data = torch.tensor([[-2.0, 1.0, 3e-7], [6.0, 1.0, 5e-7], [0.0, 1.0, 3.5e-7]])
    unit = torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [-0.5, 0.0, -0.5]])
    torch.testing.assert_close(box.to_unit(data), unit)
    torch.testing.assert_close(box(unit), data, rtol=1e-6, atol=0)
    assert box(torch.tensor([9.0, 0.7, -9.0])).tolist() == pytest.approx([6.0, 1.0, 3e-7])
    huge = ActionBox(torch.tensor([-3e38]), torch.tensor([3e38]))
    assert huge(torch.tensor([0.5])).isfinite().all()
    with pytest.raises(ValueError, match="dimension 1"):
        ActionBox(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match="shape"):
        ActionBox(torch.zeros(2), torch.zeros(3))


def test_actions_of_a_task_fill_the_unit_box(tmp_path):
    path = write(tmp_path / "mine.npz", actions=np.array([[-4.0, 7.0], [0.0, 7.0], [8.0, 7.0]] * 2))
    task = OfflineTask(path, batch_size=64)
    assert task.data.transitions["action"][:3].tolist() == [[-1.0, 0.0], [pytest.approx(-1 / 3), 0.0], [1.0, 0.0]]
    assert set(task.data.sample()["action"][:, 0].tolist()) <= set(task.data.transitions["action"][:, 0].tolist())
    assert (task.state_dim, task.action_dim, task.has_env) == (3, 2, False)
    with pytest.raises(ValueError, match="--env"):
        task.evaluate(lambda data: data)


def test_bound_on_values_follows_the_rewards(tmp_path):
    rows = {"rewards": np.array([0.5, 2.0, -1.0, 0, 0, 0])}
    assert OfflineTask(write(tmp_path / "a.npz", **rows), gamma=0.75).value_bound == pytest.approx(8.0)
    assert OfflineTask(tmp_path / "a.npz", gamma=1.0).value_bound == float("inf")
    penalties = {"rewards": np.full(6, -2.0)}
    assert OfflineTask(write(tmp_path / "b.npz", **penalties), gamma=0.75).value_bound == pytest.approx(-8.0)
    ends = {"terminals": np.array([0, 0, 0, 0, 0, 1], bool)}
    assert OfflineTask(write(tmp_path / "c.npz", **penalties, **ends), gamma=0.75).value_bound == -2.0


def test_episodes_end_at_flags_and_where_observations_do_not_follow(tmp_path):
    states = np.arange(27.0).reshape(9, 3)
    following = states + 3
    following[4] = -1  # another episode starts after row 4
    arrays = {"observations": states, "next_observations": following, "rewards": np.arange(9.0)}
    arrays["actions"] = np.zeros((9, 2))
    ends = np.zeros(9, bool)
    ends[2] = True
    path = write(tmp_path / "a.npz", **arrays, terminals=ends)
    assert episode_returns(path) == [3.0, 7.0]  # what follows row 4 is no whole episode
    cuts = np.zeros(9, bool)
    cuts[7] = True
    path = write(tmp_path / "b.npz", **arrays, terminals=ends, timeouts=cuts)
    assert episode_returns(path) == [3.0, 7.0, 18.0]
    assert episode_returns(write(tmp_path / "c.npz")) == []  # rows in no order
    assert OfflineTask(tmp_path / "c.npz").references() == {}


def test_other_data_under_the_same_name_are_another_task(tmp_path):
    one = OfflineTask(write(tmp_path / "a.npz")).info
    assert OfflineTask(tmp_path / "a.npz").info == one
    other = OfflineTask(write(tmp_path / "a.npz", actions=np.ones((6, 2)))).info
    assert other["task"] == one["task"] == "a"
    assert other["data"] != one["data"]


def test_looking_at_values_draws_no_random_numbers(tmp_path):
    task = OfflineTask(write(tmp_path / "a.npz"))
    config = StatePolicyConfig(3, 2, "deterministic", (8,))
    policy = make_state_policy(config)
    loss = TD3BCLoss(policy, make_state_values(config), bounds=(-1.0, 1.0))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = q_diagnostics(loss, task.diagnostic_rows(), policy, bound=1.0)
    assert torch.equal(torch.rand(3), expected)
    assert q_diagnostics(loss, task.diagnostic_rows(), policy, bound=1.0) == first
    # The value of the data is the smaller one of the two critics', averaged.
    rows, values = task.diagnostic_rows(), []
    for member in range(2):
        with loss.qvalue_network_params.data[member].to_module(loss.qvalue_network):
            values.append(loss.qvalue_network(rows.clone())["state_action_value"])
    assert first["q/data"] == pytest.approx(torch.minimum(*values).mean().item(), rel=1e-5)


def test_environments_of_a_file_and_of_the_command_line(tmp_path):
    path = write(tmp_path / "a.npz", metadata=np.array(json.dumps({"env": "hopper-medium-v2"})))
    assert type(offline_task(path)) is OfflineTask  # not one of ours
    assert type(offline_task(path, env="none")) is OfflineTask
    path = write(tmp_path / "b.npz", metadata=np.array(json.dumps({"env": "diffuse_mix"})))
    assert type(offline_task(path, env="none")) is OfflineTask
    with pytest.raises(ValueError, match="logged in diffuse_mix, not in diffuse_topdown"):
        offline_task(path, env="diffuse_topdown")
    with pytest.raises(FileNotFoundError, match="--env none"):
        offline_task(path)
    with pytest.raises(ValueError, match="no use for models"):
        offline_task(path, "models.torchrl", env="none")
    with pytest.raises(ValueError, match="logged in diffuse_mix, not in gym/NoSuchEnv-v0"):
        offline_task(path, env="gym/NoSuchEnv-v0")
    with pytest.raises(ValueError, match="cannot be made"):
        offline_task(write(tmp_path / "c.npz"), env="gym/NoSuchEnv-v0")


@pytest.mark.skipif(importlib.util.find_spec("sardine") is not None, reason="SARDINE is installed")
def test_a_simulator_that_is_missing_is_told_before_training(tmp_path):
    path = write(tmp_path / "a.npz", metadata=np.array(json.dumps({"env": "sardine/SlateTopK-Bored-v0"})))
    with pytest.raises(SystemExit, match=r"torchrl-flow\[sardine\]"), refusals_in_one_line():
        offline_task(path)
    assert type(offline_task(path, env="none")) is OfflineTask


def test_refusals_end_in_one_line_and_other_errors_do_not():
    with pytest.raises(SystemExit, match=r"^mine is empty$"), refusals_in_one_line():
        raise DataError("mine is empty")
    with pytest.raises(ValueError, match="invalid literal"), refusals_in_one_line():
        int("x")


def test_one_row_is_enough_for_statistics(tmp_path):
    task = OfflineTask(write(tmp_path / "a.npz", rows=1))
    assert task.data.transitions["action"].tolist() == [[0.0, 0.0]]
    assert len(task.diagnostic_rows()) == 1
    for statistics in task.statistics().values():
        assert all(value.isfinite().all() for value in statistics.values())


@pytest.fixture(scope="module")
def slates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slates")
    sizes = {"num_items": 40, "episodes": 8, "belief_updates": 2, "ranker_updates": 2, "ranker_batch": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_training, "measure_quality", lambda args, models: {})
        models = train_slate_models(SlateModelsArgs(**sizes), progress=False)
    args = CollectSlatesArgs(steps=200, num_envs=2, output=str(folder / "data.npz"))
    return models, collect_slates(args, models, progress=False), args


def test_beliefs_and_latents_of_a_file_without_metadata_can_be_evaluated(slates, tmp_path):
    models, data, _ = slates
    with np.load(data) as file:
        names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
        np.savez(tmp_path / "foreign.npz", **{name: file[name] for name in names})
    with pytest.warns(DataWarning, match="does not say which models"):
        foreign = offline_task(tmp_path / "foreign.npz", models)
    known = offline_task(data, models)
    assert isinstance(foreign, SlateTask)
    assert torch.equal(foreign.data.transitions["action"], known.data.transitions["action"])
    policy = make_state_policy(StatePolicyConfig(20, 32, "deterministic", (8,)))
    assert foreign.evaluate(policy, episodes=3) == known.evaluate(policy, episodes=3)
    with np.load(data) as file:
        assert foreign.references(episodes=2)["behaviour"] == pytest.approx(file["rewards"].sum() / 2, rel=1e-4)
    narrow = write(tmp_path / "narrow.npz", actions=np.zeros((6, 32)))
    with pytest.raises(DataError, match="3 numbers"), pytest.warns(DataWarning):
        offline_task(narrow, models)


def test_a_collection_that_lost_rows_is_refused(slates, tmp_path, monkeypatch):
    models, _, args = slates
    args = dataclasses.replace(args, output=str(tmp_path / "again.npz"), num_envs=1)
    commit = NpzStream.commit

    def die(self, position):
        commit(self, position)
        raise KeyboardInterrupt

    monkeypatch.setattr(NpzStream, "commit", die)
    with pytest.raises(KeyboardInterrupt):
        collect_slates(args, models, progress=False)
    monkeypatch.undo()
    part = tmp_path / "again.npz.partial" / "rewards.bin"
    whole = part.read_bytes()
    part.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"rewards.bin is shorter"):
        collect_slates(args, models, progress=False)
    part.write_bytes(whole)
    state = tmp_path / "again.npz.partial" / "state.json"
    kept = state.read_text()
    state.write_text(kept[:20])
    with pytest.raises(DataError, match=r"state.json is damaged"):
        collect_slates(args, models, progress=False)
    state.write_text(kept)
    collect_slates(args, models, progress=False)
    # Killed between the file and the removal of its parts: the parts go, the file stays.
    part.parent.mkdir()
    state.write_text(kept)
    with pytest.raises(DataError, match="exists already"):
        collect_slates(args, models, progress=False)
    assert not part.parent.exists()


def test_models_that_were_stopped_in_either_stage_come_out_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(model_training, "measure_quality", lambda args, models: {"click_auc": 0.5})
    sizes = {"num_items": 40, "episodes": 8, "belief_updates": 5, "ranker_updates": 5, "ranker_batch": 16}
    expected = train_slate_models(SlateModelsArgs(**sizes), progress=False).hashes
    args = SlateModelsArgs(**sizes, output=str(tmp_path / "m.torchrl"), save_every=2)
    save, saved = Run.save, []

    def die(self):
        path = save(self)
        saved.append(f"{self.directory.name} {self.step}")
        if saved[-1] in ("belief_encoder 2", "ranker 4") and saved.count(saved[-1]) == 1:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(Run, "save", die)
    for _ in range(2):
        with pytest.raises(SystemExit, match="130"):
            args()
        assert not args.path.exists()
    with pytest.raises(SystemExit, match="another configuration"):
        dataclasses.replace(args, beta=9.0)()
    args()
    assert saved == ["belief_encoder 2", "belief_encoder 4", "belief_encoder 5", "ranker 2", "ranker 4", "ranker 5"]
    assert SlateModels.load(args.path).hashes == expected
    assert not args.partial.exists()
    assert "click_auc" in args()  # finished: reported, not trained again
    assert len(saved) == 6
    with pytest.raises(SystemExit, match="trained with other options"):
        dataclasses.replace(args, seed=3)()


def test_text_in_a_report_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    path = write_offline_report(
        tmp_path / "report.html",
        title=evil,
        subtitle=evil,
        returns=[(evil, 12.34, 0.5), ("sto", 7.0, None)],
        figures={evil: 0.123456},
        curves={"q/data": ([1, 2], [0.0, 1.0]), "q/policy": ([1, 2], [0.5, 1.5]), "train/loss": ([1, 2], [2.0, 1.0])},
        notes=[evil],
        config={evil: evil},
        versions={"torch": evil},
        command=evil,
    )
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 10
    assert page.count("<svg") == 2  # the values share one
    for text in ("12.3", "0.5", "7.0", "0.1235"):
        assert f">{text}</td>" in page


def _has_done(folder: Path, step: int) -> bool:
    return any(int(path.stem.rsplit("-", 1)[1]) >= step for path in folder.glob("checkpoint-*.torchrl"))


@pytest.mark.slow
def test_models_whose_training_is_killed_come_out_alike(tmp_path):
    options = {"num_items": 40, "episodes": 8, "belief_updates": 60, "ranker_updates": 60, "save_every": 5}
    expected = train_slate_models(SlateModelsArgs(**options), progress=False)
    command = ["-m", "torchrl_flow", "slate-models", "--output", "m.torchrl", *words(options)]
    folder = tmp_path / "m.torchrl.partial"
    for stage, newest in (("belief_encoder", 15), ("ranker", 20)):
        kill_when(command, functools.partial(_has_done, folder / stage / "checkpoints", newest), cwd=tmp_path)
        assert not (tmp_path / "m.torchrl").exists()
    SlateModelsArgs(**options, output=str(tmp_path / "m.torchrl"))()
    models = SlateModels.load(tmp_path / "m.torchrl")
    assert models.hashes == expected.hashes
    assert models.quality == expected.quality
