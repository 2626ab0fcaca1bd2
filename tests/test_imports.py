"""Who may import whom, read from the source, and what an import may drag in."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torchrl_flow"
# The layers, lowest first: a package imports from those listed with it and from no other.
PACKAGES = {
    "util": set(),
    "functional": set(),
    "modules": {"functional", "util"},
    "objectives": {"functional"},
    "data": {"functional", "util"},
    "envs": {"functional", "util"},
    "training": {"data", "envs", "modules", "util"},
    "figures": {"envs"},
    "runs": {"data", "training", "util"},
    "evaluation": {"data", "envs", "figures", "functional", "modules", "util"},
    "options": {"data", "envs", "modules", "runs", "training", "util"},
    "demos": {"data", "envs", "options", "runs", "util"},
    "recsys": {"data", "envs", "evaluation", "functional", "modules", "options", "runs", "training", "util"},
    "policies": {"data", "demos", "envs", "modules", "objectives", "recsys", "runs", "training", "util"},
    "reports": {"envs", "evaluation", "figures", "modules", "options", "policies", "runs", "training", "util"},
    "sweeps": {"figures", "functional", "reports", "runs", "util"},
    "offline": {"data", "evaluation", "figures", "recsys", "reports", "runs", "training", "util"},
}


def imported_names(path: Path) -> list[str]:
    """Names that a file imports at run time; blocks under ``if TYPE_CHECKING`` do not run."""

    class Visitor(ast.NodeVisitor):
        def __init__(self) -> None:
            self.names: list[str] = []

        def visit_If(self, node: ast.If) -> None:
            if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                self.generic_visit(node)
            for child in node.orelse:
                self.visit(child)

        def visit_Import(self, node: ast.Import) -> None:
            self.names += [alias.name for alias in node.names]

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path} imports relatively"
            self.names += [f"{node.module}.{alias.name}" for alias in node.names]

    visitor = Visitor()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.names


def files(package: str) -> list[Path]:
    found = sorted((PACKAGE / package).rglob("*.py"))
    assert found, f"no files in {package}"
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package):
    for path in files(package):
        for name in imported_names(path):
            parts = name.split(".")
            if parts[0] in ("examples", "benchmarks", "tests"):
                pytest.fail(f"{path} imports {name}")
            if parts[0] == "torchrl_flow" and len(parts) > 1 and parts[1] in PACKAGES:
                assert parts[1] in PACKAGES[package] | {package}, f"{path.relative_to(ROOT)} imports {name}"


def test_no_two_packages_import_each_other():
    above: set[str] = set()
    for package, below in PACKAGES.items():
        assert below <= above, f"{package} is listed before {sorted(below - above)}"
        above.add(package)


def test_functional_imports_torch_alone():
    standard = set(sys.stdlib_module_names)
    for path in files("functional"):
        for name in imported_names(path):
            top = name.split(".")[0]
            allowed = top in standard | {"torch"} or name.startswith("torchrl_flow.functional")
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_importing_the_library_does_not_import_optional_packages():
    heavy = ("mani_skill", "sapien", "wandb", "matplotlib", "imageio", "ray", "tensorboard")
    packages = ", ".join(f"torchrl_flow.{package}" for package in PACKAGES)
    # TorchRL itself imports ray where it is installed: what it brings is not ours.
    code = f"import sys, torchrl.data\nbefore = set(sys.modules)\nimport {packages}\n"
    code += f"print([m for m in {heavy!r} if m in sys.modules and m not in before])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]", out.stdout


def test_no_file_imports_one_that_imports_it():
    """Imports inside of functions count: they would hide a circle."""
    paths = [path for package in PACKAGES for path in files(package)]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    graph = {
        module: {name.rpartition(".")[0] for name in imported_names(path)} & set(modules)
        for module, path in modules.items()
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package):
    module = __import__(f"torchrl_flow.{package}", fromlist=["__all__"])
    # Constants, classes, functions, each in alphabetical order; none twice.
    assert list(module.__all__) == sorted(set(module.__all__), key=lambda n: (not n.isupper(), n[0].islower(), n))
    assert module.__all__
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("torchrl_flow"):
            assert value.__doc__, f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_library_prints_nothing(package):
    """Commands and scripts print; the library returns, warns or logs."""
    for path in files(package):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        lines = [node.lineno for node in calls if ast.unparse(node.func) == "print"]
        assert not lines, f"{path.relative_to(ROOT)} prints in lines {lines}"
