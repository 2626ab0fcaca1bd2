"""Options of recipes: in groups, each with its help, and read as tyro reads the dataclass itself."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Literal

import pytest
import tyro

from torchrl_flow.options import GROUPS, Count, Positive, option_group, parse, parse_options

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "parse_options(" in path.read_text(encoding="utf-8"))


@dataclasses.dataclass
class Base:
    """What two recipes share."""

    seed: int = 0
    """seed of the run"""


@dataclasses.dataclass
class Args(Base):
    """Options of a small recipe."""

    policy: str = "runs/bc"
    """where to start"""
    lr: Positive = 1e-3
    """learning rate"""
    num_envs: Count | None = None
    """environments; a choice of the task's where none is given"""
    kind: Literal["a", "b"] | None = None
    """first line
    and second line"""
    hidden_sizes: tuple[int, ...] = (8, 8)
    """hidden layers"""
    resume: bool = False
    """go on"""


def test_values_are_those_of_the_plain_dataclass():
    words = [
        "--lr",
        "0.5",
        "--hidden-sizes",
        "3",
        "4",
        "5",
        "--kind",
        "b",
        "--resume",
        "--seed",
        "7",
        "--num-envs",
        "12",
    ]
    found = parse_options(Args, args=words)
    assert found == Args(seed=7, lr=0.5, num_envs=12, kind="b", hidden_sizes=(3, 4, 5), resume=True)
    assert found == tyro.cli(Args, args=words)
    assert parse_options(Args, args=[]) == Args()
    assert parse_options(Args, args=["--num-envs", "None"]).num_envs is None


def test_a_few_options_are_one_list(capsys):
    with pytest.raises(SystemExit):
        parse_options(Args, args=["--help"])
    out = capsys.readouterr().out
    assert [group for group in GROUPS if f"{group} options" in out] == ["run"]


def test_the_help_has_groups_and_no_empty_defaults(capsys, monkeypatch):
    monkeypatch.setattr(parse, "FEW", 2)
    with pytest.raises(SystemExit):
        parse_options(Args, args=["--help"])
    out = capsys.readouterr().out
    order = [out.index(f"{group} options") for group in ("start", "environment", "network", "training", "run")]
    assert order == sorted(order)
    assert "evaluation options" not in out
    assert "None" not in out
    assert "first line and second line" in " ".join(out.replace("│", " ").split())
    assert "--num-envs INT" in out
    assert "--kind {a,b}" in out


def test_no_option_is_in_two_groups():
    names = [name for names in GROUPS.values() for name in names.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_of_a_recipe_is_described_and_grouped(recipe, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))  # recipes import one another by name
    options = importlib.import_module(f"examples.{recipe}").Args
    with pytest.raises(SystemExit):
        parse_options(options, args=["--help"])
    out = capsys.readouterr().out
    fields = dataclasses.fields(options)
    groups = {option_group(field.name) for field in fields} if len(fields) > parse.FEW else {"run"}
    assert all(f"{group} options" in out for group in groups)
    for field in dataclasses.fields(options):
        assert f"--{field.name.replace('_', '-')}" in out
    assert len(RECIPES) >= 18
