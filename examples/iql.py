"""IQL on logged transitions: expectile values and an advantage-weighted policy, with TorchRL's loss.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/iql.py --data data/diffuse_topdown-medium-300000.npz
    python examples/iql.py --data your_own.npz --gamma 0.99    # no environment needed: see docs/slates.md

Takes about four minutes on one CPU core. The last lines compare the policy's return with random latents, the
short-term oracle, the policy that logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values
from torchrl_flow.objectives import DirectIQLLoss, DirectSoftUpdate
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Fraction,
    NonNegative,
    OfflineArgs,
    Positive,
    Range,
    Rate,
    Sizes,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.recsys import q_diagnostics
from torchrl_flow.runs import Run
from torchrl_flow.training import gradient_step


@dataclasses.dataclass(kw_only=True)
class Args(OfflineArgs):
    """Options of the recipe."""

    expectile: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.7
    """expectile of the value; 0.5 is the mean"""
    temperature: NonNegative = 3.0
    """inverse temperature of the advantage weights; 0: cloning only"""
    gamma: Fraction = 0.8
    """discount; at .99 values diverge on these data"""
    tau: Rate = 0.005
    """rate (tau) at which the target networks follow the networks"""
    lr: Positive = 3e-4
    """learning rate"""
    hidden_sizes: Sizes = (256, 256)
    """hidden layers"""
    layer_norm: bool = True
    """normalise the hidden layers of the critics, against divergence outside the data"""


def make_loss(args: Args, task: OfflineTask, config: StatePolicyConfig) -> tuple[TensorDictModule, DirectIQLLoss]:
    """Build the policy, and its loss with two critics, a value network and the paper's squared error."""
    statistics = task.statistics()["observation"]
    policy = make_state_policy(config, statistics).to(args.device)
    critics = [critic.to(args.device) for critic in make_state_values(config, statistics)]
    loss = DirectIQLLoss(
        policy,  # pyright: ignore[reportArgumentType]
        critics,  # pyright: ignore[reportArgumentType]
        make_observation_value(config, statistics).to(args.device),
        loss_function="l2",
        expectile=args.expectile,
        temperature=args.temperature,
    )
    loss.make_value_estimator(gamma=args.gamma)
    return policy, loss


def train(args: Args, run: Run, task: OfflineTask, policy: TensorDictModule, loss: DirectIQLLoss) -> None:
    """Run the training loop."""
    target = DirectSoftUpdate(loss, tau=args.tau)
    # One optimiser equals three, since each term affects the parameters of only one network.
    optimizer = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"adam": optimizer})
    compute = args.compiled(loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        batch = task.data.sample()
        losses = compute(batch)
        due = {name: losses[name] for name in ("loss_actor", "loss_qvalue", "loss_value")}
        norms = gradient_step(due, {"adam": optimizer}, step=step, batch=batch)
        target.step()
        if run.due(args.log_every):
            scores = q_diagnostics(loss, batch, policy, bound=task.value_bound)
            run.log({f"train/{key}": value for key, value in (dict(losses.items()) | norms).items()} | scores)
        if task.has_env and run.due(args.eval_every):
            run.log(task.evaluate(policy, episodes=args.eval_episodes).metrics())
            run.request_save()


def main(args: Args) -> None:
    """Load the data, then build, train and evaluate the policy."""
    args.prepare()
    task = offline_task(
        args.data, args.models, env=args.env, batch_size=args.batch_size, gamma=args.gamma, device=args.device
    )
    bound = args.state_bound or task.state_bound
    config = StatePolicyConfig(
        task.state_dim, task.action_dim, "normal", args.hidden_sizes, args.layer_norm, state_bound=bound
    )
    name = f"iql-{task.path.stem}-{args.seed}"
    configs = {"state_policy": config, **task.module_configs}
    best = task.keep_best(args.eval_every)
    with args.open_run(name, task=task.info, module_configs=configs, keep_best=best) as run:
        policy, loss = make_loss(args, task, config)
        train(args, run, task, policy, loss)
        print(conclude_offline(run, task, policy, recipe="iql", loss=loss))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
