"""Clone the logged latents with a ShortCut flow, which keeps the many ways to make a slate apart.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/flow_bc_slates.py --data data/diffuse_topdown-medium-300000.npz

The policy is a FlowActor of chunks of one latent: the loss and the policy of the robot recipes. Takes about four
minutes on one CPU core. The last lines compare its return with random latents, the short-term oracle, the policy that
logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
import tyro
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_flow import training
from torchrl_flow.modules import FlowActorConfig, SingleStepActor, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss


@dataclasses.dataclass
class Args:
    """What the recipe can be told on the command line."""

    data: str = "data/diffuse_topdown-medium-300000.npz"
    """logged transitions, from collect-slates"""
    models: str | None = None
    """belief encoder and ranker; runs/slate_models/ENV.torchrl where none is given"""
    name: str | None = None
    """name of the run"""
    runs: str = "runs"
    """directory of the runs"""
    results: str = "runs/results.csv"
    """table to which the result is appended"""
    label: str | None = None
    """what the table of results calls this variant; the data's policy where none is given"""
    seed: int = 0
    """seed of networks and training"""
    iterations: int = 20_000
    """updates"""
    batch_size: int = 256
    """transitions per update"""
    width: int = 256
    """width of the velocity network"""
    depth: int = 3
    """its residual blocks"""
    num_steps: int = 4
    """sampling steps K: a power of two up to 16"""
    lr: float = 1e-3
    """learning rate"""
    ema: float = 0.999
    """decay of the averaged policy"""
    eval_every: int = 5_000
    """updates between evaluations; 0 for none"""
    eval_episodes: int = 256
    """users of an evaluation"""
    threads: int = 1
    """CPU threads"""
    wandb: Literal["online", "offline"] | None = None
    """log to Weights & Biases"""
    tensorboard: bool = False
    """log to TensorBoard"""
    resume: bool = False
    """go on with a run that was stopped"""


def as_chunks(batch: TensorDict) -> TensorDict:
    """Give a batch the dimensions of history and of chunks, of length 1."""
    observation, chunk = batch["observation"].unsqueeze(-2), batch["action"].unsqueeze(-2)
    return TensorDict({"observation": observation, "action_chunk": chunk}, batch_size=batch.batch_size)


def make_loss(args: Args, task: training.SlateTask) -> tuple[FlowActorConfig, ShortCutFlowLoss]:
    """Build the policy for the data's sizes, with its statistics inside, and its loss."""
    config = FlowActorConfig(
        action_dim=task.action_dim,
        state_dim=task.state_dim,
        obs_horizon=1,
        pred_horizon=1,
        act_horizon=1,
        width=args.width,
        depth=args.depth,
        num_steps=args.num_steps,
    )
    ones = torch.ones(config.action_dim)
    actor = make_flow_actor(config, statistics=task.statistics(), action_low=-ones, action_high=ones)
    return config, ShortCutFlowLoss(actor)


def evaluate(args: Args, task: training.SlateTask, loss: ShortCutFlowLoss) -> training.SlateReturns:
    """Evaluate the averaged policy; it draws its noise."""
    return task.evaluate(SingleStepActor(loss.ema_actor()), episodes=args.eval_episodes, random=True)


def train(args: Args, run: training.Run, task: training.SlateTask, loss: ShortCutFlowLoss) -> None:
    """Train; all of the loop is here."""
    ema = SoftUpdate(loss, eps=args.ema)
    optimizer = torch.optim.AdamW(loss.parameters(), args.lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.iterations, 0.01 * args.lr)
    modules = {"policy": loss.actor_network, "ema_policy": loss.ema_policy}
    run.track(modules=modules, optimizers={"adamw": optimizer}, state={"schedule": schedule})
    for step in run.steps(args.iterations, save_every=args.iterations):
        losses = loss(as_chunks(task.data.sample()))
        losses["loss_flow"].backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ema.eps = min(args.ema, (1 + step) / (10 + step))
        ema.step()
        if step % 1000 == 0:
            run.log({f"train/{key}": value for key, value in losses.items()})
        if args.eval_every and step % args.eval_every == 0:
            run.log(evaluate(args, task, loss).metrics())


def main(args: Args) -> None:
    """Data, policy, training, evaluation."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    task = training.offline_task(args.data, args.models, batch_size=args.batch_size)
    directory = Path(args.runs) / (args.name or f"flow_bc-{task.path.stem}-{args.seed}")
    config, loss = make_loss(args, task)
    options = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    with training.Run(directory, args, task=task.info, actor_config=config, **options) as run:
        train(args, run, task, loss)
        result = evaluate(args, task, loss)
        row = {"seed": args.seed, "episodes": args.eval_episodes, "wall_s": run.wall_s, "stage": args.label}
        task.record(args.results, "bc_slates", result, **row)
        print(task.report(directory, "bc_slates", result, episodes=args.eval_episodes))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
