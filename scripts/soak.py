"""Run online recipes for a long time with tiny networks, and check memory, open files and finite numbers.

    python scripts/soak.py --minutes 60                  # every online recipe, an hour each
    python scripts/soak.py reinflow maniskill --minutes 5

Every recipe runs on the planar task or on small slates in a separate process and is ended by SIGTERM after its time; it
must then write a checkpoint and exit with 143. ``maniskill`` steps a batch of ManiSkill environments at random, 100,000
environment steps or until its time is over. Memory and open files are those of the process and of all processes below
it, read from /proc: Linux only. Growth is measured from the end of a warm-up, which lasts a fifth of the time and until
the replay buffer is full and collector processes have started. Exits with 1 if a logged number was not finite, memory
grew by more than ``--growth-mib``, or the number of open files grew. The figures are printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import mmap
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from drill_recipes import RECIPES, fork, prepare, run_options  # noqa: E402
from kill_drill import _chdir  # noqa: E402

from torchrl_flow.figures import markdown_table  # noqa: E402
from torchrl_flow.runs import load_checkpoint, read_metrics  # noqa: E402

LONG = ("--save-every", "200", "--eval-every", "500")
ENDLESS = ("--iterations", "100000000", *LONG)
REPLAY = 1000


@dataclasses.dataclass(frozen=True)
class Soak:
    """A recipe, options that make it long, and the iterations until its replay is full or its processes run."""

    recipe: str
    options: tuple[str, ...]
    full_after: int = 0


CHUNKS = 4 * 4
"""Chunks of an iteration of DSRL: environments times chunks of each."""
SOAKS: dict[str, Soak] = {
    "awsc_online": Soak("awsc_online", ("--chunks", "100000000", "--buffer-size", str(REPLAY), *LONG), REPLAY // 4),
    # Kept episodes grow by design; they are mapped from files, whose pages do not count.
    "awsc_rounds": Soak("awsc_rounds", ("--rounds", "100000", "--iterations", "10000", "--save-every", "1000")),
    "dsrl_ppo": Soak("dsrl_ppo", ENDLESS),
    "dsrl_sac": Soak("dsrl_sac", (*ENDLESS, "--buffer-size", str(REPLAY)), REPLAY // CHUNKS),
    "dsrl_na": Soak("dsrl_na", (*ENDLESS, "--buffer-size", str(REPLAY)), REPLAY // CHUNKS),
    "reinflow": Soak("reinflow", ("--total-env-steps", "100000000", *LONG)),
    "reinflow_collectors": Soak("reinflow", ("--total-env-steps", "100000000", "--collectors", "2", *LONG), 20),
    # Keeps all transitions by design: one episode of 100 an iteration, of 0.4 KiB each, and many updates.
    "sac_slates": Soak(
        "sac_slates", ("--num-envs", "1", "--updates", "500", "--iterations", "10000", "--save-every", "200")
    ),
}
MANISKILL, MANISKILL_STEPS, MANISKILL_ENVS = "maniskill", 100_000, 16


def processes_below(pid: int) -> list[int]:
    """Return a process and all processes that it and its children started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            # The name, in parentheses, may contain anything; state and parent follow.
            parents[int(folder.name)] = int((folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def resident_mib(pid: int) -> float:
    """Return the memory of a process, without file pages, which the system may reclaim."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1:3]
    return (int(resident) - int(shared)) * mmap.PAGESIZE / 2**20


@dataclasses.dataclass
class Series:
    """Measurements at equal intervals: memory in MiB, open files, and iterations done."""

    memory: list[float] = dataclasses.field(default_factory=list)
    files: list[int] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)

    def measure(self, pid: int, step: int) -> None:
        """Add the sums over a process and those below it; nothing if one of them ends meanwhile."""
        memory, files = 0.0, 0
        for each in processes_below(pid):
            try:
                memory += resident_mib(each)
                files += len(os.listdir(f"/proc/{each}/fd"))
            except OSError:
                return
        self.memory.append(memory)
        self.files.append(files)
        self.steps.append(step)

    def warm_up(self, full_after: int) -> int | None:
        """Return the first measurement after a fifth of the time and that many iterations; None if there is none."""
        fifth = len(self.steps) // 5
        return next((i for i, step in enumerate(self.steps) if i >= fifth and step >= full_after), None)

    def growth(self, full_after: int) -> tuple[float, int] | None:
        """Return the growth of memory in MiB and of open files after the warm-up; None if that never ended.

        Both are differences of the medians of the first and of the last tenth after the warm-up, so that a single
        measurement during a checkpoint or an evaluation is not a growth.
        """
        first = self.warm_up(full_after)
        if first is None:
            return None
        return _grown(self.memory[first:]), round(_grown(self.files[first:]))


def _grown(values: Sequence[float]) -> float:
    tenth = max(1, len(values) // 10)
    return statistics.median(values[-tenth:]) - statistics.median(values[:tenth])


def not_finite(metrics: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> list[str]:
    """Return the metrics with a logged value that is not finite, and the first step with it."""
    found = []
    for name, (steps, values) in metrics.items():
        wrong = next((step for step, value in zip(steps, values) if not math.isfinite(value)), None)
        if wrong is not None:
            found.append(f"{name} at step {wrong}")
    return found


def last_step(path: Path) -> int:
    """Return the step of the last complete row of a file of metrics; 0 if there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        rows = file.read().decode("utf-8", "replace").split("\n")[1:-1]
    return int(rows[-1].split(",")[0]) if rows else 0


def step_maniskill() -> None:
    """Step a batch of ManiSkill environments."""
    import torch

    from torchrl_flow.envs import ManiSkillEnv

    env = ManiSkillEnv("PushCube-v1", num_envs=MANISKILL_ENVS, obs_mode="state", seed=0)
    data = env.reset()
    for number in range(1, MANISKILL_STEPS // MANISKILL_ENVS + 1):
        step, data = env.step_and_maybe_reset(env.rand_action(data))
        for key, value in step.items(True, True):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise SystemExit(f"{key} is not finite at step {number}")
        if number % 100 == 0:
            Path("steps.txt").write_text(str(number * MANISKILL_ENVS), encoding="utf-8")
    env.close()


def start(name: str) -> int:
    """Start the watched program; return its process id."""
    if name != MANISKILL:
        script, before, options = RECIPES[SOAKS[name].recipe]
        prepare(before)
        return fork(script, run_options(f"{name}-soak", options, *SOAKS[name].options))
    pid = os.fork()
    if not pid:
        try:
            step_maniskill()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


HEADER = ("run", "minutes", "done", "memory at the end", "memory grown", "open files grown", "")


def soak(name: str, seconds: float, growth_mib: float) -> tuple[bool, list[str]]:
    """Run one program for the given time; return whether all checks passed, and its row of the table."""
    pid, begin = start(name), time.monotonic()
    series, metrics = Series(), Path("runs") / f"{name}-soak" / "metrics.csv"
    ended, status = False, 0
    while not ended and time.monotonic() - begin < seconds:
        time.sleep(min(5.0, seconds / 20))
        ended, status = (found := os.waitpid(pid, os.WNOHANG))[0] == pid, found[1]
        if not ended:
            series.measure(pid, last_step(metrics))
    if not ended:
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
    growth = series.growth(SOAKS[name].full_after if name in SOAKS else 0)
    good, done = _result(name, status, ended)
    good &= growth is not None and growth[0] <= growth_mib and growth[1] <= 0
    grown = ("the warm-up did not end", "") if growth is None else (f"{growth[0]:.1f} MiB", str(growth[1]))
    memory = f"{series.memory[-1]:.0f} MiB" if series.memory else ""
    minutes = f"{(time.monotonic() - begin) / 60:.1f}"
    return good, [f"`{name}`", minutes, done, memory, *grown, "well" if good else "NOT well"]


def _result(name: str, status: int, ended: bool) -> tuple[bool, str]:
    """Return whether the program ended as expected, and its progress."""
    if name == MANISKILL:
        steps = Path("steps.txt").read_text(encoding="utf-8") if Path("steps.txt").exists() else "0"
        return (os.WEXITSTATUS(status) == 0 if ended else True), f"{steps} steps"
    run = Path("runs") / f"{name}-soak"
    stopped = not ended and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGTERM
    step = load_checkpoint(run).step if run.exists() else 0
    values = read_metrics(run / "metrics.csv") if run.exists() else {}
    wrong = not_finite(values)
    told = (
        f"{step} iterations" + (f", not finite: {wrong}" if wrong else "") + ("" if stopped else f", status {status}")
    )
    return stopped and not wrong and step > 0, told


def main() -> int:
    """Parse the command line and watch the programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"which: {', '.join(SOAKS)}, {MANISKILL}")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each of them")
    parser.add_argument("--growth-mib", type=float, default=32.0, help="memory that may be gained")
    args = parser.parse_args()
    names = args.recipes or [*SOAKS, MANISKILL]
    unknown = [name for name in names if name not in (*SOAKS, MANISKILL)]
    if unknown:
        parser.error(f"there are no online recipes {unknown}; there are {', '.join(SOAKS)} and {MANISKILL}")
    good = True
    with tempfile.TemporaryDirectory() as folder, _chdir(folder):
        print(markdown_table(HEADER, []), flush=True)
        for name in names:
            well, row = soak(name, 60 * args.minutes, args.growth_mib)
            good &= well
            print(markdown_table(HEADER, [row]).splitlines()[-1], flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
