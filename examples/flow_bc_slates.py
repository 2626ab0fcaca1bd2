"""Clone the logged latents with a ShortCut flow, which can represent several modes of slates.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/flow_bc_slates.py --data data/diffuse_topdown-medium-300000.npz
    python examples/flow_bc_slates.py --data your_own.npz    # no environment needed: see docs/slates.md

The policy is a FlowActor with chunks of one latent; loss and policy are those of the robot recipes. Takes about four
minutes on one CPU core. The last lines compare its return with random latents, the short-term oracle, the policy that
logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.modules import FlowActorConfig, SingleStepActor, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    Decay,
    OfflineArgs,
    Positive,
    SamplingSteps,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.runs import Run
from torchrl_flow.training import gradient_step


@dataclasses.dataclass(kw_only=True)
class Args(OfflineArgs):
    """Options of the recipe."""

    width: Count = 256
    """width of the velocity network"""
    depth: Count = 3
    """residual blocks of the velocity network"""
    num_steps: SamplingSteps = 4
    """sampling steps K: a power of two up to 16"""
    lr: Positive = 1e-3
    """learning rate"""
    ema: Decay = 0.999
    """decay of the averaged policy"""


def as_chunks(batch: TensorDict) -> TensorDict:
    """Give a batch the dimensions of history and of chunks, of length 1."""
    observation, chunk = batch["observation"].unsqueeze(-2), batch["action"].unsqueeze(-2)
    return TensorDict({"observation": observation, "action_chunk": chunk}, batch_size=batch.batch_size)


def make_loss(args: Args, task: OfflineTask) -> tuple[FlowActorConfig, ShortCutFlowLoss]:
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
        state_bound=args.state_bound or task.state_bound,
    )
    ones = torch.ones(config.action_dim)
    actor = make_flow_actor(config, statistics=task.statistics(), action_low=-ones, action_high=ones)
    return config, ShortCutFlowLoss(actor.to(args.device))


def acting_policy(loss: ShortCutFlowLoss) -> SingleStepActor:
    """Return the averaged policy for states without history, which draws random noise."""
    return SingleStepActor(loss.ema_actor())


def cosine(args: Args) -> Callable[[int], float]:
    """Return the factor of the learning rate after a number of updates; it decreases to 0.01."""
    return lambda done: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done / args.iterations)))


def train(args: Args, run: Run, task: OfflineTask, loss: ShortCutFlowLoss) -> None:
    """Run the training loop."""
    ema = SoftUpdate(loss, eps=args.ema)
    optimizer = torch.optim.AdamW(loss.parameters(), args.lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(args))
    modules = {"policy": loss.actor_network, "ema_policy": loss.ema_actor}
    run.track(modules=modules, optimizers={"adamw": optimizer}, state={"schedule": schedule})
    compute = args.compiled(loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        batch = as_chunks(task.data.sample())
        losses = compute(batch)
        due = {"loss_flow": losses["loss_flow"]}
        norms = gradient_step(due, {"adamw": optimizer}, step=step, batch=batch, max_grad_norm=1.0)
        schedule.step()
        ema.eps = min(args.ema, (1 + step) / (10 + step))
        ema.step()
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in (dict(losses.items()) | norms).items()})
        if task.has_env and run.due(args.eval_every):
            result = task.evaluate(acting_policy(loss), episodes=args.eval_episodes, random=True)
            run.log(result.metrics())
            run.request_save()


def main(args: Args) -> None:
    """Load the data, then build, train and evaluate the policy."""
    args.prepare()
    task = offline_task(args.data, args.models, env=args.env, batch_size=args.batch_size, device=args.device)
    name = f"flow_bc-{task.path.stem}-{args.seed}"
    config, loss = make_loss(args, task)
    best = task.keep_best(args.eval_every)
    configs = task.module_configs
    with args.open_run(name, task=task.info, actor_config=config, module_configs=configs, keep_best=best) as run:
        train(args, run, task, loss)
        policy = acting_policy(loss)
        print(conclude_offline(run, task, policy, recipe="bc_slates", random=True))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
