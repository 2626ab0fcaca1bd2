"""The recipes of the offline baselines, from end to end on a small catalogue."""

from __future__ import annotations

import csv
import importlib
import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from tensordict import TensorDict

from torchrl_flow.data import DataWarning
from torchrl_flow.modules import FlowActorConfig, Normalizer, make_flow_actor
from torchrl_flow.policies import load_policy
from torchrl_flow.recsys import (
    CollectSlatesArgs,
    SlateModelsArgs,
    collect_slates,
    load_state_policy,
    train_slate_models,
)
from torchrl_flow.runs import Run, load_checkpoint, read_metrics
from torchrl_flow.sweeps import plan
from torchrl_flow.training import NonFiniteError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    args = SlateModelsArgs(num_items=50, episodes=32, belief_updates=5, ranker_updates=20, ranker_batch=64)
    models = train_slate_models(args, progress=False)
    data = collect_slates(CollectSlatesArgs(steps=600, output=str(folder / "d.npz")), models, progress=False)
    return str(data), str(models.save(folder / "models.torchrl"))


@pytest.mark.parametrize(
    ("script", "recipe", "options"),
    [
        ("td3_bc", "td3_bc", {}),
        ("td3_bc", "bc", {"alpha": 0.0}),
        ("iql", "iql", {}),
        ("cql", "cql", {"num_random": 2, "bc_updates": 1}),
        ("flow_bc_slates", "bc_slates", {"width": 16, "depth": 1}),
        ("aw_flow_slates", "aw_flow_best", {"width": 16, "depth": 1, "critic_warmup": 0, "best_of": 2}),
        ("return_flow_slates", "return_flow", {"width": 16}),
    ],
)
def test_recipe_trains_evaluates_and_records(files, tmp_path, script, recipe, options, capsys):
    data, models = files
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    shared = {"data": data, "models": models, "runs": str(tmp_path), "name": "run", "batch_size": 32}
    shared |= {"results": str(tmp_path / "r.csv"), "iterations": 3, "eval_every": 2, "eval_episodes": 4}
    example["main"](example["Args"](**shared, **options))
    if script == "iql":  # evaluated anew, its row takes the place of the old one
        example["main"](example["Args"](**shared, **options, resume=True))
    assert recipe in capsys.readouterr().out
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {recipe, "random_latent", "sto", "behaviour", "oracle", "oracle_through_ranker"} <= set(scores)
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    written = [recipe, "aw_flow"] if recipe == "aw_flow_best" else [recipe]
    place = ("diffuse_topdown", "medium")
    assert [(row["recipe"], row["task"], row["stage"]) for row in rows] == [(name, *place) for name in written]
    load = load_policy if "flow" in script else load_state_policy
    policy, checkpoint = load(tmp_path / "run")
    assert checkpoint.step == 3
    returns = read_metrics(tmp_path / "run" / "metrics.csv")["eval/return"]
    assert returns[0] == [1, 2, 3]
    best = load_checkpoint(tmp_path / "run", which="best")
    assert best.metrics["eval/return"] == max(returns[1])
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f"<td>{name}</td>" in page for name in (*written, "sto", "oracle"))
    normalizers = [value for name, value in policy.state_dict().items() if name.endswith("normalizer.loc")]
    assert any(value.abs().sum() > 0 for value in normalizers)
    bounds = [module.bound for module in policy.modules() if isinstance(module, Normalizer)]
    assert 2.0 in bounds  # of the observations


def test_online_agent_leaves_a_data_set_and_goes_on_after_a_stop(files, tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "sac_slates.py"))
    shared = {"models": files[1], "runs": str(tmp_path), "num_envs": 2, "updates": 2, "batch_size": 16}
    shared |= {"eval_episodes": 3, "hidden_sizes": (8,), "eval_every": 1, "save_every": 1}
    results = str(tmp_path / "r.csv")
    whole = example["Args"](**shared, iterations=3, name="whole", results=results)
    example["main"](whole)
    assert "sac " in capsys.readouterr().out
    example["main"](example["Args"](**shared, iterations=2, name="parts"))
    example["main"](example["Args"](**shared, iterations=3, name="parts", resume=True))
    one, two = (np.load(tmp_path / name / "replay.npz") for name in ("whole", "parts"))
    assert len(one["rewards"]) == 3 * 2 * 100
    assert all((one[name] == two[name]).all() for name in one.files)  # to the same bits as without a stop
    policies = [load_state_policy(tmp_path / name)[0].state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(value, policies[1][name]) for name, value in policies[0].items())
    (row,) = csv.DictReader(Path(results).read_text().splitlines())
    assert (row["recipe"], row["task"], row["stage"]) == ("sac", "diffuse_topdown", "sac")
    td3_bc = runpy.run_path(str(EXAMPLES / "td3_bc.py"))
    data = str(tmp_path / "whole" / "replay.npz")
    options = {"iterations": 2, "eval_every": 0, "eval_episodes": 2, "batch_size": 16, "runs": str(tmp_path)}
    td3_bc["main"](td3_bc["Args"](data=data, models=files[1], name="offline", **options))
    assert "behaviour" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["td3_bc", "cql", "iql"])
def test_five_plain_arrays_train_as_our_own_file_does(files, tmp_path, script):
    data, models = files
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    with np.load(data) as file:
        np.savez(tmp_path / "plain.npz", **{name: file[name] for name in names})
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    options = {"models": models, "iterations": 3, "eval_every": 0, "eval_episodes": 4, "runs": str(tmp_path)}
    options |= {"batch_size": 16, "references": False}
    example["main"](example["Args"](data=data, name="own", **options))
    with pytest.warns(DataWarning, match="does not say which models"):
        example["main"](example["Args"](data=str(tmp_path / "plain.npz"), name="plain", **options))
    own, plain = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("own", "plain"))
    assert own == plain
    assert script in own
    assert "oracle" not in own  # references were not asked for


def test_returns_to_go_end_with_the_episode():
    recipe = runpy.run_path(str(EXAMPLES / "return_flow_slates.py"))
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).unsqueeze(-1)
    done = torch.tensor([False, False, True, False, False]).unsqueeze(-1)
    expected = torch.tensor([1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0, 8 + 0.5 * 16, 16.0])
    torch.testing.assert_close(recipe["returns_to_go"](reward, done, 0.5).squeeze(-1), expected)


def test_a_return_that_is_not_finite_is_named_by_row(files, tmp_path, monkeypatch):
    recipe = runpy.run_path(str(EXAMPLES / "return_flow_slates.py"))
    returns_to_go = recipe["returns_to_go"]
    monkeypatch.setitem(recipe["main"].__globals__, "returns_to_go", lambda *a: returns_to_go(*a) * torch.nan)
    shared = {"data": files[0], "models": files[1], "runs": str(tmp_path), "name": "run", "width": 16}
    with pytest.raises(NonFiniteError, match=r"Update 1: loss_flow = nan .*'observation' \(row \d+: nan\)"):
        recipe["main"](recipe["Args"](**shared, batch_size=32, iterations=3))


def test_guidance_moves_from_the_free_flow_through_the_conditional_one():
    recipe = runpy.run_path(str(EXAMPLES / "return_flow_slates.py"))
    config = FlowActorConfig(action_dim=2, state_dim=4, obs_horizon=1, pred_horizon=1, act_horizon=1, num_steps=1)
    actor = make_flow_actor(config)
    for parameter in actor.parameters():  # the last layer of a new flow is zero
        torch.nn.init.normal_(parameter, std=0.3)
    state = torch.randn(5, 3)

    def act(guidance):
        torch.manual_seed(0)
        return recipe["GuidedFlow"](actor, 1.5, guidance)(TensorDict({"observation": state}, [5]))["action"]

    torch.manual_seed(0)
    noise = torch.randn(5, 1, 2)
    both = []
    for value in (recipe["UNASKED"], 1.5):
        inputs = torch.cat([state, torch.full((5, 1), value)], -1).unsqueeze(-2)
        both.append(actor(TensorDict({"observation": inputs, "noise": noise}, [5]))["action"].squeeze(-2))
    free, asked = both
    assert (free - asked).abs().max() > 1e-3
    torch.testing.assert_close(act(0.0), free)
    torch.testing.assert_close(act(1.0), asked)
    torch.testing.assert_close(act(3.0), free + 3 * (asked - free))  # one step is linear in the velocity


def test_grid_plans_and_tabulates(tmp_path, monkeypatch):
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    args = grid["Args"](envs=("diffuse_mix",), algorithms=("bc", "iql"), seeds=(0, 1), directory=str(tmp_path))
    runs = grid["plan"](args)
    assert [run.name for run in runs] == [
        "bc-diffuse_mix-0",
        "iql-diffuse_mix-0",
        "bc-diffuse_mix-1",
        "iql-diffuse_mix-1",
    ]
    assert "--alpha 0.0" in runs[0].shell()
    for run, score in zip(runs[:3], (10.0, 20.0, 14.0)):
        run.directory.mkdir()
        (run.directory / "evaluation.json").write_text(json.dumps({run.variant.category: score}))
    from torchrl_flow.sweeps.plan import run_status

    compared = {"diffuse_mix": dict.fromkeys(grid["REFERENCES"], 7.0)}
    finished = [run for run in runs if run_status(run).state == "finished"]
    table = grid["make_table"](args, finished, compared).splitlines()
    assert "| bc | 12.0 ± 2.8 (2) |" in table
    assert "| iql | 20.0 (1) |" in table
    assert "| oracle | 7.0 |" in table
    with pytest.raises(SystemExit, match="must be of the known ones"):
        grid["plan"](grid["Args"](algorithms=("dqn",)))


def test_references_of_the_grid_are_measured_once_and_recorded(files, tmp_path, monkeypatch):
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    args = grid["Args"](envs=("diffuse_topdown",), steps=600, eval_episodes=4, directory="grid", results="r.csv")
    monkeypatch.chdir(tmp_path)
    for source, target in zip(files, (grid["data_sets"](args)["diffuse_topdown"].path, SlateModelsArgs().path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    Path("grid").mkdir()
    data = grid["data_sets"](args)["diffuse_topdown"].path
    first, second = (grid["references"](args, "diffuse_topdown", data) for _ in range(2))
    assert first == second
    next(Path("grid").glob("references-*.json")).unlink()  # killed between the rows and the file that says so
    assert grid["references"](args, "diffuse_topdown", data) == first
    rows = list(csv.DictReader(Path("r.csv").read_text().splitlines()))
    assert [row["recipe"] for row in rows] == list(grid["REFERENCES"])
    assert {row["recipe"]: float(row["return"]) for row in rows} == pytest.approx(first, rel=1e-5)


def test_grid_names_data_of_the_third_party():
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    args = grid["Args"](envs=("sardine/SlateTopK-Bored-v0",), algorithms=("iql",), seeds=(0,))
    (run,) = grid["plan"](args)
    assert run.name == "iql-sardine-SlateTopK-Bored-v0-0"
    assert "--data data/SlateTopK-Bored-v0-500.npz" in run.shell()


def test_grid_budgets_are_those_of_the_preset_unless_they_are_given():
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    options = {"envs": ("diffuse_mix",), "algorithms": ("cql",), "seeds": (0,)}
    commands = [
        grid["plan"](grid["Args"](**options, **budget))[0].shell()
        for budget in ({}, {"preset": "short"}, {"preset": "short", "iterations": 7})
    ]
    assert "--iterations" not in commands[0]
    assert "--iterations 1000 --lr 0.001 --bc-updates 300" in commands[1]
    assert "--iterations 7 --lr 0.001 --bc-updates 300" in commands[2]
    assert all("--no-references" in command for command in commands)


def test_grid_crosses_data_and_weights():
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    options = {"envs": ("diffuse_mix", "sardine/X"), "policies": ("medium", "expert"), "seeds": (0,)}
    args = grid["Args"](**options, algorithms=("td3_bc", "iql"), alphas=(0.5, 2.0))
    runs = {run.name: run.shell() for run in grid["plan"](args)}
    data = ("diffuse_mix", "diffuse_mix-expert", "sardine-X")
    assert list(runs) == [f"{row}-{name}-0" for row in ("td3_bc_0.5", "td3_bc_2", "iql") for name in data]
    assert "--alpha 0.5" in runs["td3_bc_0.5-diffuse_mix-0"]
    assert "data/diffuse_mix-expert-300000.npz" in runs["iql-diffuse_mix-expert-0"]
    assert "--alpha" not in runs["iql-diffuse_mix-0"]


def test_grid_that_is_stopped_leaves_finished_runs_alone_and_goes_on_with_the_others(files, tmp_path, monkeypatch):
    grid = runpy.run_path(str(EXAMPLES / "offline_grid.py"))
    options = {"envs": ("diffuse_topdown",), "algorithms": ("bc", "td3_bc"), "seeds": (0,), "steps": 600}
    args = grid["Args"](**options, iterations=6, eval_episodes=2, directory="grid", results="r.csv", workers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for source, target in zip(files, (grid["data_sets"](args)["diffuse_topdown"].path, SlateModelsArgs().path)):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    started, saves, save = [], [], Run.save

    def execute(run: plan.SweepRun, threads: int) -> int:
        started.append(run.name)
        # A module that is imported, so that the types of its options can be read.
        example = vars(importlib.import_module(Path(run.command[1]).stem))
        example["main"](tyro.cli(example["Args"], args=[*run.command[2:], "--save-every", "2", "--batch-size", "16"]))
        return 0

    def die_in_the_second(self: Run):
        saves.append(f"{self.directory.name} {self.step}")
        if saves[-1] == "td3_bc-diffuse_topdown-0 4" and saves.count(saves[-1]) == 1:
            raise KeyboardInterrupt
        return save(self)

    monkeypatch.setattr(plan, "_has_ray", False)
    monkeypatch.setattr(plan, "_execute", execute)
    monkeypatch.setattr(Run, "save", die_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        grid["main"](args)
    kept = Path("grid/bc-diffuse_topdown-0/evaluation.json").stat().st_mtime_ns
    grid["main"](args)
    assert started == ["bc-diffuse_topdown-0", *2 * ["td3_bc-diffuse_topdown-0"]]
    assert saves[-3:] == [f"td3_bc-diffuse_topdown-0 {step}" for step in (4, 4, 6)]  # from step 2 on
    assert Path("grid/bc-diffuse_topdown-0/evaluation.json").stat().st_mtime_ns == kept
    grid["main"](args)
    rows = list(csv.DictReader(Path("r.csv").read_text().splitlines()))
    assert [row["recipe"] for row in rows] == ["bc", "td3_bc", *grid["REFERENCES"]]
    table = Path("grid/table.md").read_text(encoding="utf-8")
    assert f"| td3_bc | {float(rows[1]['return']):.1f} (1) |" in table
