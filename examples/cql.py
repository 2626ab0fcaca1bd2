"""CQL on logged transitions: conservative values of actions outside the data, with the paper's penalty.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/cql.py --data data/diffuse_topdown-medium-300000.npz
    python examples/cql.py --data your_own.npz --gamma 0.99    # no environment needed: see docs/slates.md

Takes about ten minutes on one CPU core. The last lines compare the policy's return with random latents, the short-term
oracle, the policy that logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses

import torch
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
from torchrl_flow.objectives import ConservativeQLoss, DirectSoftUpdate
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OfflineArgs,
    Positive,
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

    min_q_weight: NonNegative = 5.0
    """weight of the conservative term"""
    num_random: Count = 10
    """sampled actions of each of the three kinds (uniform, policy, next policy) in the conservative term"""
    bc_updates: NonNegativeInt = 2000
    """updates in which the policy clones the data before it maximises the critic"""
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


def make_loss(args: Args, task: OfflineTask, config: StatePolicyConfig) -> tuple[TensorDictModule, ConservativeQLoss]:
    """Build the policy, and its loss with two critics and the paper's squared error."""
    statistics = task.statistics()["observation"]
    policy = make_state_policy(config, statistics).to(args.device)
    critics = [critic.to(args.device) for critic in make_state_values(config, statistics)]
    loss = ConservativeQLoss(
        policy,  # pyright: ignore[reportArgumentType]
        critics,  # pyright: ignore[reportArgumentType]
        loss_function="l2",
        action_spec=Bounded(-1.0, 1.0, torch.Size([config.action_dim]), device=args.device),
        min_q_weight=args.min_q_weight,
        num_random=args.num_random,
    )
    loss.make_value_estimator(gamma=args.gamma)
    return policy, loss


def train(args: Args, run: Run, task: OfflineTask, policy: TensorDictModule, loss: ConservativeQLoss) -> None:
    """Run the training loop."""
    target = DirectSoftUpdate(loss, tau=args.tau)
    # One optimiser equals three, since each term affects the parameters of only one network.
    optimizer = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"adam": optimizer})
    compute = args.compiled(loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        batch = task.data.sample()
        losses = compute(batch)
        actor = "loss_actor_bc" if step <= args.bc_updates else "loss_actor"
        due = {name: losses[name] for name in (actor, "loss_qvalue", "loss_cql", "loss_alpha")}
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
        task.state_dim, task.action_dim, "gaussian", args.hidden_sizes, args.layer_norm, state_bound=bound
    )
    name = f"cql-{task.path.stem}-{args.seed}"
    configs = {"state_policy": config, **task.module_configs}
    best = task.keep_best(args.eval_every)
    with args.open_run(name, task=task.info, module_configs=configs, keep_best=best) as run:
        policy, loss = make_loss(args, task, config)
        train(args, run, task, policy, loss)
        print(conclude_offline(run, task, policy, recipe="cql", loss=loss))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
