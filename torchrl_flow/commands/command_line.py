"""Command line parser that imports only the modules of the chosen command."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torchrl_flow._version import __version__
from torchrl_flow.commands.options_source import options_alone
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["COMMANDS", "main", "program_name"]


class Command(NamedTuple):
    """A command whose arguments are a dataclass; ``__call__`` returns a text to print or the exit status."""

    where: str
    """module:class"""
    help: str


# A class is imported only when its command is chosen, so its docstring is not available here.
COMMANDS = {
    "runs": Command("torchrl_flow.commands.runs:RunsArgs", "List the runs: task, recipe, steps, success, age."),
    "compare": Command(
        "torchrl_flow.commands.compare:CompareArgs", "Compare runs: a table, and curves with bands over the seeds."
    ),
    "report": Command(
        "torchrl_flow.commands.report:ReportArgs", "Write the report of a run from its files, and print its path."
    ),
    "evaluate": Command(
        "torchrl_flow.commands.evaluate:EvaluateArgs",
        "Evaluate the policy of a run over fixed seeds and write a report.",
    ),
    "export": Command(
        "torchrl_flow.commands.export:ExportArgs",
        "Write the policy of a run as an archive and a helper that act with torch and NumPy alone.",
    ),
    "check-batch": Command(
        "torchrl_flow.commands.check_batch:CheckBatchArgs",
        "Compare many ManiSkill environments in one CPU process with single ones, bit for bit.",
    ),
    "curves": Command(
        "torchrl_flow.reports.curves:CurvesArgs",
        "Draw a metric of several runs against environment steps or seconds, as an SVG file.",
    ),
    "make-demos": Command(
        "torchrl_flow.demos.arguments:MakeDemosArgs", "Demonstrations of a ManiSkill task by its motion planner."
    ),
    "record": Command(
        "torchrl_flow.commands.record:RecordArgs", "Record the episodes of a run's policy, as demonstrations."
    ),
    "slate-models": Command(
        "torchrl_flow.recsys.model_training:SlateModelsArgs", "Train belief encoder and ranker of a slate env."
    ),
    "collect-slates": Command(
        "torchrl_flow.recsys.collect:CollectSlatesArgs", "Log transitions of a slate env to an .npz file."
    ),
    "relabel-slates": Command(
        "torchrl_flow.recsys.collect:RelabelSlatesArgs", "Recompute the observations and latents of logged slates."
    ),
    "collect-sardine": Command(
        "torchrl_flow.recsys.sardine_task:CollectSardineArgs", "Log transitions of a SARDINE env to an .npz file."
    ),
    "doctor": Command(
        "torchrl_flow.commands.doctor:DoctorArgs",
        "Check the installation: what works on this machine, and how to install the rest (also: versions).",
    ),
}
ALIASES = {"versions": "doctor"}
GROUPS = {
    "recipes": ("recipes", "run"),
    "runs": ("runs", "compare", "report", "evaluate", "export", "curves"),
    "data": ("make-demos", "record", "slate-models", "collect-slates", "relabel-slates", "collect-sardine"),
    "this machine": ("doctor", "check-batch"),
}
OWN = {"recipes": "List the recipes.", "run": "Run a recipe: `run NAME [OPTIONS]`."}
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


def program_name() -> str:
    """Return the program as typed: ``torchrl-flow`` or ``python -m torchrl_flow``."""
    return "torchrl-flow" if Path(sys.argv[0]).stem == "torchrl-flow" else "python -m torchrl_flow"


def help_text(program: str) -> str:
    """Return the usage and one line for each command."""
    width = max(len(name) for names in GROUPS.values() for name in names)
    lines = [
        f"usage: {program} [-h] [--version] COMMAND ...",
        "",
        f"torchrl_flow {__version__}: flow policies on action chunks for TorchRL.",
    ]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:{width}}  {OWN.get(name) or COMMANDS[name].help}" for name in names]
    lines += [
        "",
        f"`{program} COMMAND --help` shows the options of a command, `{program} run NAME --help` those of a recipe.",
        "Completion: `torchrl-flow --tyro-print-completion bash` (or zsh, tcsh) prints a script for your shell.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: words after the name of the program. Defaults to those of this process.
    """
    try:
        _dispatch(sys.argv[1:] if arguments is None else list(arguments), program_name())
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it. Python would print a further error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _dispatch(arguments: list[str], program: str) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text(program))
        return
    if arguments[0] in ("-V", "--version"):
        print(f"torchrl_flow {__version__}")
        return
    if arguments[0] in COMPLETION:
        from torchrl_flow.commands.completion import print_completion

        print_completion(arguments)
        return
    name, *rest = arguments
    name = ALIASES.get(name, name)
    if name == "run":
        _run(rest, program)
    elif name == "recipes":
        _recipes(rest, program)
    elif name in COMMANDS:
        _call(name, rest, f"{program} {arguments[0]}")
    else:
        known = [*OWN, *COMMANDS, *ALIASES]
        _refuse(
            f"there is no {'option' if name.startswith('-') else 'command'} {name!r}.{did_you_mean(name, known)} "
            f"There are: {', '.join([*OWN, *COMMANDS])}.",
            program,
        )


def _refuse(message: str, program: str) -> NoReturn:
    print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(2)


def _run(rest: list[str], program: str) -> None:
    from torchrl_flow.commands.recipes import list_recipes, run_recipe

    if rest and not rest[0].startswith("-"):
        run_recipe(rest[0], rest[1:], program)
    if rest and rest[0] not in ("-h", "--help"):
        _refuse(f"the recipe comes before its options: `{program} run NAME {' '.join(rest)}`.", program)
    usage = f"usage: {program} run NAME [OPTIONS]"
    if not rest:
        print(f"{usage}\n\n{list_recipes(program)}", file=sys.stderr)
        raise SystemExit(2)
    print(f"{usage}\n\nRun a recipe. There are:\n\n{list_recipes(program)}")


def _recipes(rest: list[str], program: str) -> None:
    from torchrl_flow.commands.recipes import list_recipes

    if rest and rest[0] in ("-h", "--help"):
        print(f"usage: {program} recipes\n\n{OWN['recipes']}")
        return
    if rest:
        _refuse(f"`recipes` takes no options, got {' '.join(rest)}.", program)
    print(list_recipes(program))


def command_class(name: str) -> Any:
    """Import the class of a command's arguments."""
    module, attribute = COMMANDS[name].where.split(":")
    return getattr(importlib.import_module(module), attribute)


def _source(name: str) -> tuple[Path, str]:
    """Return the file of a command's arguments, and their class in it."""
    module, attribute = COMMANDS[name].where.split(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"There is no file of {module}: the installation is not complete.")
    return Path(spec.origin), attribute


def _call(name: str, rest: list[str], program: str) -> None:
    from torchrl_flow.options import parse_options

    if {"-h", "--help"} & set(rest):
        parse_options(options_alone(*_source(name)), prog=program, args=rest)
    command = parse_options(command_class(name), prog=program, args=rest)
    if name == "make-demos":
        from torchrl_flow.demos import make_demonstrations
        from torchrl_flow.options import check_options, refusals_in_one_line

        check_options(command)
        with refusals_in_one_line():
            print(make_demonstrations(command).summary())
        return
    outcome = command()
    if isinstance(outcome, str):
        print(outcome)
    elif outcome:
        raise SystemExit(outcome)
