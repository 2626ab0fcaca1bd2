"""The command ``export``: export of a run's policy to a program that runs without this library."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from torchrl_flow.options.names import RunSource
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.types import Count, check_options
from torchrl_flow.runs.names import Which

__all__ = ["ExportArgs"]


@dataclasses.dataclass
class ExportArgs:
    """Write the policy of a run as an archive and a helper, which need only torch and NumPy."""

    checkpoint: Annotated[RunSource, tyro.conf.Positional]
    """checkpoint file, or the directory of a run"""
    which: Which = "best"
    """checkpoint of a run to export: best (the last one, if the run keeps no best one) or last"""
    output: str | None = None
    """archive to write, .pt2, with the helper `exported_policy.py` beside it; by default `policy.pt2` in the directory
    of the run, or next to a checkpoint without a run"""
    num_steps: Count | None = None
    """sampling steps K; by default those of the policy"""
    compile: bool = False
    """compile the program for the CPU of this machine (AOTInductor); it is faster and needs a C++ compiler here"""

    def __call__(self) -> None:
        """Export, and print a summary."""
        with refusals_in_one_line():
            print(self.export())

    def export(self) -> str:
        """Export, and return the lines to print.

        Raises:
            SystemExit: if the archive cannot be written with these options.
            CheckpointError: if the checkpoint holds no policy of action chunks.
        """
        check_options(self)
        if self.output is not None and Path(self.output).suffix != ".pt2":
            raise SystemExit(f"--output {self.output} must end in .pt2, the suffix of torch's archives.")
        from torchrl_flow.policies.acting import load_flow_checkpoint
        from torchrl_flow.policies.export import HELPER, export_policy

        checkpoint = load_flow_checkpoint(self.checkpoint, which=self.which)
        output = Path(self.output) if self.output else checkpoint.run_directory / "policy.pt2"
        try:
            path = export_policy(checkpoint, output, num_steps=self.num_steps, compile=self.compile)
        except ValueError as error:
            raise SystemExit(f"{error}".replace("compile=True", "--compile")) from error
        size = path.stat().st_size / 2**20
        return (
            f"{path.resolve()}: {checkpoint.path.name}, {size:.1f} MiB\n{path.resolve().with_name(HELPER)}: loads it, "
            "with torch and NumPy alone"
        )
