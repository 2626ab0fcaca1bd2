"""The script that changes the equations: what it changes, and which tests see it."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

import torchrl_flow

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("mutate", ROOT / "scripts" / "mutate.py")
assert spec is not None
assert spec.loader is not None
mutate = importlib.util.module_from_spec(spec)
sys.modules["mutate"] = mutate  # for its dataclasses
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


MODULE = """
import functools

def once(function):
    return function

@once
@functools.lru_cache
def add(a, b=1):
    return a + b

def scale(a):
    def inner(b):
        return a * b
    return inner(2)

def unused(a):
    return a - 1
"""
TESTS = """
import time
from torchrl_flow.sums import add, scale

def test_scale():
    assert scale(3) == 6

def test_slow_add():
    time.sleep(0.2)
    assert add(2, 3) == 5

def test_add():
    assert add(2) == 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the package with its tests."""
    if not hasattr(os, "fork"):
        pytest.skip("forks")
    path, tests = tmp_path / "torchrl_flow" / "sums.py", tmp_path / "test_sums.py"
    path.parent.mkdir()
    path.write_text(MODULE, encoding="utf-8")
    tests.write_text(TESTS, encoding="utf-8")
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchrl_flow.__path__", [*torchrl_flow.__path__, str(path.parent)])
    return path, (str(tests),)


def test_the_tests_that_call_the_changed_function_come_first(module):
    path, tests = module
    calls = mutate.record(path, tests)
    names = {line: [test.split("::")[1] for test in found] for line, found in calls.tests.items()}
    # First lines with decorators. The decorator is called at the import, outside of the tests.
    assert names == {7: ["test_slow_add", "test_add"], 12: ["test_scale"], 13: ["test_scale"]}
    tree = ast.parse(MODULE)
    assert mutate.functions_around(tree, 10) == [7]
    assert mutate.functions_around(tree, 14) == [13, 12]
    assert [test.split("::")[1] for test in calls.first([7])] == ["test_add", "test_slow_add"]
    assert calls.first([17]) == []


def test_changes_that_no_test_sees_are_told_in_a_table(module):
    path, tests = module
    calls = mutate.record(path, tests)
    left = [
        (path, line, text)
        for line, text, tree in mutate.mutants(path)
        if mutate.try_change(path, line, tree, tests, calls) == "passed"
    ]
    assert mutate.survivors_table(left).splitlines() == [
        "| place | change | line |",
        "| --- | --- | --- |",
        "| torchrl_flow/sums.py:18 | `1 -> 2` | `return a - 1` |",
        "| torchrl_flow/sums.py:18 | `a - 1 -> a + 1` | `return a - 1` |",
    ]


def test_tests_that_fail_without_a_change_are_told(module):
    path, tests = module
    path.write_text(MODULE.replace("a + b", "a - b"), encoding="utf-8")
    assert mutate.record(path, tests) is None


@pytest.mark.parametrize("folder", [mutate.FUNCTIONAL, mutate.TRANSFORMS])
def test_every_module_has_tests(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.stem != "__init__" and any(True for _ in mutate.mutants(path)):
            assert all((ROOT / test).is_file() for test in mutate.tests_of(path)), path


def test_a_time_out_is_told_from_a_failure():
    outcomes = [mutate.forked(action, 1) for action in (lambda: 0, lambda: 1, lambda: time.sleep(30) or 0)]
    assert outcomes == ["passed", "failed", "timed out"]


def test_the_limit_grows_with_the_time_of_the_unchanged_tests(module, monkeypatch):
    path, tests = module
    limits = []
    monkeypatch.setattr(mutate, "forked", lambda action, limit_s: limits.append(limit_s) or "passed")
    calls = mutate.Calls({}, {"test_add": 100.0, "test_scale": 50.0})
    mutate.try_change(path, 10, ast.parse(MODULE), tests, calls)
    assert limits == [470.0]
