"""The offline recipes on a user's own five arrays, without an environment, and their resumption after a kill."""

from __future__ import annotations

import csv
import json
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.examples import own_data as own
from tests.programs import own_errors
from torchrl_flow.data import DataError
from torchrl_flow.modules import SingleStepActor
from torchrl_flow.policies import load_policy
from torchrl_flow.recsys import in_data_units, load_state_policy
from torchrl_flow.runs import load_checkpoint
from torchrl_flow.training import NonFiniteError

SCRIPTS = tuple(own.SMALL)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.npz"
    np.savez(path, **own.own_arrays())
    return path


def options(folder, file, **more):
    shared = {"data": str(file), "runs": str(folder), "name": "run", "results": str(folder / "results.csv")}
    return {**shared, "batch_size": 32, "iterations": 4, "save_every": 2, "log_every": 2, **more}


@pytest.mark.parametrize("script", SCRIPTS)
def test_five_arrays_train_without_an_environment(script, file, tmp_path, capsys):
    own.run_recipe(script, **options(tmp_path, file))
    printed = capsys.readouterr().out
    assert "No environment: no return, no row of results" in printed
    assert not (tmp_path / "results.csv").exists()
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    arrays = own.own_arrays()
    # The whole episodes of the data are the first two, of 100 rows each.
    assert figures["behaviour"] == pytest.approx(arrays["rewards"][:200].sum() / 2, rel=1e-5)
    assert 0 < figures["action_distance"] < 2
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "no row of results is written" in page
    assert "<svg" in page
    if script != "flow_bc_slates":
        assert {"q/data", "q/policy", "q/random", "q/above_bound"} <= set(figures)
        assert "value of actions" in page
        assert "q/policy" in printed
    metrics = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in metrics[1:]} == {"1", "2", "4"}  # the first, each second, the last


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("given", "bound"), [({}, 5.0), ({"state_bound": 1.5}, 1.5)])
def test_observations_are_bounded_by_five_deviations_or_as_given(script, given, bound, file, tmp_path):
    own.run_recipe(script, **options(tmp_path, file, **given))
    checkpoint = load_checkpoint(tmp_path / "run")
    config = checkpoint.actor_config if script == "flow_bc_slates" else checkpoint.module_configs["state_policy"]
    assert config["state_bound"] == bound


@pytest.mark.parametrize(
    ("script", "small"),
    [
        ("aw_flow_slates", {"width": 16, "depth": 1, "critic_warmup": 0, "hidden_sizes": (16,)}),
        ("return_flow_slates", {"width": 16}),
    ],
)
def test_flows_train_on_five_arrays(script, small, file, tmp_path, capsys):
    recipe = runpy.run_path(str(own.EXAMPLES / f"{script}.py"))
    recipe["main"](recipe["Args"](**options(tmp_path, file, **small)))
    assert "No environment: no return, no row of results" in capsys.readouterr().out
    assert not (tmp_path / "results.csv").exists()
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert 0 < figures["action_distance"] < 2
    assert load_policy(tmp_path / "run")[0].action_dim == 6


@pytest.mark.parametrize("script", SCRIPTS)
def test_policies_of_checkpoints_give_actions_in_the_units_of_the_data(script, file, tmp_path):
    own.run_recipe(script, **options(tmp_path, file))
    actions = torch.from_numpy(own.own_arrays()["actions"])
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.module_configs["action_box"]["low"] == actions.amin(0).tolist()
    assert checkpoint.module_configs["action_box"]["high"] == actions.amax(0).tolist()
    if script == "flow_bc_slates":
        actor, checkpoint = load_policy(tmp_path / "run")
        unit = SingleStepActor(actor)
        policy = in_data_units(unit, checkpoint)
    else:
        unit, _ = load_state_policy(tmp_path / "run")
        policy, _ = load_state_policy(tmp_path / "run", data_units=True)
    seen = TensorDict({"observation": 3 * torch.randn(64, 17)}, [64])
    torch.manual_seed(5)
    inside = unit(seen.clone())["action"]
    torch.manual_seed(5)
    acted = policy(seen.clone())["action"]
    assert inside.abs().max() <= 1
    low, high = actions.amin(0), actions.amax(0)
    assert (acted >= low).all()
    assert (acted <= high).all()
    torch.testing.assert_close(acted, 0.5 * (low + high) + 0.5 * (high - low) * inside, rtol=1e-4, atol=1e-4)
    assert (acted[:, -1] == 0.25).all()  # never another value in the data


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "next_observations"])
def test_a_number_that_is_not_finite_is_refused_by_array(key, tmp_path):
    arrays = own.own_arrays()
    arrays[key][7] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=f"'{key}'.*bad.npz.*finite|bad.npz.*'?{key}'?.*(finite|nan)"):
        own.run_recipe("td3_bc", **options(tmp_path, tmp_path / "bad.npz"))
    assert not (tmp_path / "run").exists()


def test_what_pickle_alone_can_read_is_refused(tmp_path):
    arrays = own.own_arrays()
    np.savez(tmp_path / "bad.npz", **{**arrays, "rewards": np.array([object()] * 300)})
    with pytest.raises(DataError, match="rewards"):
        own.run_recipe("td3_bc", **options(tmp_path, tmp_path / "bad.npz"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("script", SCRIPTS)
def test_cuda_is_refused_where_there_is_none(script, file, tmp_path):
    with pytest.raises(SystemExit, match="--device cuda"):
        own.run_recipe(script, **options(tmp_path, file, device="cuda"))


def test_the_command_line_refuses_in_one_line(tmp_path):
    arrays = own.own_arrays()
    arrays.pop("rewards")
    np.savez(tmp_path / "bad.npz", **arrays)
    command = [sys.executable, str(own.EXAMPLES / "td3_bc.py"), "--data", "bad.npz"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(own.ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(own_errors(done.stderr).splitlines()) == 1
    assert "bad.npz" in done.stderr
    assert "rewards" in done.stderr


def test_names_of_environments_are_checked(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without models
    with pytest.raises(ValueError, match="env must be one of diffuse_topdown"):
        own.run_recipe("td3_bc", **options(tmp_path, file, env="hopper"))
    with pytest.raises(FileNotFoundError, match="slate-models --env diffuse_mix"):
        own.run_recipe("td3_bc", **options(tmp_path, file, env="diffuse_mix"))


def test_a_gymnasium_environment_that_is_named_is_evaluated_in(tmp_path):
    np.savez(tmp_path / "pendulum.npz", **_pendulum())
    given = options(tmp_path, tmp_path / "pendulum.npz", env="gym/Pendulum-v1", eval_episodes=2, eval_every=0)
    own.run_recipe("iql", **given)
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (row["recipe"], row["task"], row["episodes"]) == ("iql", "gym/Pendulum-v1", "2")
    assert -2 * 200 * 17 < float(row["return"]) < 0  # at most 16.3 a step, of 200
    assert "random_action" in json.loads((tmp_path / "run" / "evaluation.json").read_text())
    np.savez(tmp_path / "other.npz", **own.own_arrays())
    with pytest.raises(DataError, match="Pendulum"):
        own.run_recipe("iql", **{**given, "data": str(tmp_path / "other.npz"), "name": "other"})


def _pendulum():
    arrays = own.own_arrays(state_dim=3, action_dim=2)
    arrays["actions"] = np.clip(arrays["actions"][:, :1], -2, 2)
    return arrays


def test_a_loss_that_overflows_stops_the_run_and_keeps_the_last_checkpoint(file, tmp_path):
    with pytest.raises(NonFiniteError):
        own.run_recipe("td3_bc", **options(tmp_path, file, lr=1e30, iterations=50, save_every=1))
    assert not (tmp_path / "run" / "evaluation.json").exists()
    for path in (tmp_path / "run" / "checkpoints").glob("*.torchrl"):
        for value in load_checkpoint(path).state_dict("policy").values():
            assert not isinstance(value, torch.Tensor) or value.isfinite().all()


def test_a_run_that_is_made_longer_equals_one_that_was_as_long_from_the_start(file, tmp_path):
    for name, lengths in (("once", (6,)), ("twice", (3, 6))):
        for length in lengths:
            given = {"name": name, "iterations": length, "resume": True, "save_every": 2, "log_every": 1}
            own.run_recipe("td3_bc", **{**options(tmp_path, file), **given})
    own.assert_same_run(tmp_path / "once", tmp_path / "twice")


@pytest.mark.parametrize(
    "script", ["td3_bc", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS if name != "td3_bc")]
)
def test_a_killed_run_that_is_resumed_equals_one_that_was_not(script, file, tmp_path):
    more = {"iterations": 150, "save_every": 7, "log_every": 5}
    own.run_recipe(script, **options(tmp_path, file, **{**more, "name": "whole"}))
    killed = {**options(tmp_path, file, **more), "name": "killed"}
    folder = tmp_path / "killed" / "checkpoints"
    command = [str(own.EXAMPLES / f"{script}.py"), *own.words({**killed, **own.SMALL[script]})]
    own.kill_when(command, lambda: len(list(folder.glob("checkpoint-*"))) == 2, cwd=tmp_path)
    assert not (tmp_path / "killed" / "evaluation.json").exists()
    assert load_checkpoint(tmp_path / "killed").step < 150
    own.run_recipe(script, **killed, resume=True)
    own.assert_same_run(tmp_path / "whole", tmp_path / "killed")
