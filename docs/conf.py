"""Sphinx configuration: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parent))

from torchrl_flow._version import __version__

project = "torchrl_flow"
copyright = "2026, the torchrl_flow authors"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "api_links",  # docs/api_links.py
]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"torchrl_flow {__version__}"
exclude_patterns = ["_build"]
templates_path = ["_templates"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]

# Every reference to this package must resolve. Those to other packages need their inventories, and so a network.
nitpicky = True
# Docstrings that TorchRL's classes hand down refer to `batch_size`, of which several classes here have one.
suppress_warnings = ["ref.python"]
nitpick_ignore_regex = [
    (r"py:.*", r"(?!torchrl_flow).*"),
    # What an annotated option type is checked by: its description says it in words.
    (r"py:class", r"torchrl_flow\.options\.names\._\w+"),
    (r"py:(class|obj)", r"torchrl_flow\..*\.(NetworkT|Options|TrainerT|_Config|Loss)"),  # type variables
    # Protocols of callables, which the arguments' descriptions say in words, keys of losses, and base classes.
    (r"py:class", r"torchrl_flow\..*\.(BeliefModel|RankerModel|Recorder|_AcceptedKeys|CheckedReplayBuffer)"),
    (r"py:class", r"torchrl_flow\.objectives\.flow_loss\.(Averaged(Actor|Critic)|SharedEncoder)"),
    (r"py:class", r"torchrl_flow\..*\.(EmbeddedVelocity|PlainConfig|ProcessRollouts|ReadyEstimator|_CriticCalls)"),
]


def _reachable(url: str) -> bool:
    """Tell whether the inventory of another project's documentation can be had: an offline build does without."""
    try:
        with urlopen(f"{url}/objects.inv", timeout=3) as answer:
            return answer.status == 200
    except OSError:
        return False


_INVENTORIES = {
    "python": "https://docs.python.org/3",
    "torch": "https://docs.pytorch.org/docs/stable",
    "tensordict": "https://docs.pytorch.org/tensordict/stable",
    "torchrl": "https://docs.pytorch.org/rl/stable",
    "gymnasium": "https://gymnasium.farama.org",
}
intersphinx_mapping = {name: (url, None) for name, url in _INVENTORIES.items() if _reachable(url)}
