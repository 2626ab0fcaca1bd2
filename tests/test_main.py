"""The command line: what it lists, runs and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def command(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    call = [sys.executable, "-m", "torchrl_flow", *arguments]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_names_every_command(arguments):
    done = command(*arguments)
    assert done.returncode == 0
    for name in ("recipes", "run", "make-demos", "evaluate", "doctor", "versions"):
        assert name in done.stdout


def test_recipes_are_listed_with_what_they_do():
    done = command("recipes")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()][: len(RECIPES)]
    assert [line[0] for line in lines] == RECIPES
    assert all(len(line) == 2 for line in lines)


def test_run_hands_options_and_help_to_the_recipe():
    done = command("run", "shortcut_flow_bc", "--help")
    assert done.returncode == 0, done.stderr
    assert "--num-demos" in done.stdout


@pytest.mark.parametrize("name", ["awsc_pipeline", "awsc_diagnose"])
def test_run_finds_the_scripts_that_a_recipe_imports(name, tmp_path):
    done = command("run", name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m torchrl_flow run {name} " in done.stdout


def test_unknown_recipe_names_those_there_are():
    done = command("run", "no_such_recipe")
    assert done.returncode != 0
    assert "no_such_recipe" in done.stderr
    assert "shortcut_flow_bc" in done.stderr


def test_versions_tell_what_the_system_can_do():
    done = command("versions")
    assert done.returncode == 0, done.stderr
    for name in ("torchrl_flow", "torch", "torchrl", "tensordict", "ManiSkill", "rendering"):
        assert name in done.stdout


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_evaluate_refuses_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "x.torchrl"
    path.write_bytes(content)
    done = command("evaluate", str(path))
    assert done.returncode != 0
    assert "x.torchrl" in done.stderr


def test_evaluate_says_when_there_is_nothing(tmp_path):
    done = command("evaluate", str(tmp_path / "nothing"))
    assert done.returncode != 0
    assert "there is nothing there" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tables_of_the_documentation_are_what_the_files_say():
    script = ROOT / "docs" / "make_tables.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), "--check"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
