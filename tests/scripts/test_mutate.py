"""The script that changes the equations: what it changes, and which tests see it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
assert spec is not None
assert spec.loader is not None
mutate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)

SOURCE = '''
"""A module, whose text and constants outside functions stay."""
LIMIT = 3

def share(values: "list[float]", least=1):
    if len(values) < least:
        raise ValueError(f"at least {least + 1} are needed")
    return not all(v * 2 >= 0 for v in values)
'''


def test_what_runs_is_changed_and_nothing_else(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE, encoding="utf-8")
    found = {text for _, text, _ in mutate.mutants(path)}
    assert found == {
        "1 -> 2",  # the default
        "len(values) < least -> len(values) <= least",
        "not all((v * 2 >= 0 for v in values)) -> not not all((v * 2 >= 0 for v in values))",
        "v * 2 >= 0 -> v * 2 > 0",
        "v * 2 -> v / 2",
        "2 -> 3",
        "0 -> 1",
    }


def test_a_change_is_made_in_a_copy(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE, encoding="utf-8")
    whole = ast.dump(ast.parse(SOURCE))
    trees = [tree for *_, tree in mutate.mutants(path)]
    assert all(ast.dump(tree) != whole for tree in trees)
    assert len({ast.dump(tree) for tree in trees}) == len(trees)


@pytest.mark.parametrize("folder", [mutate.FUNCTIONAL, mutate.TRANSFORMS])
def test_every_module_has_tests(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.stem != "__init__" and any(True for _ in mutate.mutants(path)):
            assert all((ROOT / test).is_file() for test in mutate.tests_of(path)), path
