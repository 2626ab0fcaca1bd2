"""Packages whose names are imported when they are first asked for (PEP 562).

Importing ``torchrl_flow`` or reading a command line then needs no torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchrl_flow._moved import moved_name

__all__ = ["exports", "lazy_exports"]


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package that says in an ``if TYPE_CHECKING`` block what it exports.

    Type checkers read the same block, so that the names stand once. A name of an earlier layout is found too.

    Args:
        package: ``__name__`` of the package.
    """

    def find(name: str) -> Any:
        if name.startswith("__") or name not in exports(package):
            return moved_name(package, name)
        module, attribute = exports(package)[name]
        found = importlib.import_module(module)
        value = found if attribute is None else getattr(found, attribute)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports(package)})

    return find, names


@functools.cache
def exports(package: str) -> dict[str, tuple[str, str | None]]:
    """Return where each name of a package comes from: module and name in it, or None where it is the module itself.

    Args:
        package: one that uses :func:`lazy_exports`, imported before.
    """
    file = Path(sys.modules[package].__file__ or "")
    found: dict[str, tuple[str, str | None]] = {}
    for block in ast.parse(file.read_text(encoding="utf-8")).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for node in block.body:
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                raise TypeError(f"{file}: {ast.unparse(node)} must be a `from` import.")
            for alias in node.names:
                whole = node.module == package
                module = f"{package}.{alias.name}" if whole else node.module
                found[alias.asname or alias.name] = (module, None if whole else alias.name)
    return found
