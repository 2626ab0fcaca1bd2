"""Names from before the packages were split still import, with a warning that names the new place."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from torchrl_flow._moved import MODULES, NAMES

OLD_NAMES = [
    (package, place, *entry.partition("=")[::2])
    for package, places in NAMES.items()
    for place, entries in places.items()
    for entry in entries.split()
]


def test_there_are_those_that_were_there():
    assert len(OLD_NAMES) > 180
    assert len(MODULES) > 110


@pytest.mark.parametrize(("package", "place", "old", "new"), OLD_NAMES)
def test_a_name_of_a_package_is_the_one_of_the_new_place(package, place, old, new):
    expected = getattr(importlib.import_module(f"torchrl_flow.{place}"), new or old)
    with pytest.warns(DeprecationWarning, match=rf"torchrl_flow\.{package}\.{old} is torchrl_flow\.{place}\."):
        found = getattr(importlib.import_module(f"torchrl_flow.{package}"), old)
    assert found is expected


@pytest.mark.parametrize("old", MODULES)
def test_a_module_has_the_names_of_those_that_it_became(old):
    module = importlib.import_module(f"torchrl_flow.{old}")
    for place in MODULES[old].split():
        new = importlib.import_module(f"torchrl_flow.{place}")
        for name in getattr(new, "__all__", ())[:3]:
            with pytest.warns(DeprecationWarning, match="goes with version 0.3"):
                assert getattr(module, name) is getattr(new, name) or len(MODULES[old].split()) > 1


@pytest.mark.parametrize(
    "statement",
    [
        "from torchrl_flow.training import Run, DemoSource, load_policy, evaluation_env",
        "from torchrl_flow.training.tasks import load_policy, make_task_env",
        "from torchrl_flow.data.npz import read_npz",
        "from torchrl_flow.envs.planar import PlanarPickPlaceEnv",
        "from torchrl_flow.envs.slate.env import SlateEnv",
        "from torchrl_flow.envs import SlateEnv",
        "import torchrl_flow.training.checkpoint_reader as reader; reader.load_checkpoint",
    ],
)
def test_what_a_script_of_before_imports_is_there_in_a_fresh_process(statement):
    subprocess.run([sys.executable, "-c", statement], check=True, timeout=120)


def test_what_never_was_is_an_error():
    with pytest.raises(ImportError, match="nothing"):
        exec("from torchrl_flow.training import nothing")
    with pytest.raises(ModuleNotFoundError, match=r"torchrl_flow\.training\.nothing"):
        importlib.import_module("torchrl_flow.training.nothing")
