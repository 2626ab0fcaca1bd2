"""Command line of torchrl_flow: ``python -m torchrl_flow``."""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from torchrl_flow._version import __version__

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def find_recipes() -> dict[str, tuple[Path, str]]:
    """Find the recipes of the repository: name, script, and the first line of what it says of itself.

    Raises:
        SystemExit: if the library was installed without the repository.
    """
    if not EXAMPLES.is_dir():
        raise SystemExit(
            f"There are no recipes in {EXAMPLES}: they belong to the repository, not to the installed package. "
            "Clone it and install it with `pip install -e .` (or `make install`)."
        )
    found = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = (path, text.split("\n", 1)[0])
    return found


@dataclasses.dataclass
class Recipes:
    """List the recipes."""

    def __call__(self) -> None:
        """Print a line for each."""
        recipes = find_recipes()
        width = max(map(len, recipes))
        for name, (_, line) in recipes.items():
            print(f"{name:{width}}  {line}")
        print("\nRun one with `python -m torchrl_flow run NAME [--help | its options]`.")


@dataclasses.dataclass
class Run:
    """Run a recipe: `run NAME [its options]`; `run NAME --help` tells them."""

    name: Annotated[str, tyro.conf.Positional]
    """name of the recipe"""

    def __call__(self, options: list[str]) -> None:
        """Go on as a Python that was given the script: it finds the scripts beside it, and so do its own workers."""
        recipes = find_recipes()
        if self.name not in recipes:
            raise SystemExit(f"There is no recipe {self.name!r}. There are: {', '.join(recipes)}.")
        command = [sys.executable, str(recipes[self.name][0]), *options]
        sys.stdout.flush()
        if sys.platform == "win32":
            # There `os.execv` would return to the shell before the recipe ends.
            raise SystemExit(subprocess.call(command))
        os.execv(sys.executable, command)


@dataclasses.dataclass
class Versions:
    """Print the versions that matter, and what of the system is missing."""

    def __call__(self) -> None:
        """Print a line for each."""
        from torchrl_flow.training import collect_versions

        for name, version in collect_versions().items():
            print(f"{name:14} {version}")
        print(f"{'state tasks':14} {_state_tasks()}")
        print(f"{'rendering':14} {_rendering()}")


def _state_tasks() -> str:
    from torchrl_flow.envs import ManiSkillUnavailableError
    from torchrl_flow.envs.maniskill.requirements import require_maniskill

    try:
        require_maniskill()
    except ManiSkillUnavailableError as error:
        return f"no: {error}"
    return "ManiSkill works in state mode"


def _rendering() -> str:
    from torchrl_flow.envs import RenderDeviceError
    from torchrl_flow.envs.maniskill.requirements import require_render_backend

    try:
        return f"ManiSkill renders ({require_render_backend('rendering')})"
    except RenderDeviceError as error:
        return f"no: {error}"


def _command() -> type:
    from torchrl_flow.training import (
        CheckBatchArgs,
        CollectSardineArgs,
        CollectSlatesArgs,
        CurvesArgs,
        EvaluateArgs,
        MakeDemosArgs,
        RelabelSlatesArgs,
        SlateModelsArgs,
    )

    def sub(kind: type, name: str) -> object:
        return Annotated[kind, tyro.conf.subcommand(name)]

    commands = [
        sub(Recipes, "recipes"),
        sub(Run, "run"),
        sub(MakeDemosArgs, "make-demos"),
        sub(EvaluateArgs, "evaluate"),
        sub(CheckBatchArgs, "check-batch"),
        sub(CurvesArgs, "curves"),
        sub(SlateModelsArgs, "slate-models"),
        sub(CollectSlatesArgs, "collect-slates"),
        sub(RelabelSlatesArgs, "relabel-slates"),
        sub(CollectSardineArgs, "collect-sardine"),
        sub(Versions, "versions"),
    ]
    from typing import Union

    return Union[tuple(commands)]  # type: ignore[return-value]  # noqa: UP007


def main() -> None:
    """Parse the command line and do what it says."""
    arguments = sys.argv[1:]
    options: list[str] = []
    if arguments[:1] == ["run"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        # What follows the recipe's name is the recipe's, --help included.
        arguments, options = arguments[:2], arguments[2:]
    command = tyro.cli(
        _command(),
        prog="python -m torchrl_flow",
        description=f"torchrl_flow {__version__}: flow policies on action chunks for TorchRL.",
        args=arguments or ["--help"],
    )
    if isinstance(command, Run):
        command(options)
    elif callable(command):
        command()
    else:
        from torchrl_flow.training import check_options, make_demonstrations, refusals_in_one_line

        check_options(command)
        with refusals_in_one_line():
            print(make_demonstrations(command).summary())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
