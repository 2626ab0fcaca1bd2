"""Speed of many ManiSkill environments in one CPU process, compared with ManiSkill's own options on a CPU.

    python benchmarks/maniskill_batch.py
    python benchmarks/maniskill_batch.py --tasks PickCube-v1 --num-envs 32 --results benchmarks/results.csv

The contenders are measured alternately in the same process and state, with a few control steps of random actions per
round. The output has CPU time and wall time in milliseconds per environment step of

- ManiSkill's own single environment, stepped as its documentation does;
- ``gymnasium.vector.AsyncVectorEnv`` over two processes of one environment each, the usual way to run several
  environments on a CPU;
- ``ManiSkillEnv(task, num_envs=N)``, in one thread and in two;
- the same in one thread with ``SMDPChunk``, with chunks of ``--act-horizon`` actions;
- the lower bound: only the PhysX steps of a control step of that environment.

The share of a step for reading observations is printed too; chunks could skip it in steps without observation.

CPU time, of all threads and processes, is the better measure on a shared machine. Memory is the increase of the process
per environment.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from torchrl.envs import TransformedEnv

from torchrl_flow.envs import ManiSkillEnv
from torchrl_flow.envs.maniskill.headless import headless
from torchrl_flow.envs.transforms import SMDPChunk
from torchrl_flow.reports import append_benchmark

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Args:
    """What to measure."""

    tasks: tuple[str, ...] = ("PickCube-v1", "LiftPegUpright-v1", "StackCube-v1", "PushCube-v1")
    """ManiSkill ids"""
    num_envs: tuple[int, ...] = (1, 4, 16, 64, 256)
    """numbers of sub-environments"""
    threads: tuple[int, ...] = (1, 2)
    """threads that step them"""
    rounds: int = 5
    """turns"""
    env_steps: int = 128
    """environment steps of a contender per turn, at least one step of all its sub-environments"""
    act_horizon: int = 8
    """actions in a chunk; 0 skips the measurement with chunks"""
    processes: int = 2
    """processes of AsyncVectorEnv; 0 skips it"""
    control_mode: str = "pd_ee_delta_pose"
    """controller"""
    results: str | None = None
    """results.csv to append a row to for each pair"""


class Contender:
    """A way to step environments, and its measured times."""

    def __init__(
        self,
        label: str,
        threads: int,
        num_envs: int,
        step: Callable[[], Any],
        pids: Sequence[int] = (),
        act_horizon: int = 1,
    ) -> None:
        self.label, self.threads, self.num_envs, self.step, self._pids = label, threads, num_envs, step, pids
        self._steps = num_envs * act_horizon
        self.cpu_ms: list[float] = []
        self.wall_ms: list[float] = []

    def measure(self, env_steps: int) -> None:
        """Step, and record milliseconds per environment step."""
        calls = max(1, env_steps // self._steps)
        cpu, wall = time.process_time() + _cpu_of(self._pids), time.perf_counter()
        for _ in range(calls):
            self.step()
        wall = time.perf_counter() - wall
        cpu = time.process_time() + _cpu_of(self._pids) - cpu
        self.cpu_ms.append(1e3 * cpu / calls / self._steps)
        self.wall_ms.append(1e3 * wall / calls / self._steps)


def _cpu_of(pids: Sequence[int]) -> float:
    """Return CPU seconds of processes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _megabytes() -> float:
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _actions(shape: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(*shape, generator=generator) * 2 - 1 for _ in range(64)]


def _single(task: str, control_mode: str) -> gymnasium.Env:
    from mani_skill.utils.wrappers import CPUGymWrapper

    with headless():
        options: dict[str, Any] = {"obs_mode": "state", "reward_mode": "sparse", "render_backend": "none"}
        env = gymnasium.make(task, control_mode=control_mode, max_episode_steps=100_000, **options)
    return CPUGymWrapper(env)


def maniskill(task: str, control_mode: str) -> Contender:
    """Return a contender of ManiSkill's single environment."""
    env = _single(task, control_mode).unwrapped
    env.reset(seed=0)
    actions, count = _actions(env.action_space.shape or ()), iter(range(10**9))
    return Contender("ManiSkill's single environment", 1, 1, lambda: env.step(actions[next(count) % 64]))


def processes(task: str, control_mode: str, number: int) -> Contender:
    """``AsyncVectorEnv`` over processes of one environment."""
    env = gymnasium.vector.AsyncVectorEnv([lambda: _single(task, control_mode)] * number, context="spawn")
    env.reset(seed=0)
    actions, count = [a.numpy().astype(np.float32) for a in _actions(env.action_space.shape or ())], iter(range(10**9))
    pids = [int(process.pid or 0) for process in env.processes]
    return Contender(
        f"AsyncVectorEnv, {number} processes", number, number, lambda: env.step(actions[next(count) % 64]), pids
    )


@dataclasses.dataclass
class Batch:
    """The batched environment, its lower bound (with one thread), and its megabytes per environment."""

    ours: Contender
    floor: Contender | None
    megabytes: float
    env: ManiSkillEnv


def observation_share(batch: Batch, env_steps: int) -> float:
    """Return the share of a step's time for reading, flattening and copying observations.

    A chunk could skip this in steps without observation. Reads of the simulation by rewards, success and controllers
    are not included, since they are needed in every step.
    """
    seconds = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[0] += time.perf_counter() - start

        return call

    base = batch.env._env.unwrapped
    parts = [(base, "get_obs"), (base, "_flatten_raw_obs"), (batch.env, "_read")]
    for owner, name in parts:
        owner.__dict__[name] = timed(getattr(owner, name))
    start = time.perf_counter()
    for _ in range(max(1, 4 * env_steps // batch.ours.num_envs)):
        batch.ours.step()
    share = seconds[0] / (time.perf_counter() - start)
    for owner, name in parts:
        del owner.__dict__[name]
    return share


def batch(task: str, control_mode: str, num_envs: int, threads: int) -> Batch:
    """Make the batched environment."""
    before = _megabytes()
    options: dict[str, Any] = {"visuals": False, "max_episode_steps": 100_000, "control_mode": control_mode, "seed": 0}
    env = ManiSkillEnv(task, num_envs=num_envs, threads=threads, **options)
    grown = (_megabytes() - before) / num_envs
    state = env.reset()
    actions, count = _actions(env.action_spec.shape), iter(range(10**9))

    def step() -> None:
        nonlocal state
        state = env.step(state.set("action", actions[next(count) % 64]))["next"]

    base = env._env.unwrapped
    systems = getattr(base.scene.px, "systems", [base.scene.px])

    def physics() -> None:
        for system in systems:
            for _ in range(base._sim_steps_per_control):
                system.step()

    ours = Contender(f"N = {num_envs}", threads, num_envs, step)
    floor = Contender(f"PhysX alone, N = {num_envs}", 1, num_envs, physics) if threads == 1 else None
    return Batch(ours, floor, grown, env)


def chunks(made: Batch, act_horizon: int) -> Contender:
    """Return a contender that steps the environment of a batch by chunks; no episode ends in between."""
    env = TransformedEnv(made.env, SMDPChunk(act_horizon))
    state = env.reset()
    actions, count = _actions(env.action_spec.shape), iter(range(10**9))

    def step() -> None:
        nonlocal state
        state = env.step(state.set("action", actions[next(count) % 64]))["next"]

    label = f"{made.ours.label}, chunks of {act_horizon}"
    return Contender(label, 1, made.ours.num_envs, step, act_horizon=act_horizon)


def measure(args: Args, task: str, *, with_memory: bool) -> None:
    """Measure one task and print a line for each contender; memory is valid only before any memory was freed."""
    reference = maniskill(task, args.control_mode)
    contenders = [reference]
    if args.processes:
        contenders.append(processes(task, args.control_mode, args.processes))
    memory: dict[str, float] = {}
    batches: list[Batch] = []
    for num_envs in args.num_envs:
        for threads in args.threads if num_envs > 1 else args.threads[:1]:
            made = batch(task, args.control_mode, num_envs, threads)
            memory[made.ours.label] = made.megabytes
            contenders += [made.ours] if made.floor is None else [made.ours, made.floor]
            if args.act_horizon and threads == 1:
                chunked = batch(task, args.control_mode, num_envs, threads)
                contenders.append(chunks(chunked, args.act_horizon))
                memory[contenders[-1].label] = chunked.megabytes
            batches.append(made)
    for turn in range(args.rounds + 1):
        for contender in contenders:
            contender.measure(args.env_steps)
            if turn == 0:  # warms up
                contender.cpu_ms.clear()
                contender.wall_ms.clear()
    shares = {made.ours.label: observation_share(made, args.env_steps) for made in batches if made.floor is not None}
    print(f"\n{task}: milliseconds an environment step, median of {args.rounds} turns")
    print(f"{'':40} threads   CPU    clock   times faster: CPU [least, most], clock   memory of each")
    for one in contenders:
        cpu = [r / c for r, c in zip(reference.cpu_ms, one.cpu_ms, strict=True)]
        wall = [r / c for r, c in zip(reference.wall_ms, one.wall_ms, strict=True)]
        megabytes = f"{memory[one.label]:.1f} MB" if with_memory and one.label in memory else ""
        clock = statistics.median(wall)
        times = statistics.median(one.cpu_ms), statistics.median(one.wall_ms)
        print(
            f"{one.label:40} {one.threads:7d} {times[0]:7.3f} {times[1]:7.3f}   "
            f"{statistics.median(cpu):8.2f} [{min(cpu):.2f}, {max(cpu):.2f}] {clock:14.2f} {megabytes}"
        )
        if args.results is not None and one is not reference:
            ratios = sorted(1 / ratio for ratio in cpu)
            ours = one.label in memory
            append_benchmark(
                args.results,
                pair=f"{'ManiSkillEnv' if ours else one.label} / ManiSkill's single environment, {task}",
                mode=f"CPU time an env step, {one.label}, {memory[one.label]:.1f} MB each"
                if ours
                else "CPU time an env step",
                device="cpu",
                threads=one.threads,
                ours_ms=statistics.median(one.cpu_ms),
                reference_ms=statistics.median(reference.cpu_ms),
                ratio=statistics.median(ratios),
                ratio_low=ratios[0],
                ratio_high=ratios[-1],
            )
    print("share of observations in a step: " + ", ".join(f"{label} {share:.1%}" for label, share in shares.items()))


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)
    for number, name in enumerate(arguments.tasks):
        measure(arguments, name, with_memory=number == 0)
