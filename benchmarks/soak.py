"""Long AWSC training (100,000 updates) on the planar task that checks for finite numbers and constant memory.

python benchmarks/soak.py

Prints success, the largest values and the memory at ten points; exits with 1 if a number was not finite or the memory
grew by more than the limit between the second and the last point.
"""

from __future__ import annotations

import dataclasses
import gc
import mmap
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import tyro
from torchrl.collectors import Collector

from torchrl_flow.data import DemoReplayBuffer, DemoStore, MixedReplayBuffer
from torchrl_flow.envs import PlanarPickPlaceEnv, collect_demonstrations, make_chunk_env
from torchrl_flow.modules import CriticConfig, FlowActorConfig, make_critic, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.training import LossGroup, NamedLossStepper
from torchrl_flow.util import Progress
from torchrl_flow.util.platform import largest_resident_mib


@dataclasses.dataclass
class Args:
    """Options of the soak test."""

    updates: int = 100_000
    """critic updates; the actor is updated once per 8"""
    batch_size: int = 64
    """chunks in a batch"""
    width: int = 32
    """width of all networks"""
    num_qs: int = 2
    """members of the critic; more take longer without a further check"""
    ring: int = 5000
    """capacity for online chunks, far below the number of collected chunks"""
    growth_mib: float = 32.0
    """allowed growth of memory between a fifth of the training and its end"""
    seed: int = 0
    """seed of networks, environments and training"""


def resident_mib() -> float:
    """Return the current memory of the process; on systems other than Linux, its peak."""
    gc.collect()
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text(encoding="utf-8").split()[1]) * mmap.PAGESIZE / 2**20
    return largest_resident_mib()


def make_parts(args: Args, folder: str) -> tuple[MixedReplayBuffer, AWFlowLoss, NamedLossStepper, Collector]:
    """Build buffer, loss, stepper and collector."""
    chunks: dict[str, Any] = {"pred_horizon": 8, "act_horizon": 4, "obs_horizon": 1}
    store = DemoStore.from_episodes(collect_demonstrations(100, quality="mixed"), folder)
    demos = DemoReplayBuffer(store, gamma=0.97, **chunks)
    buffer = MixedReplayBuffer(demos, online=args.ring, batch_size=args.batch_size)
    config = FlowActorConfig(action_dim=3, state_dim=12, width=args.width, depth=1, num_steps=1, **chunks)
    ones = torch.ones(3)
    actor = make_flow_actor(config, statistics=store.statistics(), action_low=-ones, action_high=ones)
    critic = make_critic(CriticConfig(num_qs=args.num_qs, hidden_sizes=(args.width,) * 2), actor)
    options: dict[str, Any] = {"beta": 100.0, "weight_clip": 200.0, "advantage_reduction": "min"}
    loss = AWFlowLoss(actor, critic, gamma=0.97, filter_policy_data=True, **options)
    target = NetworkSoftUpdate(loss, "critic_network", tau=0.005)
    average = NetworkSoftUpdate(loss, "actor_network", tau=0.005)
    adam = [
        torch.optim.Adam(parameters, 3e-4, fused=True)
        for parameters in (loss.critic_parameters(), loss.actor_parameters())
    ]
    groups = [
        LossGroup("loss_qvalue", adam[0], method="qvalue_loss", target_updater=target),
        LossGroup("loss_actor", adam[1], method="actor_loss", every=8, max_grad_norm=1.0, target_updater=average),
    ]
    env = make_chunk_env(PlanarPickPlaceEnv(16), obs_horizon=1, act_horizon=4, gamma=0.97)
    collector = Collector(env, actor, frames_per_batch=16, total_frames=-1)
    return buffer, loss, NamedLossStepper(loss, groups, utd_ratio=8), collector


def main(args: Args) -> int:
    """Train, and check numbers and memory."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    memory: list[float] = []
    largest: dict[str, float] = {}
    ended, finite = torch.zeros(2), True
    with tempfile.TemporaryDirectory() as folder, Progress(args.updates, description="soak") as bar:
        buffer, loss, stepper, collector = make_parts(args, folder + "/demos")
        for data in collector:
            buffer.extend(data)
            done = data["next", "done"]
            ended += torch.tensor([float(data["next", "success"][done].sum()), float(done.sum())])
            for _ in range(stepper.updates_due(buffer.write_count)):
                for name, value in stepper.update(buffer.sample()).items():
                    finite &= bool(torch.isfinite(value)) or name == "consistency_error"
                    largest[name] = max(largest.get(name, 0.0), abs(value.item()))
            bar.update(16 * 8)
            if stepper.num_updates >= (len(memory) + 1) * args.updates / 10:
                memory.append(resident_mib())
                rate = ended[0] / ended[1].clamp(min=1)
                print(f"{stepper.num_updates:7d} updates: {memory[-1]:7.1f} MiB, success of training {rate:.2f}")
                ended.zero_()
            if stepper.num_updates >= args.updates or not finite:
                break
        collector.shutdown()
    finite &= all(bool(torch.isfinite(p).all()) for p in loss.state_dict().values() if isinstance(p, torch.Tensor))
    growth = memory[-1] - memory[1] if len(memory) > 1 else 0.0
    print({name: round(value, 3) for name, value in largest.items()})
    print(f"all finite: {finite}; memory grew by {growth:.1f} MiB between the second point and the last")
    return int(not finite or growth > args.growth_mib)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
