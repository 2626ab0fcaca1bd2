"""What is typed, and what is imported for it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_flow.commands.command_line import ALIASES, COMMANDS, GROUPS, OWN, command_class
from torchrl_flow.commands.recipes import find_recipes

ROOT = Path(__file__).parents[2]


def typed(*words, cwd=ROOT, code=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    call = [sys.executable, "-m", "torchrl_flow", *words] if code is None else [sys.executable, "-c", code, *words]
    return subprocess.run(call, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["recipes"], ["recipes", "--help"], ["run", "--help"], ["runs", "--help"]]
)
def test_what_needs_no_torch_answers_at_once(words):
    code = (
        "import sys, torchrl_flow.__main__ as m\n"
        "try:\n    m.main()\n"
        "finally:\n    print([n for n in ('torch', 'torchrl', 'tensordict', 'numpy') if n in sys.modules])"
    )
    done = typed(*words, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, torchrl_flow; dir(torchrl_flow); print([n for n in ('torch', 'numpy') if n in sys.modules])"
    done = typed(code=code)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_names_every_command_once():
    text = typed("--help").stdout
    named = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.strip()]
    assert sorted(named) == sorted([*COMMANDS, *OWN])
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(named)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    kind = command_class(name)
    assert kind.__doc__
    assert set(ALIASES.values()) <= set(COMMANDS)


def test_version():
    from torchrl_flow import __version__

    assert typed("--version").stdout.split() == ["torchrl_flow", __version__]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evalute"], "evaluate"),
        (["Recipes"], "recipes"),
        (["compair", "a"], "compare"),
        (["run", "Quickstart"], "quickstart"),
        (["run", "awsc-online"], "awsc_online"),
        (["run", "shortcut_bc_flow"], "shortcut_flow_bc"),
        (["--versoin"], "versions"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_likely_one(words, meant):
    done = typed(*words)
    assert done.returncode != 0
    assert f"Did you mean {meant}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unlike_name_is_answered_with_all():
    done = typed("xyzzy")
    assert done.returncode == 2
    assert "Did you mean" not in done.stderr
    assert all(name in done.stderr for name in COMMANDS)


def test_a_recipe_comes_before_its_options():
    done = typed("run", "--task", "planar")
    assert done.returncode == 2
    assert "run NAME --task planar" in done.stderr


@pytest.mark.parametrize("words", [["run", "quickstart"], ["evaluate"]])
@pytest.mark.parametrize("program", ["torchrl-flow", "python -m torchrl_flow"])
def test_usage_shows_what_was_typed(words, program, tmp_path):
    code = None
    if program == "torchrl-flow":  # as the console script starts it
        code = "import sys; sys.argv[0] = '/venv/bin/torchrl-flow'; from torchrl_flow.__main__ import main; main()"
    done = typed(*words, "--help", code=code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"usage: {program} {' '.join(words)} [-h]" in " ".join(done.stdout.split())


def test_help_of_quickstart_does_not_train(tmp_path):
    done = typed("run", "quickstart", "--help", cwd=tmp_path)
    assert "--iterations" in done.stdout
    assert "clone:" not in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_the_line_of_each_recipe_is_its_own():
    for path, line in find_recipes().values():
        assert line == ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n", 1)[0]


RECIPE = '''"""A recipe."""
import multiprocessing, sys
import beside

def square(x):
    return beside.square(x)

if __name__ == "__main__":
    from torchrl_flow.util import command_line
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [3]), __file__, sys.argv[1:])
    print(command_line())
    raise SystemExit(5)
'''


def test_a_recipe_is_main_finds_its_neighbours_and_starts_processes(tmp_path):
    (tmp_path / "quickstart.py").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "beside.py").write_text("def square(x):\n    return x * x\n", encoding="utf-8")
    start = tmp_path / "start.py"
    start.write_text(
        "import pathlib, sys\n"
        "if __name__ == '__main__':\n"
        "    import torchrl_flow.commands.recipes as recipes\n"
        f"    recipes.recipe_folder = lambda: pathlib.Path({str(tmp_path)!r})\n"
        "    recipes.run_recipe('quickstart', ['--a', 'b c'], 'torchrl-flow')\n",
        encoding="utf-8",
    )
    done = typed(code=start.read_text(encoding="utf-8"), cwd=tmp_path.parent)
    assert done.returncode == 5, done.stderr
    assert done.stdout.splitlines() == [
        f"[9] {tmp_path / 'quickstart.py'} ['--a', 'b c']",
        "torchrl-flow run quickstart --a 'b c'",
    ]


@pytest.mark.slow
def test_completion_knows_commands_recipes_and_options(tmp_path):
    done = typed("--tyro-print-completion", "bash")
    assert done.returncode == 0, done.stderr
    script = tmp_path / "completion.bash"
    ask = """
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _tyro_torchrl_flow; echo "${COMPREPLY[*]}"; }
try torchrl-flow evalu
try torchrl-flow run awsc_on
try torchrl-flow run awsc_online --polic
"""
    script.write_text(done.stdout + ask, encoding="utf-8")
    answers = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    assert [line.strip() for line in answers.stdout.splitlines()] == ["evaluate", "awsc_online", "--policy"]
    assert typed("--tyro-print-completion", "zsh").stdout.startswith("#compdef torchrl-flow")


def test_a_reader_that_stops_is_no_error():
    code = "import os, sys; os.close(0); from torchrl_flow.__main__ import main; main(['recipes'])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
