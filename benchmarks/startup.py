"""Time of imports and of `--help`, each in a fresh process.

    python benchmarks/startup.py
    python benchmarks/startup.py --results benchmarks/results.csv

The pairs are `import torchrl_flow` after `import torchrl`, compared with `import torchrl` alone; the import of every
public class and function; and `--help` of the command line and of a recipe, compared with `import torchrl`. The
processes alternate. The output has median CPU time of a process in milliseconds, user and system, and the median ratio
of neighbouring measurements with its quartiles.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path

import tyro
from pairs import record_pair

REFERENCE = "import torchrl"
COMMANDS = {
    REFERENCE: ["-c", "import torchrl"],
    "import torchrl, torchrl_flow": ["-c", "import torchrl, torchrl_flow"],
    "import torchrl_flow": ["-c", "import torchrl_flow"],
    "import torchrl_flow.objectives, .modules, .envs": [
        "-c",
        "from torchrl_flow import envs, modules, objectives; "
        "[getattr(part, name) for part in (envs, modules, objectives) for name in part.__all__]",
    ],
    "torchrl_flow --help": ["-m", "torchrl_flow", "--help"],
    "torchrl_flow run td3_bc --help": ["-m", "torchrl_flow", "run", "td3_bc", "--help"],
}


@dataclasses.dataclass
class Args:
    """What to measure."""

    rounds: int = 7
    """Number of measurements of each command, taken alternately, after one warm-up."""
    results: Path | None = None
    """A CSV file to append the pairs to."""


def process_time(arguments: list[str]) -> float:
    """Return the CPU time of a Python process in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def main(args: Args) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds + 1):
        for name, arguments in COMMANDS.items():
            times[name].append(process_time(arguments))
    for name in [name for name in COMMANDS if name != REFERENCE]:
        title, mode = f"{name} / {REFERENCE}", "CPU time of a process"
        record_pair(title, mode, times[name][1:], times[REFERENCE][1:], threads=1, results=args.results)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
