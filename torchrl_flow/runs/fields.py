"""What the fields of a run's configuration mean for resuming it, and which script made the run."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["AFTER_TRAINING", "BOOKKEEPING", "LENGTH", "calling_script"]

#: Fields of a recipe's configuration that affect only what happens after training.
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
#: Fields that say how long to train. A resumed run may be longer, and no shorter than what it has done.
LENGTH = ("iterations", "chunks", "total_env_steps")
#: Fields of bookkeeping: where the run lies, where Ray collects, what is saved, measured and logged, and how often.
BOOKKEEPING = (
    *("name", "runs", "save_every", "eval_every", "log_every"),
    *("skip_updates", "tensorboard", "wandb", "wandb_project", "wandb_group", "workers", "ray_address"),
)


def calling_script() -> str:
    """Name of the script that makes the run; a recipe that another recipe calls has its own name."""
    frame, package = sys._getframe(1), Path(__file__).parents[1]
    between = (package / "runs", package / "options")  # Where recipes have their runs opened.
    while frame.f_back is not None and Path(frame.f_code.co_filename).parent in between:
        frame = frame.f_back
    file = frame.f_code.co_filename
    return "" if file.startswith("<") else Path(file).stem
