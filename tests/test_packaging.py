"""What is installed: every package and recipe, and the names of the top level."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest

import torchrl_flow
from torchrl_flow._lazy import exports
from torchrl_flow._moved import MODULES

ROOT = Path(__file__).parents[1]
SETTINGS = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
RECIPES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def listed_packages():
    block = re.search(r"^packages = \[(.*?)\]", SETTINGS, re.DOTALL | re.MULTILINE)[1]
    return set(re.findall(r'"([\w.]+)"', block))


def test_every_package_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "torchrl_flow").rglob("__init__.py")}
    assert listed_packages() == found | {"torchrl_flow.recipes"}


LAZY = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "torchrl_flow").rglob("__init__.py")
    if "lazy_exports(__name__)" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("package", LAZY)
def test_a_package_gives_the_names_that_it_promises(package):
    module = importlib.import_module(package)
    exported = exports(package)
    packages = {name for name, (_, attribute) in exported.items() if attribute is None}
    assert set(exported) == (set(module.__all__) | packages) - {"__version__"}
    for name, (where, attribute) in exported.items():
        found = importlib.import_module(where)
        value = getattr(module, name)
        # A module of an earlier layout, once it is imported under its old name, is an attribute of its package too.
        moved = isinstance(value, types.ModuleType) and f"{package}.{name}".removeprefix("torchrl_flow.") in MODULES
        assert moved or value is (found if attribute is None else getattr(found, attribute))
        # A submodule of the same name would hide it, once that is imported.
        assert attribute is None or not (Path(module.__file__).parent / f"{name}.py").exists(), name


def test_names_of_the_top_level_are_found():
    assert set(torchrl_flow.__all__) <= set(dir(torchrl_flow))
    space: dict = {}
    exec("from torchrl_flow import *", space)
    assert set(torchrl_flow.__all__) <= set(space)
    assert pickle.loads(pickle.dumps(torchrl_flow.FlowActorConfig)) is torchrl_flow.FlowActorConfig
    with pytest.raises(AttributeError, match="no attribute 'FlowActr'"):
        _ = torchrl_flow.FlowActr
    with pytest.raises(ImportError):
        exec("from torchrl_flow import FlowActr", {})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, built from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("build")
    beside = {".git", ".venv", "runs", "data", "demos", "wandb", "build", "dist"}

    def ignored(directory, names):
        made = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
        return made | (beside & set(names) if Path(directory) == ROOT else set())

    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    code = "import setuptools.build_meta as b; b.build_wheel('..'); b.build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], cwd=folder / "source", check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe_and_runs_them(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "torchrl-flow = torchrl_flow.__main__:main" in archive.read(entry).decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "torchrl_flow").rglob("*.py")}
    assert {f"torchrl_flow/recipes/{name}" for name in RECIPES} | modules | {"torchrl_flow/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "docs", "benchmarks"))]
    # Outside the checkout, and with neither it nor the current directory on the path.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def run(*words):
        call = [sys.executable, "-m", "torchrl_flow", *words]
        return subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)

    listed = run("recipes")
    assert [f"{line.split()[0]}.py" for line in listed.stdout.splitlines()[: len(RECIPES)]] == RECIPES
    done = run("run", "awsc_diagnose", "--help")  # It imports another recipe.
    assert done.returncode == 0, done.stderr
    small = ["--iterations", "2", "--episodes", "2"]
    done = run("run", "quickstart", *small)
    assert done.returncode == 0, done.stderr
    assert "K = 4: 2 episodes" in done.stdout


@pytest.mark.slow
def test_the_sdist_is_complete(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.fail("the test needs git's list of files")
    wanted = {name for name in tracked.stdout.splitlines() if not name.startswith(".") and (ROOT / name).exists()}
    assert wanted <= names
