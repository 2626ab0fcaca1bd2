"""The suite of all results: what it plans, and a tiny one from clones to the table."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from tests.examples.test_reinflow import ENVIRONMENT, ROOT
from torchrl_flow.commands.recipes import recipe_folder
from torchrl_flow.options import check_options, parse_options

SCRIPT = ROOT / "examples" / "benchmark_suite.py"


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(recipe_folder())
    return importlib.import_module("benchmark_suite")


def test_every_stage_starts_from_the_one_before_it_and_of_its_seed(suite):
    levels = suite.plan(suite.Args(tasks=("planar", "PickCube-v1"), seeds=(0, 3)))
    names = [{run.name for run in level} for level in levels]
    tasks = ("planar", "PickCube-v1")
    assert names[0] == {f"{task}-clone-{seed}" for task in tasks for seed in (0, 3)}
    assert {name for name in names[1] if name.endswith("-3") and name.startswith("planar")} == {
        "planar-awsc-stage1-3",
        "planar-dsrl_ppo-3",
        "planar-dsrl_sac-3",
        "planar-dsrl_na-3",
        "planar-reinflow-3",
    }
    assert names[2] == {f"{task}-awsc-{seed}" for task in tasks for seed in (0, 3)}
    earlier: set[str] = set()
    for level in levels:
        for run in level:
            if "--policy" in run.command:
                policy = run.command[run.command.index("--policy") + 1]
                assert policy in earlier, run.name
                assert policy.rsplit("-", 1)[1] == str(run.seed)
                assert run.name.split("-")[0] in policy
        earlier |= {str(run.directory) for run in level}


def test_every_command_is_one_that_its_recipe_takes(suite):
    for level in suite.plan(suite.Args(tasks=("PickCube-v1",))):
        for run in level:
            _, script, *words = run.command
            module = importlib.import_module(script.rsplit("/", 1)[1].removesuffix(".py"))
            args = parse_options(module.Args, args=words)
            check_options(args, here=False)
            assert args.seed == 0


def budgets(suite, run):
    words = run.command
    options = {name: "--" + name.replace("_", "-") for name in suite.BUDGETS}
    return {name: int(words[words.index(option) + 1]) for name, option in options.items() if option in words}


def test_budgets_of_every_stage_are_scaled_and_the_clone_is_not(suite):
    whole, part = (suite.plan(suite.Args(scale=scale)) for scale in (1.0, 0.5))
    assert [run.command for run in whole[0]] == [run.command for run in part[0]]
    pairs = [pair for levels in zip(whole[1:], part[1:], strict=True) for pair in zip(*levels, strict=True)]
    assert len(pairs) == sum(map(len, suite.ALGORITHMS.values()))
    for run, half in pairs:
        assert budgets(suite, run), f"{run.name} has no budget"
        assert {name: round(value / 2) for name, value in budgets(suite, run).items()} == budgets(suite, half), run.name
    (steps,) = [budgets(suite, half) for run, half in pairs if run.name == "PickCube-v1-reinflow-0"]
    assert steps == {"total_env_steps": 300_000}


def test_the_network_is_that_of_the_clones_only(suite):
    levels = suite.plan(suite.Args(network="concat_mlp", algorithms=("awsc",)))
    options = [run.variant.options for level in levels for run in level]
    assert [one.get("network") for one in options] == ["concat_mlp", None, None]


def test_an_unknown_algorithm_is_refused(suite):
    with pytest.raises(SystemExit, match=r"--algorithms must be one or more of awsc, .*, got sac\."):
        suite.main(suite.Args(algorithms=("sac",)))


@pytest.mark.slow
def test_a_tiny_suite_ends_in_a_table_and_goes_on_where_it_was_stopped(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--tasks",
        "planar",
        "--algorithms",
        "dsrl_sac",
        "reinflow",
        "--scale",
        "0.08",
    ]
    command += ["--eval-episodes", "5", "--num-envs", "8", "--directory", "suite", "--results", "results.csv"]
    command += ["--workers", "1", "--threshold", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("planar-clone", "planar-dsrl_sac", "planar-reinflow"):
        assert re.search(rf"\| .*{name} .*\|", done.stdout), done.stdout
    assert len((tmp_path / "results.csv").read_text().splitlines()) >= 4
    assert (tmp_path / "suite" / "results.html").exists()
    before = {path: path.stat().st_mtime for path in tmp_path.glob("suite/*/evaluation.json")}
    again = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert before == {path: path.stat().st_mtime for path in tmp_path.glob("suite/*/evaluation.json")}
