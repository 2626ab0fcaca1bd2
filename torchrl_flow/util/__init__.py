"""Atomic files, progress bars, seeds, versions, and differences between platforms.

Names are imported at first use, because the command line reads small modules of this package without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_flow._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_flow.util.files import write_json, write_text
    from torchrl_flow.util.progress import Progress
    from torchrl_flow.util.randomness import isolated_rng, mix_seeds, seed_everything
    from torchrl_flow.util.versions import collect_versions, command_line, git_commit, today

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

__getattr__, __dir__ = lazy_exports(__name__)
