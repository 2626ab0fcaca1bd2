"""Sphinx configuration: `make docs`."""

from torchrl_flow._version import __version__

project = "torchrl_flow"
copyright = "2026, the torchrl_flow authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
