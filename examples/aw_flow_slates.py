"""Clone logged latents weighted by a critic's advantages: advantage-weighted ShortCut flow with best-of-N actions.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/aw_flow_slates.py --data data/diffuse_topdown-medium-300000.npz
    python examples/aw_flow_slates.py --data your_own.npz --gamma 0.99    # no environment needed: see docs/slates.md

The policy is that of `flow_bc_slates.py`, the loss that of the robot recipe `aw_shortcut_flow_offline.py`: the critic
learns the value of the policy from the logged transitions, and the policy gives higher weight to latents that the
critic values above the policy's own. The last lines compare the best of N samples and a single sample with the
references.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tensordict import TensorDict

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.modules import BestOfN, CriticConfig, FlowActorConfig, SingleStepActor, make_critic, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OfflineArgs,
    Positive,
    Rate,
    SamplingSteps,
    Sizes,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.runs import Run
from torchrl_flow.training import LossGroup, NamedLossStepper


@dataclasses.dataclass(kw_only=True)
class Args(OfflineArgs):
    """Options of the recipe."""

    beta: NonNegative = 3.0
    """inverse temperature of the advantage weights; 0: cloning without weights"""
    weight_clip: Positive = 20.0
    """upper bound on the advantage weight of a row"""
    critic_warmup: NonNegativeInt = 500
    """number of first updates, which train only the critic"""
    num_action_samples: Count = 4
    """number of candidates for the next action; the target uses the best one; 1: a target without best-of-N"""
    best_of: Count = 16
    """number of samples of the acting policy; the sample with the highest value is executed"""
    gamma: Fraction = 0.8
    """discount"""
    tau: Rate = 0.005
    """rate (tau) at which the target critic follows the critic"""
    ema: Decay = 0.995
    """decay of the averaged policy"""
    lr: Positive = 1e-3
    """learning rate"""
    width: Count = 256
    """width of the velocity network"""
    depth: Count = 2
    """residual blocks of the velocity network"""
    num_steps: SamplingSteps = 1
    """sampling steps K of the policy: a power of two up to 16"""
    hidden_sizes: Sizes = (256, 256)
    """hidden layers of the critic"""


def as_chunks(batch: TensorDict) -> TensorDict:
    """Give a batch the dimensions of history and of chunks, of length 1."""
    following: Any = batch["next"]
    action = batch["action"].unsqueeze(-2)
    following.set("observation", following["observation"].unsqueeze(-2))
    following.set("steps_to_next_obs", torch.ones_like(following["done"], dtype=torch.int64))
    data = {"observation": batch["observation"].unsqueeze(-2), "action": action, "action_chunk": action}
    return TensorDict({**data, "next": following}, batch_size=batch.batch_size)


def make_loss(args: Args, task: OfflineTask) -> tuple[FlowActorConfig, CriticConfig, AWFlowLoss]:
    """Build the policy and the critic for the data's sizes, with statistics inside, and their loss."""
    sizes: dict[str, Any] = {
        "action_dim": task.action_dim,
        "state_dim": task.state_dim,
        "width": args.width,
        "depth": args.depth,
        "state_bound": args.state_bound or task.state_bound,
    }
    config = FlowActorConfig(**sizes, obs_horizon=1, pred_horizon=1, act_horizon=1, num_steps=args.num_steps)
    ones = torch.ones(config.action_dim)
    actor = make_flow_actor(config, statistics=task.statistics(), action_low=-ones, action_high=ones).to(args.device)
    critic = CriticConfig(num_qs=2, hidden_sizes=args.hidden_sizes, activation="relu")
    # Clicks are random: the advantage is the critic's, since a TD advantage rewards random clicks.
    loss = AWFlowLoss(
        actor,
        make_critic(critic, actor),
        beta=args.beta,
        weight_clip=args.weight_clip,
        advantage="critic",
        gamma=args.gamma,
        num_action_samples=args.num_action_samples,
        target_num_steps=args.num_steps,
    )
    return config, critic, loss


def make_stepper(args: Args, loss: AWFlowLoss) -> NamedLossStepper:
    """Build the stepper of an update: two optimisers and two averages."""
    critic = torch.optim.Adam(loss.critic_parameters(), args.lr, fused=True)
    actor = torch.optim.AdamW(loss.actor_parameters(), args.lr, weight_decay=1e-4, fused=True)
    targets = NetworkSoftUpdate(loss, "critic_network", tau=args.tau)
    averages = NetworkSoftUpdate(loss, "actor_network", eps=args.ema)
    options = {"warmup": args.critic_warmup, "max_grad_norm": 1.0, "target_updater": averages}
    groups = [
        LossGroup("loss_qvalue", critic, method="qvalue_loss", target_updater=targets),
        LossGroup("loss_actor", actor, method="actor_loss", **options),
    ]
    return NamedLossStepper(loss, groups, compute=args.compute(loss))


def acting_policy(args: Args, loss: AWFlowLoss, *, best_of: int | None = None) -> SingleStepActor:
    """Return the averaged policy for states without history; it acts by the best of N samples of the averaged critic.

    Evaluated without exploration, the first candidate starts from zero noise and the others from fixed noise.
    """
    number = args.best_of if best_of is None else best_of
    return SingleStepActor(
        BestOfN(loss.ema_actor(), loss.target_critic(), num_samples=number, num_steps=args.num_steps)
    )


def train(args: Args, run: Run, task: OfflineTask, loss: AWFlowLoss, stepper: NamedLossStepper) -> None:
    """Run the training loop."""
    modules = {"policy": loss.actor_network, "ema_policy": loss.ema_actor}
    modules |= {"critic": loss.critic_network, "target_critic": loss.target_critic}
    run.track(modules=modules, state={"stepper": stepper})
    for _ in run.steps(args.critic_warmup + args.iterations, save_every=args.save_every):
        metrics = stepper.update(as_chunks(task.data.sample()))
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if task.has_env and run.due(args.eval_every):
            run.log(task.evaluate(acting_policy(args, loss), episodes=args.eval_episodes).metrics())
            run.request_save()


def main(args: Args) -> None:
    """Load the data, then build, train and evaluate the policy."""
    args.prepare()
    options = {"env": args.env, "batch_size": args.batch_size, "gamma": args.gamma, "device": args.device}
    task = offline_task(args.data, args.models, **options)
    config, critic, loss = make_loss(args, task)
    best, configs = task.keep_best(args.eval_every), {"critic": critic, **task.module_configs}
    name = f"aw_flow-{task.path.stem}-{args.seed}"
    options = {"config": {"recipe": "aw_flow"}, "module_configs": configs, "keep_best": best}
    with args.open_run(name, task=task.info, actor_config=config, **options) as run:
        train(args, run, task, loss, make_stepper(args, loss))
        others = {"aw_flow": acting_policy(args, loss, best_of=1)}
        print(conclude_offline(run, task, acting_policy(args, loss), recipe="aw_flow_best", others=others))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
