"""Reader of a program's options that executes only the definitions needed by the options.

The help of a recipe is then shown without importing torch, which takes seconds.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["options_alone"]


def options_alone(file: Path, name: str) -> Any:
    """Execute the class ``name`` of a file, with the imports and definitions that its fields need.

    Args:
        file: the Python source.
        name: name of a class at the top level of the file.

    Returns:
        The class. Its methods must not be called, since names used only in methods are missing.

    Raises:
        KeyError: if the file has no such class.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    defined = {known: node for node in tree.body for known in _defines(node)}
    needed, open_names = {"annotations"}, [name]
    if name not in defined:
        raise KeyError(f"{file} defines no class {name}.")
    while open_names:
        found = open_names.pop()
        if found in defined and found not in needed:  # Other names are builtins.
            needed.add(found)
            open_names += _refers_to(defined[found])
    module = ModuleType(f"options_of_{file.stem}", ast.get_docstring(tree, clean=False))
    module.__file__ = str(file)
    # Type hints are evaluated in the module of the class, and the help of its fields is read from that module's file.
    sys.modules[module.__name__] = module
    body = [kept for node in tree.body if (kept := _restricted(node, needed)) is not None]
    exec(compile(ast.Module(body, []), str(file), "exec"), module.__dict__)
    return module.__dict__[name]


def _defines(node: ast.stmt) -> list[str]:
    """Return the names defined by a statement at the top level."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return [_bound(alias) for alias in node.names]
        case ast.ClassDef() | ast.FunctionDef():
            return [node.name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case _:
            return []


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _refers_to(node: ast.stmt) -> list[str]:
    """Return the names in a definition, without those in a class's methods, which its fields do not need."""
    parts: list[ast.AST] = [node]
    if isinstance(node, ast.ClassDef):
        parts = [*node.bases, *node.decorator_list, *(part for part in node.body if isinstance(part, ast.AnnAssign))]
    return [found.id for part in parts for found in ast.walk(part) if isinstance(found, ast.Name)]


def _restricted(node: ast.stmt, needed: set[str]) -> ast.stmt | None:
    """Return a statement reduced to the needed names that it defines; None if it defines none."""
    if not needed & set(_defines(node)):
        return None
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        node.names = [alias for alias in node.names if _bound(alias) in needed]
    return node
