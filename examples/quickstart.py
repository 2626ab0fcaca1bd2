"""Clone a flow policy on the planar task and film its episodes, in under a minute.

python examples/quickstart.py
"""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import torch
from torchrl.objectives import SoftUpdate

from torchrl_flow.data import DemoReplayBuffer, DemoStore
from torchrl_flow.envs import PlanarPickPlaceEnv, collect_demonstrations, make_chunk_env
from torchrl_flow.evaluation import evaluate, evaluation_seeds
from torchrl_flow.figures import tile_episodes, video_suffix, write_video
from torchrl_flow.modules import FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss
from torchrl_flow.options import parse_options
from torchrl_flow.training import gradient_step
from torchrl_flow.util import Progress


@dataclasses.dataclass
class Args:
    """Options of the recipe."""

    iterations: int = 1200
    """gradient steps"""
    episodes: int = 100
    """episodes of each evaluation"""
    output: str = "quickstart"
    """path of the video without suffix, which depends on the formats that this machine can write"""
    seed: int = 0
    """seed of the networks and of training"""

    def __post_init__(self) -> None:
        if min(self.iterations, self.episodes) < 1:
            raise SystemExit(f"--iterations and --episodes must be at least 1, got {self.iterations}, {self.episodes}.")


def main(args: Args) -> None:
    """Clone, evaluate with one and with four sampling steps, and film the first episodes."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    horizons: dict[str, Any] = {"obs_horizon": 2, "pred_horizon": 16, "act_horizon": 8}

    # Demonstrations of mixed quality; action chunks are made when they are sampled.
    store = DemoStore.from_episodes(collect_demonstrations(200, quality="mixed"), tempfile.mkdtemp() + "/demos")
    buffer = DemoReplayBuffer(store, batch_size=256, next_obs=False, padding="hold", mask_padding=False, **horizons)

    # The policy: encoder, normalisers, velocity network and sampler.
    config = FlowActorConfig(action_dim=3, state_dim=store.frames["observation"].shape[-1], width=256, **horizons)
    actor = make_flow_actor(config, statistics=store.statistics(), action_low=-torch.ones(3), action_high=torch.ones(3))
    loss_module = ShortCutFlowLoss(actor)
    average = SoftUpdate(loss_module, eps=0.99)
    optimizer = torch.optim.AdamW(loss_module.parameters(), 1e-3, fused=True)

    with Progress(total=args.iterations, description="clone") as bar:
        for step in range(1, args.iterations + 1):
            batch = buffer.sample()
            loss = loss_module(batch)["loss_flow"]
            gradient_step({"loss_flow": loss}, {"adamw": optimizer}, step=step, batch=batch)
            average.step()
            bar.update(loss=loss.item())

    # All episodes in one batch; one transition of this environment is a whole chunk.
    env = PlanarPickPlaceEnv(args.episodes, ignore_terminations=True)
    env = make_chunk_env(env, obs_horizon=2, act_horizon=8, gamma=0.99)
    for num_steps in (1, 4):
        policy_kwargs = {"num_steps": num_steps}
        seeds = evaluation_seeds(args.episodes)
        result = evaluate(env, loss_module.ema_actor(), seeds, policy_kwargs=policy_kwargs, num_videos=4)
        print(f"K = {num_steps}: {result.summary()}")
    try:
        suffix = video_suffix()
    except RuntimeError as error:
        print(f"No video. {error}")
    else:
        print(write_video(args.output + suffix, tile_episodes(result.videos)))


if __name__ == "__main__":
    main(parse_options(Args, description=__doc__))
