"""Directory, names, descriptions and execution of the recipes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import NoReturn

from torchrl_flow.commands.options_source import options_alone
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["find_recipes", "list_recipes", "recipe_folder", "run_recipe"]

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folder() -> Path:
    """Return the directory of the recipes: inside an installed package, ``examples/`` of a checkout.

    Raises:
        SystemExit: if neither directory exists.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "examples"):
        if (folder / "quickstart.py").is_file():
            return folder
    raise SystemExit(
        f"There are no recipes in {_PACKAGE / 'recipes'}: the installation is not complete. "
        "Run `pip install --force-reinstall --no-deps torchrl-flow`."
    )


def find_recipes() -> dict[str, tuple[Path, str]]:
    """Find the recipes; return script and first docstring line by name."""
    return {path.stem: (path, _first_line(path)) for path in sorted(recipe_folder().glob("[!_]*.py"))}


def _first_line(path: Path) -> str:
    """Return the first line of a docstring, without parsing the script, which is slow."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().removeprefix("r").strip('"').strip()


def list_recipes(program: str) -> str:
    """Return one line for each recipe, and the command to run one."""
    recipes = find_recipes()
    width = max(map(len, recipes))
    lines = [f"{name:{width}}  {line}" for name, (_, line) in recipes.items()]
    return "\n".join(
        [*lines, "", f"Run one with `{program} run NAME [OPTIONS]`; `{program} run NAME --help` shows them."]
    )


def run_recipe(name: str, options: list[str], program: str) -> NoReturn:
    """Run a recipe in this process as ``python script.py`` would: as ``__main__``, with its directory in ``sys.path``.

    Args:
        name: name of the recipe, with or without ``.py``.
        options: options of the recipe, including ``--help``.
        program: command before ``run``, as typed; it is shown in usage lines and provenance.

    Raises:
        SystemExit: if the recipe is unknown (the error names the most similar one); otherwise with the recipe's status.
    """
    recipes = find_recipes()
    name = name.removesuffix(".py")
    if name not in recipes:
        raise SystemExit(f"There is no recipe {name!r}.{did_you_mean(name, recipes)} There are: {', '.join(recipes)}.")
    script = recipes[name][0]
    sys.argv = [f"{program} run {name}", *options]
    if {"-h", "--help"} & set(options):
        from torchrl_flow.options import parse_options

        args = options_alone(script, "Args")
        parse_options(args, description=sys.modules[args.__module__].__doc__)
    # Python puts a script's directory first; processes started by `spawn` inherit it.
    sys.path.insert(0, str(script.parent))
    # `runpy.run_path` would replace the typed command by the path of the script.
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    exec(compile(script.read_bytes(), str(script), "exec"), module.__dict__)
    raise SystemExit(0)
