"""Mutation tests: change one operator or number at a time, run the tests, and list the changes that pass all tests.

    python scripts/mutate.py functional transforms                # every change
    python scripts/mutate.py functional --sample 200 --seed 1     # this many at random

A change is one of: a comparison, arithmetic or logical operator replaced by a similar one, a sign or a ``not`` removed,
a number increased by one, True and False exchanged. Each is tried in a process forked from this one, which has imported
torch, by the tests of the module and the examples in its docstrings, until the first failure. Linux and macOS only.
"""

from __future__ import annotations

import argparse
import ast
import copy
import doctest
import importlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 180
FUNCTIONAL, TRANSFORMS = "torchrl_flow/functional", "torchrl_flow/envs/transforms"
SMDP = ("tests/envs/test_smdp.py", "tests/envs/test_smdp_semantics.py")
TESTS: dict[str, tuple[str, ...]] = {
    **{f"{TRANSFORMS}/{name}.py": SMDP for name in ("smdp", "inner", "record", "requirements")},
    f"{TRANSFORMS}/executed_steps.py": ("tests/envs/test_root_steps.py",),
    f"{TRANSFORMS}/history.py": ("tests/envs/test_history.py",),
    f"{TRANSFORMS}/steps.py": ("tests/evaluation/test_policy_episodes.py",),
    f"{TRANSFORMS}/frames.py": ("tests/envs/test_smdp.py", "tests/evaluation/test_evaluation.py"),
}
NEIGHBOURS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}


class Places(ast.NodeVisitor):
    """Visitor that collects the nodes that can be changed: executed code except error messages and annotations."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, int]] = []

    def visit(self, node: ast.AST) -> None:
        """Record a node, and visit its children."""
        if isinstance(node, (ast.Raise, ast.JoinedStr)):
            return
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in NEIGHBOURS:
            self.found.append((node, 0))
        elif isinstance(node, ast.Compare):
            self.found += [(node, i) for i, op in enumerate(node.ops) if type(op) in NEIGHBOURS]
        sign = isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert))
        if sign or (isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float))):
            self.found.append((node, 0))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)


def places(tree: ast.Module) -> list[tuple[ast.AST, int]]:
    """Return the changeable nodes in the functions of a module, in their order."""
    visitor = Places()
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            visitor.visit(statement)
    return visitor.found


def change(node: ast.AST, part: int) -> str:
    """Change a node in place; return a description of the change."""
    before = ast.unparse(node)
    if isinstance(node, (ast.BinOp, ast.BoolOp)):
        node.op = NEIGHBOURS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[part] = NEIGHBOURS[type(node.ops[part])]()
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1  # pyright: ignore[reportOperatorIssue]
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if not isinstance(node.op, ast.Not) else node.op
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    return f"{before} -> {ast.unparse(node)}"


def mutants(path: Path) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield line, description and tree of every change of a file."""
    whole = ast.parse(path.read_text(encoding="utf-8"))
    for number in range(len(places(whole))):
        tree = copy.deepcopy(whole)
        node, part = places(tree)[number]
        line = getattr(node, "lineno", 0)
        text = change(node, part)
        yield line, text, ast.fix_missing_locations(tree)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that replaces a module by its changed version."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, fullname, path=None, target=None):
        """Find the module."""
        del path, target
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module) -> None:
        """Run the changed module."""
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def survives(path: Path, tree: ast.Module, tests: tuple[str, ...]) -> bool:
    """Return whether the tests pass with a changed module."""
    pid = os.fork()
    if not pid:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, Replaced(name, path, tree))
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header"]
        failed = int(pytest.main([*tests, *options])) or doctest.testmod(importlib.import_module(name))[0]
        os._exit(bool(failed))
    return os.waitpid(pid, 0)[1] == 0


def tests_of(path: Path) -> tuple[str, ...]:
    """Return the tests of a module."""
    name = path.relative_to(ROOT).as_posix()
    return TESTS.get(name) or (f"tests/functional/test_{path.stem}.py",)


def main() -> int:
    """Parse the command line and try the changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="functional, transforms, or a module's path")
    parser.add_argument("--sample", type=int, help="so many changes of each package, at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes")
    parser.add_argument("--least", type=float, default=0.85, help="share that must be seen")
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    import torch
    import torchrl.envs  # noqa: F401  (what takes long to import)
    from hypothesis import settings
    from tqdm import tqdm

    torch.set_num_threads(1)
    settings.register_profile("mutate", max_examples=30, derandomize=True, deadline=None, database=None)
    settings.load_profile("mutate")
    start, good = time.monotonic(), True
    for package in args.packages:
        folder = {"functional": FUNCTIONAL, "transforms": TRANSFORMS}.get(package, package)
        files = sorted(Path(folder).glob("*.py")) if Path(folder).is_dir() else [Path(folder)]
        found = [(ROOT / file, *mutant) for file in files if file.stem != "__init__" for mutant in mutants(ROOT / file)]
        for path in dict.fromkeys(path for path, *_ in found):
            if not survives(path, ast.parse(path.read_text(encoding="utf-8")), tests_of(path)):
                raise SystemExit(f"the tests of {path.relative_to(ROOT)} fail without any change: {tests_of(path)}")
        random.Random(args.seed).shuffle(found)
        tried, left = 0, []
        for path, line, text, tree in tqdm(found[: args.sample], desc=package, unit="change", dynamic_ncols=True):
            if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
                break
            tried += 1
            if survives(path, tree, tests_of(path)):
                left.append(f"{path.relative_to(ROOT).as_posix()}:{line}: {text}")
                tqdm.write(f"  survives: {left[-1]}")
        seen = tried - len(left)
        good &= seen >= args.least * tried
        print(f"{package}: {seen} of {tried} changes seen ({seen / max(tried, 1):.1%}), of {len(found)}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
