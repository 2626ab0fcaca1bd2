"""Run online recipes for a long time with tiny networks, and check memory, open files and finite numbers.

    python scripts/soak.py --minutes 60                  # every online recipe, an hour each
    python scripts/soak.py reinflow maniskill --minutes 5

Every recipe runs on the planar task in a separate process and is ended by SIGTERM after its time; it must then write a
checkpoint and exit with 143. ``maniskill`` steps a batch of ManiSkill environments at random, 100,000 environment steps
or until its time is over. Memory and open files are read from /proc: Linux only. Exits with 1 if a number was not
finite, memory grew by more than ``--growth-mib`` between a fifth of the time and its end, or the number of open files
grew.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from kill_drill import RECIPES, _chdir, fork, prepare, run_options  # noqa: E402

from torchrl_flow.runs import load_checkpoint, read_metrics  # noqa: E402

LONG = ("--save-every", "200", "--eval-every", "500")
ENDLESS = ("--iterations", "100000000", *LONG)
SOAKS: dict[str, tuple[str, ...]] = {
    "awsc_online": ("--chunks", "100000000", "--buffer-size", "2000", *LONG),
    "dsrl_ppo": ENDLESS,
    "dsrl_sac": (*ENDLESS, "--buffer-size", "2000"),
    "dsrl_na": (*ENDLESS, "--buffer-size", "2000"),
    "reinflow": ("--total-env-steps", "100000000", *LONG),
}
MANISKILL, MANISKILL_STEPS, MANISKILL_ENVS = "maniskill", 100_000, 16


def resident_mib(pid: int) -> float:
    """Return the memory of a process, without file pages, which the system may reclaim."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1:3]
    return (int(resident) - int(shared)) * mmap.PAGESIZE / 2**20


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
        script, before, options = RECIPES[name]
        prepare(before)
        return fork(script, run_options(f"{name}-soak", options, *SOAKS[name]))
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


def soak(name: str, seconds: float, growth_mib: float) -> bool:
    """Run one program for the given time, print its measurements, and return whether all checks passed."""
    pid, begin = start(name), time.monotonic()
    memory: list[float] = []
    files: list[int] = []
    ended, status = False, 0
    while not ended and time.monotonic() - begin < seconds:
        time.sleep(min(5.0, seconds / 20))
        ended, status = (found := os.waitpid(pid, os.WNOHANG))[0] == pid, found[1]
        if not ended:
            memory.append(resident_mib(pid))
            files.append(len(os.listdir(f"/proc/{pid}/fd")))
    if not ended:
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
    fifth = len(memory) // 5
    grown = memory[-1] - memory[fifth] if memory else 0.0
    opened = files[-1] - max(files[: fifth + 1]) if files else 0
    good, done = _result(name, status, ended)
    good &= grown <= growth_mib and opened <= 0
    minutes = (time.monotonic() - begin) / 60
    print(
        f"{name:12} {minutes:5.1f} min, {done}; memory {memory[-1] if memory else 0:.0f} MiB, grown by {grown:.1f}; "
        f"open files {files[-1] if files else 0}, grown by {opened}: {'well' if good else 'NOT well'}",
        flush=True,
    )
    return good


def _result(name: str, status: int, ended: bool) -> tuple[bool, str]:
    """Return whether the program ended as expected, and its progress."""
    if name == MANISKILL:
        steps = Path("steps.txt").read_text(encoding="utf-8") if Path("steps.txt").exists() else "0"
        return (os.WEXITSTATUS(status) == 0 if ended else True), f"{steps} steps"
    run = Path("runs") / f"{name}-soak"
    stopped = not ended and os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGTERM
    step = load_checkpoint(run).step if run.exists() else 0
    values = read_metrics(run / "metrics.csv") if run.exists() else {}
    # Metrics without an episode or group in the batch are NaN by definition.
    wrong = [key for key, (_, found) in values.items() if "loss" in key and not all(map(math.isfinite, found))]
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
        for name in names:
            good &= soak(name, 60 * args.minutes, args.growth_mib)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
