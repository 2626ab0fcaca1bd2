"""Shell completion: tyro writes the script from all commands and the options of all recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import sys
from typing import Annotated, Any, Union

import tyro

from torchrl_flow.commands.command_line import ALIASES, COMMANDS, OWN, command_class
from torchrl_flow.commands.recipes import find_recipes, recipe_folder

__all__ = ["print_completion"]

PROGRAM = "torchrl-flow"


@dataclasses.dataclass
class _Recipes:
    """List the recipes."""


def print_completion(arguments: list[str]) -> None:
    """Print the completion script for a shell, or write it to a file.

    Args:
        arguments: ``--tyro-print-completion SHELL`` or ``--tyro-write-completion SHELL FILE``.
    """
    kinds = [_sub(_Recipes, "recipes", OWN["recipes"]), _sub(_one_of(_recipe_kinds()), "run", OWN["run"])]
    kinds += [_sub(command_class(name), name, command.help) for name, command in COMMANDS.items()]
    kinds += [_sub(command_class(name), alias, COMMANDS[name].help) for alias, name in ALIASES.items()]
    tyro.cli(_one_of(kinds), prog=PROGRAM, args=arguments)


def _sub(kind: Any, name: str, description: str) -> Any:
    return Annotated[kind, tyro.conf.subcommand(name, description=description)]


def _one_of(kinds: list[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007


def _recipe_kinds() -> list[Any]:
    """Return the arguments of each recipe as a subcommand with its name."""
    sys.path.insert(0, str(recipe_folder()))
    kinds = []
    # Output that a recipe prints on import is not part of the script.
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        for name, (_, line) in find_recipes().items():
            kinds.append(_sub(importlib.import_module(name).Args, name, line))
    return kinds
