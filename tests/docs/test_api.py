"""Every public name is documented, and every class tells its real signature."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from pathlib import Path

import pytest

import torchrl_flow
from torchrl_flow._lazy import exports

ROOT = Path(__file__).parents[2]
PACKAGES = [name for name, (_, attribute) in exports("torchrl_flow").items() if attribute is None]


def public_objects():
    for package in PACKAGES:
        module = importlib.import_module(f"torchrl_flow.{package}")
        for name in module.__all__:
            yield pytest.param(package, name, getattr(module, name), id=f"{package}.{name}")


def described_constants(package: str) -> set[str]:
    """Names that a string literal follows in the source, which is how constants and type aliases are documented."""
    found = set()
    for path in (ROOT / "torchrl_flow" / package).rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for first, second in itertools.pairwise(body):
            target = getattr(first, "targets", [getattr(first, "target", None)])[0]
            text = getattr(second, "value", None) if isinstance(second, ast.Expr) else None
            if isinstance(target, ast.Name) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found.add(target.id)
    return found


@pytest.mark.parametrize(("package", "name", "obj"), public_objects())
def test_a_public_name_is_documented(package, name, obj):
    if inspect.isclass(obj) or inspect.isfunction(obj):
        text = inspect.getdoc(obj)
        assert text, "there is no docstring"
        assert len(text.split()) >= 3
        assert inspect.isfunction(obj) or vars(obj).get("__doc__"), "the docstring is inherited"
        assert not text.startswith(f"{name}("), "the docstring is the one that dataclasses generate"
    else:
        assert name in described_constants(package), f"write a string literal below {name}, saying what it is"


def classes_with_a_constructor():
    return [p for p in public_objects() if inspect.isfunction(getattr(p.values[2], "__init__", None))]


@pytest.mark.parametrize(("package", "name", "obj"), classes_with_a_constructor())
def test_a_class_tells_its_signature(package, name, obj):
    wanted = list(inspect.signature(obj.__init__).parameters.values())[1:]
    assert list(inspect.signature(obj).parameters.values()) == wanted


def test_the_package_itself_exports_names_of_its_parts():
    parts = {name for package in PACKAGES for name in importlib.import_module(f"torchrl_flow.{package}").__all__}
    assert set(torchrl_flow.__all__) - {"__version__"} <= parts


def test_the_reference_lists_every_package():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert all(f"   torchrl_flow.{package}\n" in text for package in PACKAGES)
