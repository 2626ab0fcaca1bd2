"""Time to make demonstrations in a batch, compared with one after the other.

    python benchmarks/make_demos.py
    python benchmarks/make_demos.py --num-demos 48 --results benchmarks/results.csv

Both must make the same demonstrations: the benchmark checks that the files are byte-identical. The output has CPU
seconds per demonstration, and the share of wall time of the motion planner, which plans the motions one after the
other. The start of the simulator is not counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time

import torch
import tyro

from torchrl_flow.demos import MakeDemosArgs, MakeDemosReport, make_demonstrations
from torchrl_flow.reports import append_benchmark


@dataclasses.dataclass
class Args:
    """What to measure."""

    task: str = "PickCube-v1"
    """ManiSkill task with a motion planner"""
    num_demos: int = 32
    """demonstrations"""
    side_by_side: int = 16
    """motions that are simulated together"""
    retime: bool = True
    """re-time the motions, as the recipes do"""
    results: str | None = None
    """results.csv to append a row to"""


def make(args: Args, side_by_side: int, num_demos: int) -> tuple[float, MakeDemosReport, str]:
    """Make demonstrations; return CPU seconds per demonstration, the report, and a digest of the file."""
    with tempfile.TemporaryDirectory() as folder:
        options = MakeDemosArgs(
            task=args.task,
            num_demos=num_demos,
            out_dir=folder,
            retime=args.retime,
            side_by_side=side_by_side,
            progress=False,
        )
        start = time.process_time()
        report = make_demonstrations(options)
        return (time.process_time() - start) / num_demos, report, hashlib.sha256(report.path.read_bytes()).hexdigest()


def main(args: Args) -> None:
    """Measure and print."""
    make(args, 1, 1)  # imports the simulator
    alone, one_by_one, expected = make(args, 1, args.num_demos)
    together, side_by_side, found = make(args, args.side_by_side, args.num_demos)
    if found != expected:
        raise SystemExit("The two files differ.")
    print(f"{args.task}, {args.num_demos} equal demonstrations of {one_by_one.mean_steps:.0f} steps")
    for name, seconds, report in (
        ("one after the other", alone, one_by_one),
        (f"{args.side_by_side} side by side", together, side_by_side),
    ):
        share = report.planning_seconds / report.seconds
        print(f"{name}: {seconds:.3f} s of CPU time each, the planner {share:.0%} of the clock's time")
    print(f"times faster: {alone / together:.2f}")
    if args.results is not None:
        append_benchmark(
            args.results,
            pair=f"make-demos, {args.side_by_side} side by side / one after the other, {args.task}",
            mode=f"CPU time a demonstration, {args.num_demos} of them",
            device="cpu",
            threads=1,
            ours_ms=1e3 * together,
            reference_ms=1e3 * alone,
            ratio=together / alone,
            ratio_low=together / alone,
            ratio_high=together / alone,
        )


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)
    main(arguments)
