"""Speed of several collector processes, compared with one process with the same total number of environments.

    python benchmarks/collectors.py
    python benchmarks/collectors.py --num-envs 64 --processes 2 --results benchmarks/results.csv
    python benchmarks/collectors.py --task planar --ray

The benchmark collects rollouts of the noisy flow policy of `reinflow.py` with its default sizes, alternately by one
process with ``--num-envs`` environments (``ChunkRollouts``) and by ``--processes`` processes with the same total number
(``CollectorRollouts``, or ``RayRollouts`` with ``--ray``). The time of the processes includes sending the weights and
concatenating the data. Two ratios are printed, each from measurements of the same turn:

- of wall time. It depends on the number of free cores, so the load of the machine is printed too;
- of CPU time on the longest path: this process and the busiest collector. It equals wall time on a machine with a free
  core for each process.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
from typing import Any

import torch
import tyro

from torchrl_flow.envs import PLANAR, CollectorEnvs, ManiSkillEnv, PlanarPickPlaceEnv, make_chunk_env
from torchrl_flow.modules import FlowActorConfig, NoiseNetConfig, NoisyFlowActor, make_flow_actor, make_noise_net
from torchrl_flow.reports import append_benchmark
from torchrl_flow.training import CollectorRollouts, RayRollouts, make_rollouts


@dataclasses.dataclass
class Args:
    """What to measure."""

    task: str = "PickCube-v1"
    """ManiSkill id, or planar"""
    num_envs: int = 64
    """total number of environments"""
    processes: int = 2
    """collector processes"""
    ray: bool = False
    """collect with Ray workers"""
    rollout_steps: int = 16
    """chunks per environment and rollout"""
    rounds: int = 7
    """turns"""
    results: str | None = None
    """results.csv to append a row to"""


def make_env(task: str, num_envs: int) -> Any:
    """Make a batch of environments with chunks of four steps."""
    limits: dict[str, Any] = {"max_episode_steps": 100, "control_mode": "pd_ee_delta_pose", "visuals": False}
    env = PlanarPickPlaceEnv(num_envs) if task == PLANAR else ManiSkillEnv(task, num_envs=num_envs, **limits)
    return make_chunk_env(env, obs_horizon=2, act_horizon=4, gamma=0.99)


def make_policy(env: Any) -> NoisyFlowActor:
    """Make a noisy flow with the recipe's sizes and initial weights."""
    (state_dim,), (action_dim,) = env.observation_spec["observation"].shape[2:], env.action_spec.shape[2:]
    config = FlowActorConfig(action_dim=action_dim, state_dim=state_dim, obs_horizon=2, act_horizon=4, num_steps=4)
    actor = make_flow_actor(config, action_low=-torch.ones(action_dim), action_high=torch.ones(action_dim))
    return NoisyFlowActor(actor, make_noise_net(NoiseNetConfig(sigma_min=0.05), actor))


def cpu_s(pid: int) -> float:
    """Seconds of CPU time of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rollouts: Any) -> tuple[float, float]:
    """Collect once; return wall time and CPU time on the longest path, in milliseconds per environment step."""
    pids = []
    if isinstance(rollouts, CollectorRollouts) and rollouts.collector is not None:
        pids = [process.pid for process in rollouts.collector.procs]
    elif isinstance(rollouts, RayRollouts):
        pids = [place[1] for place in rollouts.places if place is not None]
    before = [cpu_s(pid) for pid in pids]
    clock, cpu = time.perf_counter(), time.process_time()
    data = rollouts.collect()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    cpu += max((cpu_s(pid) - start for pid, start in zip(pids, before, strict=True)), default=0.0)
    steps = int(data["next", "steps_to_next_obs"].sum())
    return 1e3 * clock / steps, 1e3 * cpu / steps


def main(args: Args) -> None:
    """Measure and print."""
    if args.num_envs % args.processes:
        raise SystemExit(f"--num-envs {args.num_envs} cannot be shared among --processes {args.processes}.")
    each = args.num_envs // args.processes
    env = make_env(args.task, args.num_envs)
    policy = make_policy(env)
    makers = CollectorEnvs(functools.partial(make_env, args.task, each), args.processes, each, on_ray=args.ray)
    one, several = (make_rollouts(what, policy, args.rollout_steps, seed=0) for what in (env, makers))
    for rollouts in (one, several):  # warms up
        rollouts.collect()
    turns = [(measure(one), measure(several)) for _ in range(args.rounds)]
    several.close()
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{args.task}, {args.num_envs} environments, median of {args.rounds} turns, {load}")
    for number, name in enumerate(("clock", "CPU time on the longest path")):
        alone, together = ([turn[which][number] for turn in turns] for which in (0, 1))
        ratios = sorted(ours / reference for ours, reference in zip(together, alone, strict=True))
        reference, ours, ratio = (statistics.median(values) for values in (alone, together, ratios))
        print(
            f"{name}: 1 process of {args.num_envs} {reference:.3f} ms an environment step "
            f"({1e3 / reference:.0f} a second), {args.processes} processes of {each} {ours:.3f} ms "
            f"({1e3 / ours:.0f} a second): {1 / ratio:.2f} times faster [{1 / ratios[-1]:.2f}, {1 / ratios[0]:.2f}]"
        )
        if args.results is not None:
            append_benchmark(
                args.results,
                pair=f"{type(several).__name__}, {args.processes} processes of {each} / ChunkRollouts, 1 process of "
                f"{args.num_envs}, {args.task}",
                mode=f"{name}, an env step" + (f", {load}" if name == "clock" else ""),
                device="cpu",
                threads=args.processes,
                ours_ms=ours,
                reference_ms=reference,
                ratio=ratio,
                ratio_low=ratios[0],
                ratio_high=ratios[-1],
            )


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)
    main(arguments)
