"""The page of errors quotes messages that the package really gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "concepts" / "errors.md"


def quoted() -> list[str]:
    """Messages in the first column of the tables."""
    text = PAGE.read_text(encoding="utf-8").split("## It runs")[0]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    return [cell for cell in cells if cell != "message"]


def message(node: ast.expr) -> str:
    """A string expression, with ``…`` for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return "…"


@pytest.fixture(scope="module")
def messages() -> list[str]:
    found = []
    for path in sorted((ROOT / "torchrl_flow").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found += [message(node) for node in nodes if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))]
    return found


def test_the_page_quotes_messages():
    assert len(quoted()) > 20


@pytest.mark.parametrize("cell", quoted())
def test_a_quoted_message_is_one_of_the_package(cell, messages):
    pieces = [piece for piece in re.split("…", cell) if piece.strip(" .")]
    pattern = ".*?".join(re.escape(piece) for piece in pieces)
    assert any(re.search(pattern, text, re.DOTALL) for text in messages), cell
