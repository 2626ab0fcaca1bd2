"""Online stages in an environment of the user's own without success, in this process and as small as they run."""

from __future__ import annotations

import csv
import os
import runpy
from pathlib import Path

import pytest

from tests.examples import own_env
from torchrl_flow.data import DemoStore
from torchrl_flow.envs.own import TRUSTED
from torchrl_flow.evaluation import EvaluationResult
from torchrl_flow.policies import load_acting_policy
from torchrl_flow.runs import load_checkpoint, read_metrics

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAIN = "tests.examples.own_env:make_plain"
SHORT = {"results": "r.csv", "eval_episodes": 2, "num_videos": 0}
ONLINE = {"policy": "runs/bc", "num_envs": 2, "save_every": 1, "eval_every": 1, "log_every": 1, **SHORT}
STEER = {**ONLINE, "hidden_sizes": (16, 16), "rollout": 2, "iterations": 4}
STAGES = {
    "dsrl_ppo": {**STEER, "minibatch": 4},
    "dsrl_sac_online": {**STEER, "batch_size": 8, "warm_up": 0, "num_qs": 2},
    "awsc_online": {**ONLINE, "chunks": 16, "chunks_per_batch": 2, "batch_size": 8, "load_critic": False},
}


def play(script, **options):
    example = runpy.run_path(str(EXAMPLES / f"{script}.py"))
    example["main"].__globals__["validation_seeds"] = lambda episodes: range(2)
    example["main"](example["Args"](**options))
    return Path("runs") / options["name"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run ``bc`` of a policy that clones demonstrations of the task."""
    folder, before, trusted = tmp_path_factory.mktemp("plain"), Path.cwd(), os.environ.get(TRUSTED)
    os.chdir(folder)
    DemoStore.from_episodes(map(own_env.demonstrate, range(6)), folder / "demos")
    sizes = {"width": 16, "depth": 1, "pred_horizon": 4, "act_horizon": 4, "obs_horizon": 1}
    options = {"task": PLAIN, "demos": str(folder / "demos"), "iterations": 4, "batch_size": 16, "num_steps": 1}
    play("shortcut_flow_bc", name="bc", compare_steps=(), **options, **sizes, **SHORT)
    yield folder
    os.chdir(before)
    os.environ.pop(TRUSTED, None)
    os.environ.update({} if trusted is None else {TRUSTED: trusted})


@pytest.mark.parametrize("script", STAGES)
def test_the_best_checkpoint_has_the_highest_return(script, folder, monkeypatch):
    returns = iter([1.0, 5.0, 3.0, 2.0])
    metrics = EvaluationResult.metrics

    def of_training(self, *prefix):
        found = metrics(self, *prefix)
        return {**found, "eval/return": next(returns)} if "eval/return" in found else found

    monkeypatch.setattr(EvaluationResult, "metrics", of_training)
    run = play(script, name=script, **STAGES[script])
    assert next(returns, None) is None
    assert [load_checkpoint(run, which=which).step for which in ("best", "last")] == [2, 4]
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {
        f"checkpoint-{step:012d}.torchrl" for step in (2, 3, 4)
    }
    table = read_metrics(run / "metrics.csv")
    assert "eval/success_once" not in table
    assert not any("success" in name for name in table)
    with open("r.csv", encoding="utf-8") as file:
        (row,) = [row for row in csv.DictReader(file) if row["recipe"] in (script, "dsrl_sac", "awsc")][-1:]
    assert (row["task"], row["success_once"], row["success_at_end"]) == (PLAIN, "", "")
    assert float(row["return"]) >= 0.0
    policy, _ = load_acting_policy(load_checkpoint(run, which="best"))
    assert policy is not None
