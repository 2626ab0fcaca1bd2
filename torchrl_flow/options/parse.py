"""Parser of a recipe's options on the command line, whose help shows them in groups."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import os
import textwrap
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["GROUPS", "TRACEBACK", "option_group", "parse_options"]

Options = TypeVar("Options")

GROUPS = {
    "start": "policy which init load_critic run stage1 models",
    "data": "data demos num_demos retime quality filter_policy_data cache",
    "environment": "task obs_mode control_mode max_episode_steps after_success env envs num_envs sim_backend",
    "network": (
        "network width depth obs_horizon pred_horizon act_horizon hidden_sizes layer_norm num_qs num_min_qs "
        "critic_hidden critic_sizes steer_mode latent_bound num_steps train_encoder mean_bound"
    ),
    "training": "",
    "evaluation": "eval_episodes eval_every evaluations episodes compare_steps noise_scales best_of num_videos",
    "logging": "wandb wandb_project wandb_group tensorboard log_every",
    "run": (
        "name runs directory output results label recipe seed seeds device threads workers gpus_per_run address "
        "save_every resume dry_run watch traceback"
    ),
}
"""Groups of options in the order of the help, with their option names; other options belong to training."""
TRACEBACK = "TORCHRL_FLOW_TRACEBACK"
"""Environment variable set by ``--traceback``; if it is set and not 0, errors are shown with their traceback."""
FEW = 9
"""Largest number of options that the help shows in one list without groups."""
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
_METAVARS = {int: "INT", float: "FLOAT", str: "STR"}


def option_group(name: str) -> str:
    """Return the group of an option.

    Examples:
        >>> option_group("num_envs"), option_group("utd_ratio")
        ('environment', 'training')
    """
    return _GROUP_OF.get(name, "training")


def parse_options(
    options_class: type[Options],
    *,
    description: str | None = None,
    args: Sequence[str] | None = None,
    prog: str | None = None,
) -> Options:
    """Read the fields of a dataclass from the command line.

    The help shows them in :data:`GROUPS`, or in one list if they are few. It omits the default ``None``; the
    description of the option states the behaviour instead. Every program has the option ``--traceback``.

    Args:
        options_class: dataclass whose fields are each followed by a string literal, the help of the option.
        description: description of the program. Defaults to the docstring of the class.
        args: words of the command line. Defaults to those of the process.
        prog: name of the program. Defaults to the name of the script.
    """
    import tyro

    grouped = _grouped(options_class)
    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[grouped],
        description=description or inspect.getdoc(options_class),
        args=args,
        prog=prog,
    )
    groups = [getattr(parsed, group.name) for group in dataclasses.fields(parsed)]
    values = {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    if values.pop("traceback"):
        os.environ[TRACEBACK] = "1"
    return options_class(**values)


def _grouped(options_class: Any) -> Any:
    """Return a dataclass of dataclasses, one for each group that has options."""
    import tyro

    hints, helps = get_type_hints(options_class, include_extras=True), _helps(options_class)
    fields = dataclasses.fields(options_class)
    members: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for field in fields:
        default: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory}
        given = {name: value for name, value in default.items() if value is not dataclasses.MISSING}
        hint = _described(field.name, hints[field.name], helps.get(field.name, ""), given)
        members[option_group(field.name) if len(fields) > FEW else "run"].append(
            (field.name, hint, dataclasses.field(**given))
        )
    traceback = Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="show the traceback of an error")]
    members["run"].append(("traceback", traceback, dataclasses.field(default=False)))
    groups = [
        (group, dataclasses.make_dataclass(group, fields, kw_only=True)) for group, fields in members.items() if fields
    ]
    return dataclasses.make_dataclass(options_class.__name__, groups, kw_only=True)


def _described(name: str, hint: Any, text: str, given: dict[str, Any]) -> Any:
    import tyro

    settings: dict[str, Any] = {"help": text}
    if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
        many, optional = get_origin(get_args(hint)[0]) is tuple, bool(given)
        settings["metavar"] = name.upper() + " ..." * many
        if many or optional:
            settings["metavar"] = f"[{settings['metavar']}]"
    elif (metavar := _metavar(hint)) is not None:
        settings["metavar"] = metavar
    if given.get("default", ...) in (None, ()):
        settings["help_behavior_hint"] = ""
    return Annotated[hint, tyro.conf.arg(**settings)]


def _metavar(hint: Any) -> str | None:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if len(kinds) != 1:
        return None
    kind = kinds[0]
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return _METAVARS.get(kind)


def _helps(options_class: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(options_class.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _helps_of_one(base)
    return found


@functools.cache
def _helps_of_one(options_class: Any) -> dict[str, str]:
    """Return the string literal below each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(options_class))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            value = following.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[node.target.id] = " ".join(value.value.split())
    return found
