"""Limits on the size of recipes, files, functions and packages."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "examples").glob("*.py"))
LIBRARY = sorted((ROOT / "torchrl_flow").rglob("*.py"))


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def extent(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def too_long(lengths: dict[str, int], most: int) -> dict[str, int]:
    assert lengths
    return {name: length for name, length in lengths.items() if length > most}


def nodes_of(paths: list[Path], *kinds: type[ast.stmt]):
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_a_recipe_has_at_most_200_lines():
    assert too_long({path.name: num_lines(path) for path in RECIPES}, 200) == {}


def test_the_training_loop_of_a_recipe_has_at_most_30_lines():
    loops = {
        place: extent(node)
        for place, node in nodes_of(RECIPES, ast.For)
        if isinstance(node, ast.For) and ast.unparse(node.iter).startswith("run.steps(")
    }
    assert len(loops) >= 12
    assert too_long(loops, 30) == {}


def test_a_file_of_the_library_has_at_most_350_lines():
    assert too_long({str(path.relative_to(ROOT)): num_lines(path) for path in LIBRARY}, 350) == {}


def test_a_function_of_the_library_has_at_most_90_lines():
    lengths = {place: extent(node) for place, node in nodes_of(LIBRARY, ast.FunctionDef)}
    assert too_long(lengths, 90) == {}


def test_no_package_has_more_than_a_fifth_of_the_lines():
    lines: dict[str, int] = {}
    for path in LIBRARY:
        package = path.relative_to(ROOT / "torchrl_flow").parts[0]
        lines[package] = lines.get(package, 0) + num_lines(path)
    largest = max(lines, key=lambda package: lines[package])
    assert lines[largest] <= sum(lines.values()) / 5, f"{largest} has {lines[largest]} of {sum(lines.values())} lines"


def test_a_length_above_the_limit_is_found():
    tree = ast.parse("def one():\n    pass\n    pass\n")
    assert extent(tree.body[0]) == 3
    assert too_long({"a": 3, "b": 2}, 2) == {"a": 3}
    with pytest.raises(AssertionError):
        too_long({}, 2)
