"""The help of a program without the program: what it says, and what it does not import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_flow.commands.command_line import COMMANDS, _source, command_class
from torchrl_flow.commands.options_source import options_alone
from torchrl_flow.commands.recipes import find_recipes, recipe_folder
from torchrl_flow.options import parse_options

RECIPES = find_recipes()


def help_of(options_class, capsys):
    with pytest.raises(SystemExit) as left:
        parse_options(options_class, prog="program", args=["--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_the_help_of_a_recipe_is_that_of_its_whole_script(name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(recipe_folder())
    alone = options_alone(RECIPES[name][0], "Args")
    module = importlib.import_module(name)
    assert sys.modules[alone.__module__].__doc__ == module.__doc__
    assert help_of(alone, capsys) == help_of(module.Args, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_that_of_its_whole_module(name, capsys):
    assert help_of(options_alone(*_source(name)), capsys) == help_of(command_class(name), capsys)


def test_no_help_imports_what_takes_seconds():
    words = [["run", name] for name in RECIPES] + [[name] for name in COMMANDS]
    code = "import contextlib, io, sys\nfrom torchrl_flow.commands.command_line import main\n"
    code += f"for words in {words!r}:\n"
    code += "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
    code += "        main([*words, '--help'])\n"
    code += "    assert 'usage' in out.getvalue(), words\n"
    code += "    slow = {'torch', 'numpy', 'h5py', 'gymnasium', 'matplotlib'} & set(sys.modules)\n"
    code += "    assert not slow, (words, slow)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_only_methods_need_is_not_executed(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "import nothing_of_this_name\n"
        "from pathlib import Path, PurePath\n"
        "SIZE = SMALL = 3\n"
        "LARGE: int = SMALL + 4\n"
        "raise RuntimeError('the program runs')\n"
        "class Base:\n"
        "    depth: int = SMALL\n"
        "    width: int = LARGE\n"
        "@dataclasses.dataclass\n"
        "class Args(Base):\n"
        "    where: Path = Path('here')\n"
        "    def run(self): return nothing_of_this_name.run(PurePath())\n"
    )
    args = options_alone(file, "Args")
    assert (args().where, args().depth, args().width) == (Path("here"), 3, 7)
    assert not hasattr(sys.modules[args.__module__], "PurePath")
    with pytest.raises(KeyError, match="defines no class Options"):
        options_alone(file, "Options")
