"""What the documentation shows of results is what the results file says."""

from __future__ import annotations

import csv
import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["make_figures", "make_tables"])
def test_figures_and_tables_are_up_to_date(script, monkeypatch):
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script, module)
    spec.loader.exec_module(module)
    if script == "make_tables":
        module.main(module.Args(check=True))
    else:
        monkeypatch.setattr(sys, "argv", [script, "--check"])
        module.main()


def test_a_bar_without_rows_is_refused():
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "docs" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="no row of 'awsc', stage '9', on 'planar'"):
        module.success("planar", "awsc", "9")
    assert module.success("planar", "awsc", "1") == [0.77, 0.772, 0.758]


@pytest.mark.parametrize("table", ["results/results.csv", "benchmarks/results.csv"])
def test_commands_of_the_tables_have_no_absolute_path(table):
    with (ROOT / table).open(encoding="utf-8", newline="") as file:
        commands = [row["command"] for row in csv.DictReader(file)]
    assert commands
    absolute = [command for command in commands if any(word.startswith(("/", "~")) for word in shlex.split(command))]
    assert not absolute, absolute[:3]
