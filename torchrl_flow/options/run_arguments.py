"""The options common to all recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torchrl_flow.options.names import Installed, RunName, WritableDirectory, WritableFile
from torchrl_flow.options.types import Count, NonNegativeInt, Seed, check_options
from torchrl_flow.runs.names import WandbMode

if TYPE_CHECKING:
    from torchrl_flow.runs.run import Run

__all__ = ["RunArgs", "require_device", "resolve_device"]

USABLE = "Use --device cpu, or auto for cuda where it is there."


@dataclasses.dataclass(kw_only=True)
class RunArgs:
    """Name, directory, seed, device and logging of a run; the base of every recipe's ``Args``.

    The types of a recipe's fields declare the allowed values (see ``torchrl_flow.options.types``), and :meth:`prepare`
    refuses other values.
    """

    name: RunName | None = None
    """name of the run; by default recipe, task and seed"""
    runs: WritableDirectory = "runs"
    """directory of the runs"""
    results: WritableFile | None = "runs/results.csv"
    """table of results; the rows of this run replace the rows that the same run wrote before. None: no table"""
    label: str | None = None
    """name of this variant in the table of results"""
    seed: Seed = 0
    """seed of the networks and of training"""
    device: str = "cpu"
    """device of networks and batches: cpu, cuda (cuda:1, ...), or auto for cuda if there is a GPU"""
    threads: Count = 1
    """CPU threads"""
    skip_updates: NonNegativeInt = 0
    """number of gradient steps that may be skipped because their loss or gradient is not finite; the next one stops the
    run"""
    wandb: Annotated[WandbMode | None, Installed("wandb", "wandb")] = None
    """log to Weights & Biases"""
    wandb_project: str = "torchrl_flow"
    """project in Weights & Biases"""
    wandb_group: str | None = None
    """group in Weights & Biases, for example one group for all seeds of a configuration"""
    tensorboard: Annotated[bool, Installed("tensorboard", "plot")] = False
    """log to TensorBoard"""
    resume: bool = False
    """continue a run that was stopped, or extend a finished run"""

    def prepare(self) -> None:
        """Check all options, determine the device, set the number of CPU threads and seed all generators.

        Raises:
            SystemExit: if an option is out of range or contradicts another one. The error names it.
        """
        import torch

        from torchrl_flow.util.randomness import seed_everything

        check_options(self, here=False)
        self.check()
        check_options(self, here=True)
        self.device = resolve_device(self.device)
        torch.set_num_threads(self.threads)
        seed_everything(self.seed)

    def check(self) -> None:
        """Refuse options that contradict each other; recipes override this method.

        Raises:
            SystemExit: if options contradict each other. The error names them.
        """

    def run_directory(self, default_name: str) -> Path:
        """Return the directory of the run, named ``default_name`` if no name was given."""
        # The task may be a function, my_package:make_env, and some systems do not allow a colon in a file name.
        return Path(self.runs) / (self.name or default_name.replace(":", "."))

    def open_run(self, default_name: str, *, task: Mapping[str, Any], **options: Any) -> Run:
        """Open the run, with these arguments as its configuration.

        Args:
            default_name: name of the run if none is given.
            task: identity of its task (:func:`~torchrl_flow.envs.task_info`) or a mapping of its fields.
            **options: further arguments of :class:`~torchrl_flow.runs.Run`; a mapping ``config`` adds to the
                configuration.
        """
        from torchrl_flow.runs.run import Run

        config = {**dataclasses.asdict(self), **options.pop("config", {})}
        return Run(self.run_directory(default_name), config, task=task, **options, **self.run_options())

    def run_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`~torchrl_flow.runs.Run` that are given here."""
        fields = dataclasses.fields(self)
        return {
            "resume": self.resume,
            "defaults": {field.name: field.default for field in fields if field.default is not dataclasses.MISSING},
            "tensorboard": self.tensorboard,
            "wandb": self.wandb,
            "project": self.wandb_project,
            "group": self.wandb_group,
        }


def resolve_device(device: str) -> str:
    """Return the device; ``auto`` is ``cuda`` if there is a GPU, otherwise ``cpu``.

    Raises:
        SystemExit: if torch does not know the device, or this machine lacks it. The error names a device that works.
    """
    if device == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    require_device(device)
    return device


def require_device(device: str) -> None:
    """Refuse a device that torch does not know or that this machine lacks.

    Raises:
        SystemExit: if torch does not know the device, or this machine lacks it. The error names a device that works.
    """
    import torch

    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise SystemExit(f"--device {device} cannot be used here ({reason}). {USABLE}") from None
    if kind == "meta":
        raise SystemExit(f"--device meta cannot store values. {USABLE}")
