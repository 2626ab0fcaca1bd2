"""Text files are UTF-8 whatever the locale is: every place that reads or writes text says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("torchrl_flow", "examples", "benchmarks", "docs", "scripts")


def text_calls_without_encoding(source: str) -> list[int]:
    """Lines of calls that open, read or write text, or decode what a program prints, in the locale's encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        strings = [a.value for a in [*node.args, *keywords.values()] if isinstance(a, ast.Constant)]
        modes = [s for s in strings if isinstance(s, str) and s and set(s) <= set("rwaxbt+U")]
        if name == "open" and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            # Path.open; other classes have an `open` that opens no text, and names its object in capitals.
            text = not owner.split(".")[-1][:1].isupper() and owner not in (
                "cls",
                "os",
                "archive",
                "zip",
                "file.zip",
                "image",
                "webbrowser",
            )
            text = text and not any("b" in mode for mode in modes)
        elif name == "open":
            text = not any("b" in mode for mode in modes)
        elif name in ("read_text", "write_text"):
            # The package's own `write_text(path, text)` writes UTF-8.
            text = isinstance(node.func, ast.Attribute)
        else:
            flag = keywords.get("text", keywords.get("universal_newlines"))
            text = isinstance(flag, ast.Constant) and flag.value is True
        if text and "encoding" not in keywords:
            lines.append(node.lineno)
    return lines


def test_the_check_sees_each_way():
    wrong = 'path.open()\nopen(p, "w")\np.read_text()\np.write_text(x)\nsubprocess.run(c, text=True)\nos.fdopen(3)'
    assert text_calls_without_encoding(wrong) == [1, 2, 3, 4, 5]
    right = 'path.open("rb")\nopen(p, "w", encoding="utf-8")\np.read_text(encoding="utf-8")\nDemoStore.open(p)'
    assert text_calls_without_encoding(right) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_is_utf8(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        for line in text_calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []
