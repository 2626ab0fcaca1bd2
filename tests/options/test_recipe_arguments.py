"""What the shared options make of a recipe's run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torchrl_flow.options import OnlineArgs, TrainingArgs


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
        "max_episode_steps": 7,
        "after_success": "continue",
        "gamma": 0.5,
        "episodes": 100,
    }
