"""Files written whole, progress bars, seeds, versions and what differs between platforms.

A name is imported at its first use, because the command line reads small modules of this package before it needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_flow.util.files import write_json, write_text
    from torchrl_flow.util.progress import Progress
    from torchrl_flow.util.randomness import isolated_rng, mix_seeds, seed_everything
    from torchrl_flow.util.versions import collect_versions, command_line, git_commit, today

_MODULE_OF = {
    "Progress": "progress",
    "collect_versions": "versions",
    "command_line": "versions",
    "git_commit": "versions",
    "isolated_rng": "randomness",
    "mix_seeds": "randomness",
    "seed_everything": "randomness",
    "today": "versions",
    "write_json": "files",
    "write_text": "files",
}

__all__ = [
    "Progress",
    "collect_versions",
    "command_line",
    "git_commit",
    "isolated_rng",
    "mix_seeds",
    "seed_everything",
    "today",
    "write_json",
    "write_text",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
