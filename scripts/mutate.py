"""Mutation tests: change one operator or number at a time, run the tests, and list the changes that pass all tests.

    python scripts/mutate.py functional transforms                # every change
    python scripts/mutate.py functional --sample 200 --seed 1     # this many at random
    python scripts/mutate.py functional --output survivors.md     # the table of survivors in a file, too

A change is one of: a comparison, arithmetic or logical operator replaced by a similar one, a sign or a ``not`` removed,
a number increased by one, True and False exchanged. Each is tried in a process forked from this one, which has imported
torch, by the tests of the module and the examples in its docstrings, until the first failure. The tests that call the
changed function in an unchanged run come first, the shortest ones before the others; a change survives only if all
tests of the module pass. Tests that take more than three times the time of the unchanged run count as a failure; their
number is printed. Linux and macOS only.

These changes are not made: statements removed, ``break`` and ``continue`` exchanged, texts, keys and names changed,
default values of None, keyword arguments left out, exceptions of another type, error messages, and code outside
functions. mutmut makes some of them. This script is used since mutmut and cosmic-ray start a new interpreter for each
change, which imports torch and TorchRL for several seconds on this project's machines, copy or rewrite the sources, and
are two more packages with their own dependencies to install.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import doctest
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

Outcome = Literal["passed", "failed", "timed out"]
ROOT = Path(__file__).resolve().parents[1]
RECORD_LIMIT_S = 1800
"""Seconds for the tests of an unchanged module."""
FUNCTIONAL, TRANSFORMS = "torchrl_flow/functional", "torchrl_flow/envs/transforms"
RECORDERS = "tests/envs/test_recorders.py"
SMDP = ("tests/envs/test_smdp.py", "tests/envs/test_smdp_semantics.py")
TESTS: dict[str, tuple[str, ...]] = {
    **{f"{TRANSFORMS}/{name}.py": SMDP for name in ("smdp", "inner", "record", "requirements")},
    f"{TRANSFORMS}/executed_steps.py": (RECORDERS, "tests/envs/test_root_steps.py"),
    f"{TRANSFORMS}/history.py": ("tests/envs/test_history.py",),
    f"{TRANSFORMS}/steps.py": (RECORDERS, "tests/evaluation/test_policy_episodes.py"),
    f"{TRANSFORMS}/frames.py": (RECORDERS, "tests/envs/test_smdp.py", "tests/evaluation/test_evaluation.py"),
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


@dataclasses.dataclass
class Calls:
    """Which tests call which functions of a module, by the functions' first lines, and the seconds of each test."""

    tests: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def first(self, functions: Sequence[int]) -> list[str]:
        """Return the tests to run first, given the functions around a change, the innermost first."""
        found = next((self.tests[line] for line in functions if line in self.tests), [])
        return sorted(found, key=lambda test: self.seconds[test])


class Recorder:
    """Plugin of pytest that records the calls of a module's functions in each test."""

    def __init__(self, path: Path) -> None:
        self.file, self.calls = str(path), Calls()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        """Note the functions that a test and its fixtures call."""
        del nextitem
        called: set[int] = set()

        def note(frame, event, argument):
            del argument
            if event == "call" and frame.f_code.co_filename == self.file:
                called.add(frame.f_code.co_firstlineno)

        start = time.perf_counter()
        sys.setprofile(note)
        yield
        sys.setprofile(None)
        self.calls.seconds[item.nodeid] = time.perf_counter() - start
        for line in called:
            self.calls.tests.setdefault(line, []).append(item.nodeid)


class Order:
    """Plugin of pytest that runs given tests before the others."""

    def __init__(self, first: Sequence[str]) -> None:
        self.place = {test: number for number, test in enumerate(first)}

    def pytest_collection_modifyitems(self, items):
        """Sort the tests; the order of the others stays."""
        items.sort(key=lambda item: self.place.get(item.nodeid, len(self.place)))


def functions_around(tree: ast.Module, line: int) -> list[int]:
    """Return the first lines of the functions that contain a line, with their decorators, the innermost first."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or node.lineno):
                found.append(first)
    return sorted(found, reverse=True)


def run_tests(path: Path, tree: ast.Module, tests: tuple[str, ...], plugin: Any) -> int:
    """Run the tests and the examples of a module, changed or not, in this process; return 0 if all pass."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    sys.meta_path.insert(0, Replaced(name, path, tree))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    return int(pytest.main([*tests, *options], [plugin])) or doctest.testmod(importlib.import_module(name))[0]


def forked(action: Callable[[], int], limit_s: float) -> Outcome:
    """Run an action in a separate, silent process within a time; it passes if it returns 0."""
    pid = os.fork()
    if not pid:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(limit_s))
        status = 1
        try:
            status = int(bool(action()))
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "timed out"
    return "passed" if status == 0 else "failed"


def record(path: Path, tests: tuple[str, ...]) -> Calls | None:
    """Run the tests of an unchanged module; return what they call, None if one fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "calls.json")

        def run() -> int:
            recorder = Recorder(path)
            failed = run_tests(path, ast.parse(path.read_text(encoding="utf-8")), tests, recorder)
            calls = recorder.calls
            file.write_text(json.dumps([list(calls.tests.items()), calls.seconds]), encoding="utf-8")
            return failed

        if forked(run, RECORD_LIMIT_S) != "passed":
            return None
        called, seconds = json.loads(file.read_text(encoding="utf-8"))
    return Calls(dict(called), seconds)


def try_change(path: Path, line: int, tree: ast.Module, tests: tuple[str, ...], calls: Calls) -> Outcome:
    """Run the tests with a module that is changed at a line. It survives if they pass."""
    order = Order(calls.first(functions_around(tree, line)))
    # A change may cause an endless loop. The time of the unchanged tests was measured on the same machine.
    limit_s = 20 + 3 * sum(calls.seconds.values())
    return forked(lambda: run_tests(path, tree, tests, order), limit_s)


def survivors_table(left: Sequence[tuple[Path, int, str]]) -> str:
    """Return the changes that survive as Markdown: place, change, and the line of the source."""
    from torchrl_flow.figures import markdown_table

    rows = []
    for path, line, text in sorted(left):
        code = path.read_text(encoding="utf-8").splitlines()[line - 1].strip()
        rows.append([f"{path.relative_to(ROOT).as_posix()}:{line}", f"`{text}`", f"`{code}`"])
    return markdown_table(["place", "change", "line"], rows)


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
    parser.add_argument("--output", type=Path, help="file for the table of survivors")
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
    start, good, survivors = time.monotonic(), True, []
    for package in args.packages:
        folder = {"functional": FUNCTIONAL, "transforms": TRANSFORMS}.get(package, package)
        files = sorted(Path(folder).glob("*.py")) if Path(folder).is_dir() else [Path(folder)]
        found = [(ROOT / file, *mutant) for file in files if file.stem != "__init__" for mutant in mutants(ROOT / file)]
        random.Random(args.seed).shuffle(found)
        chosen = found[: args.sample]
        calls: dict[Path, Calls] = {}
        for path in tqdm(dict.fromkeys(path for path, *_ in chosen), desc="unchanged", unit="module"):
            recorded = record(path, tests_of(path))
            if recorded is None:
                raise SystemExit(f"the tests of {path.relative_to(ROOT)} fail without any change: {tests_of(path)}")
            calls[path] = recorded
        tried, late, left = 0, 0, []
        for path, line, text, tree in tqdm(chosen, desc=package, unit="change", dynamic_ncols=True):
            if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
                break
            tried += 1
            outcome = try_change(path, line, tree, tests_of(path), calls[path])
            late += outcome == "timed out"
            if outcome == "passed":
                left.append((path, line, text))
        seen = tried - len(left)
        good &= seen >= args.least * tried
        survivors += left
        share = f"{seen / max(tried, 1):.1%}; {late} by the time limit"
        print(f"{package}: {seen} of {tried} changes seen ({share}), of {len(found)}", flush=True)
    table = survivors_table(survivors)
    print(table)
    if args.output is not None:
        args.output.write_text(table + "\n", encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
