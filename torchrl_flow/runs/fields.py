"""Groups of a run's configuration fields by their effect on resuming, and the name of the script that made the run."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["AFTER_TRAINING", "BOOKKEEPING", "LENGTH", "calling_script"]

#: Fields of a recipe's configuration that are used only after training.
AFTER_TRAINING = (
    "resume",
    "results",
    "label",
    "references",
    "eval_episodes",
    "num_videos",
    "compare_steps",
    "noise_scales",
    "best_of",
)
#: Fields of the length of the training. A resumed run may be longer, but not shorter than its finished part.
LENGTH = ("iterations", "chunks", "total_env_steps")
#: Fields of bookkeeping: directory of the run, address of Ray, and content and frequency of saves, measures and logs.
BOOKKEEPING = (
    *("name", "runs", "save_every", "eval_every", "log_every"),
    *("skip_updates", "tensorboard", "wandb", "wandb_project", "wandb_group", "workers", "ray_address"),
)


def calling_script() -> str:
    """Return the name of the script that makes the run; a recipe called by another recipe has its own name."""
    frame, package = sys._getframe(1), Path(__file__).parents[1]
    between = (package / "runs", package / "options")  # The module in which recipes open their runs.
    while frame.f_back is not None and Path(frame.f_code.co_filename).parent in between:
        frame = frame.f_back
    file = frame.f_code.co_filename
    return "" if file.startswith("<") else Path(file).stem
