"""Memory of ReinFlow: rollouts by number of environments, and updates by minibatch size.

    python benchmarks/memory.py
    python benchmarks/memory.py --obs rgb --num-envs 64 256
    python benchmarks/memory.py --device cuda

Each value is measured in a separate process: on a GPU torch's peak allocation, on a CPU the increase of the largest
resident set since the start of the work. `rollout` collects chunks of the planar task with the chain, 2 K H A numbers
per chunk; `rollout of features` stores the features of a frozen encoder instead of images. `update` is one gradient
step of PPO on a batch.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import ClipPPOLoss

from torchrl_flow.envs import make_chunk_env, make_task_env, observation_keys
from torchrl_flow.modules import (
    FlowActor,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValueConfig,
    flow_on_features,
    make_flow_actor,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.training import ChunkRollouts, append_features
from torchrl_flow.util.platform import largest_resident_mib

STATE_DIM, ACTION_DIM = 12, 3


@dataclasses.dataclass
class Args:
    """What to measure."""

    num_envs: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Numbers of environments of the rollouts."""
    batch_sizes: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of chunks of the updates."""
    obs: tuple[Literal["state", "rgb"], ...] = ("state", "rgb")
    """Observations; images are of 64 x 64 pixels."""
    rollout_steps: int = 16
    """Chunks per environment of a rollout."""
    num_steps: int = 4
    """Sampling steps K of the flow."""
    pred_horizon: int = 16
    """Predicted actions H of a chunk."""
    act_horizon: int = 8
    """Executed actions of a chunk."""
    width: int = 256
    """Width of the velocity network."""
    train_encoder: bool = False
    """Also train the encoder, which needs the activations for its gradient."""
    device: str = "cpu"
    """Device of networks and data."""
    case: str | None = None
    """One measurement as JSON; used internally by the measuring process."""


def make(args: Args, obs: str) -> FlowActor:
    config = FlowActorConfig(
        action_dim=ACTION_DIM,
        state_dim=STATE_DIM,
        pixels_size=(64, 64) if obs == "rgb" else None,
        obs_horizon=1,
        pred_horizon=args.pred_horizon,
        act_horizon=args.act_horizon,
        width=args.width,
        num_steps=args.num_steps,
    )
    return make_flow_actor(config).to(args.device)


def add_noise(args: Args, actor: FlowActor) -> NoisyFlowActor:
    return NoisyFlowActor(actor, make_noise_net(NoiseNetConfig(), actor), train_encoder=args.train_encoder)


def rollout(args: Args, obs: str, size: int, *, features: bool) -> TensorDictBase:
    """Collect chunks from `size` environments, with observations or with the features of a frozen encoder."""
    mode = "rgb+state" if obs == "rgb" else "state"
    base = make_task_env("planar", obs_mode=mode, num_envs=size, device=args.device)
    keys = observation_keys(mode)
    env = make_chunk_env(base, obs_horizon=1, act_horizon=args.act_horizon, gamma=0.99, obs_keys=keys)
    flow = make(args, obs)
    if features:
        append_features(env, flow)
    actor = add_noise(args, flow_on_features(flow) if features else flow)
    kept = [*actor.in_keys, "flow"]
    after = [*actor.in_keys, "reward", "done", "terminated", "steps_to_next_obs"]
    rollouts = ChunkRollouts(env, actor, args.rollout_steps, keep=kept, keep_next=after)
    return rollouts.collect()


def update(args: Args, obs: str, size: int) -> None:
    """Take one gradient step on `size` chunks."""
    actor = add_noise(args, make(args, obs))
    value = make_state_value(StateValueConfig(), actor.flow_actor)
    loss_module = ClipPPOLoss(actor, value)  # pyright: ignore[reportArgumentType]
    data = TensorDict(observation=torch.randn(size, 1, STATE_DIM), batch_size=[size]).to(args.device)
    if obs == "rgb":
        data["pixels"] = torch.randint(0, 256, (size, 1, 3, 64, 64), dtype=torch.uint8, device=args.device)
    parts = []
    with torch.no_grad():
        for start in range(0, size, 64):  # in parts, so that the update determines the peak
            part = actor(data[start : start + 64].clone())
            parts.append(part["flow"])
    data["flow"] = torch.cat(parts)
    data["advantage"], data["value_target"] = (torch.randn(size, 1, device=args.device) for _ in range(2))
    out = loss_module(data)
    torch.stack([loss for name, loss in out.items() if name.startswith("loss_")]).sum().backward()


def megabytes(data: TensorDictBase) -> float:
    return sum(value.numel() * value.element_size() for value in data.values(True, True)) / 2**20


def resident() -> float:
    """Return the largest resident set so far in MiB."""
    return largest_resident_mib()


def take(args: Args, case: dict[str, Any]) -> dict[str, float]:
    """Take one measurement in this process."""
    torch.set_num_threads(1)
    cuda = args.device.startswith("cuda")
    # The memory for the first use of the libraries is not counted.
    update(args, case["obs"], 2)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before, found = resident(), {}
    if case["what"] == "update":
        update(args, case["obs"], case["size"])
    else:
        data = rollout(args, case["obs"], case["size"], features=case["what"] == "rollout of features")
        found["data_mb"] = megabytes(data)
        found["flow_mb"] = megabytes(data.select("flow"))
    found["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident() - before
    return found


def cases(args: Args) -> Iterator[dict[str, Any]]:
    for obs in args.obs:
        for what, sizes in (
            ("rollout", args.num_envs),
            ("rollout of features", args.num_envs if obs == "rgb" and not args.train_encoder else ()),
            ("update", args.batch_sizes),
        ):
            for size in sizes:
                yield {"what": what, "obs": obs, "size": size}


def main(args: Args) -> None:
    if args.case is not None:
        print(json.dumps(take(args, json.loads(args.case))))
        return
    options = [f"--{name.replace('_', '-')}" for name in ("rollout_steps", "num_steps", "pred_horizon", "act_horizon")]
    values = (args.rollout_steps, args.num_steps, args.pred_horizon, args.act_horizon)
    common = [word for option, value in zip(options, values) for word in (option, str(value))]
    common += ["--width", str(args.width), "--device", args.device]
    common += ["--train-encoder"] if args.train_encoder else []
    kind = "allocated on the GPU" if args.device.startswith("cuda") else "resident set"
    print(f"MiB, peak of {kind}; data: what a rollout of {args.rollout_steps} chunks keeps, flow: the chain's part")
    print(f"{'what':22} {'obs':6} {'size':>6} {'peak':>8} {'data':>8} {'flow':>8}")
    for case in cases(args):
        command = [sys.executable, sys.argv[0], *common, "--case", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise SystemExit(f"{case} failed:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        cells = (f"{found[name]:8.1f}" if name in found else " " * 8 for name in ("peak_mb", "data_mb", "flow_mb"))
        print(f"{case['what']:22} {case['obs']:6} {case['size']:6} {' '.join(cells)}".rstrip(), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
