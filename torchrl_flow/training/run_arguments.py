"""The options that all recipes have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from torchrl_flow.training.metrics import WandbMode
from torchrl_flow.training.randomness import seed_everything

__all__ = ["RunArgs"]


@dataclasses.dataclass(kw_only=True)
class RunArgs:
    """Name, place, seed, device and logging of a run; the base of every recipe's ``Args``."""

    name: str | None = None
    """name of the run; recipe, task and seed where none is given"""
    runs: str = "runs"
    """directory of the runs"""
    results: str | None = "runs/results.csv"
    """table of results; the rows of this run replace those that it wrote before"""
    label: str | None = None
    """what the table of results calls this variant"""
    seed: int = 0
    """seed of the networks and of training"""
    device: str = "cpu"
    """device of networks and batches"""
    threads: int = 1
    """CPU threads"""
    wandb: WandbMode | None = None
    """log to Weights & Biases"""
    wandb_project: str = "torchrl_flow"
    """project in Weights & Biases"""
    wandb_group: str | None = None
    """group in Weights & Biases, such as the seeds of one configuration"""
    tensorboard: bool = False
    """log to TensorBoard"""
    resume: bool = False
    """go on with a run that was stopped, or make a finished one longer"""

    def prepare(self) -> None:
        """Set the number of CPU threads and seed all generators.

        Raises:
            SystemExit: if the device is not there, or there are no threads.
        """
        if self.threads < 1:
            raise SystemExit(f"--threads must be at least 1, got {self.threads}.")
        require_device(self.device)
        torch.set_num_threads(self.threads)
        seed_everything(self.seed)

    def run_directory(self, default_name: str) -> Path:
        """Return the directory of the run, ``default_name`` where it has no name of its own."""
        return Path(self.runs) / (self.name or default_name)

    def run_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`~torchrl_flow.training.Run` that are given here."""
        return {
            "resume": self.resume,
            "tensorboard": self.tensorboard,
            "wandb": self.wandb,
            "project": self.wandb_project,
            "group": self.wandb_group,
        }


def require_device(device: str) -> None:
    """Refuse a device that torch does not know or that this machine lacks.

    Raises:
        SystemExit: naming the device and the one that works.
    """
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise SystemExit(f"--device {device} cannot be used here ({reason}). Use --device cpu.") from None
    if kind == "meta":
        raise SystemExit("--device meta holds no numbers. Use --device cpu.")
