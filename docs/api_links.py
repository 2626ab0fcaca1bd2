"""Sphinx extension: real signatures, documented constants, and links by the public name of a class."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

from torchrl_flow._lazy import exports


def packages() -> list[str]:
    """Return the names of the packages inside the library that the reference documents."""
    return [name for name, (_, attribute) in exports("torchrl_flow").items() if attribute is None]


@functools.cache
def public_names() -> dict[str, str]:
    """Map each public name to its documented path, such as ``FlowActor`` to ``torchrl_flow.modules.FlowActor``."""
    found: dict[str, str] = {}
    for package in packages():
        module = importlib.import_module(f"torchrl_flow.{package}")
        found |= {name: f"torchrl_flow.{package}.{name}" for name in module.__all__}
    return found


def real_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None] | None:
    """Show the signature of ``__init__`` where a metaclass has one of its own."""
    if what != "class" or not inspect.isclass(obj) or obj.__init__ is object.__init__:
        return None
    found = inspect.signature(obj.__init__)
    found = found.replace(parameters=list(found.parameters.values())[1:])
    return stringify_signature(found, show_annotation=False), None


def constant_comment(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Find the comment of a constant or type alias in the module that defines it, from which packages re-export it."""
    if what != "data":
        return
    package, _, attribute = name.rpartition(".")
    for module in list(sys.modules):
        if module.startswith(f"{package}."):
            try:
                comments = ModuleAnalyzer.for_module(module).find_attr_docs()
            except PycodeError:
                continue
            if ("", attribute) in comments:
                lines[:] = comments["", attribute]
                return


def public_link(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Resolve a reference by any path, such as that of the defining module, to the public name's page."""
    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    names = public_names()
    for start, part in enumerate(parts):
        if part in names and (start == 0 or parts[0] == "torchrl_flow"):
            target = ".".join([names[part], *parts[start + 1 :]])
            domain = env.get_domain("py")
            for kind in (node["reftype"], "obj"):
                found = domain.resolve_xref(env, node["refdoc"], app.builder, kind, target, node, contnode)
                if found is not None:
                    return found
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.connect("autodoc-process-signature", real_signature)
    app.connect("autodoc-process-docstring", constant_comment)
    app.connect("missing-reference", public_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
