"""TD3+BC on logged transitions: a deterministic policy with TorchRL's loss; alpha 0 is behaviour cloning.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/td3_bc.py --data data/diffuse_topdown-medium-300000.npz
    python examples/td3_bc.py --data your_own.npz --gamma 0.99    # no environment needed: see docs/slates.md

Takes about three minutes on one CPU core. The last lines compare the policy's return with random latents, the
short-term oracle, the policy that logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from tensordict.nn import TensorDictModule

from torchrl_flow.evaluation import OfflineTask
from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values
from torchrl_flow.objectives import DirectSoftUpdate, DirectTD3BCLoss
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegative,
    NotAbove,
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

    alpha: NonNegative = 2.5
    """weight of the critic relative to cloning; 0: cloning only"""
    gamma: Fraction = 0.8
    """discount; at .99 values diverge on these data"""
    tau: Rate = 0.005
    """rate (tau) at which the target networks follow the networks"""
    policy_noise: NonNegative = 0.05
    """standard deviation of the noise on target actions, for actions in [-1, 1]"""
    noise_clip: NonNegative = 0.1
    """bound on the noise on target actions"""
    policy_freq: Annotated[Count, NotAbove("iterations")] = 2
    """critic updates per policy update"""
    lr: Positive = 3e-4
    """learning rate"""
    hidden_sizes: Sizes = (256, 256)
    """hidden layers"""
    layer_norm: bool = True
    """normalise the hidden layers of the critics, against divergence outside the data"""


def make_loss(args: Args, task: OfflineTask, config: StatePolicyConfig) -> tuple[TensorDictModule, DirectTD3BCLoss]:
    """Build the policy, and its loss with two critics and the paper's squared error."""
    statistics = task.statistics()["observation"]
    policy = make_state_policy(config, statistics).to(args.device)
    critics = [critic.to(args.device) for critic in make_state_values(config, statistics)]
    loss = DirectTD3BCLoss(
        policy,
        critics,  # pyright: ignore[reportArgumentType]
        bounds=(-1.0, 1.0),  # pyright: ignore[reportArgumentType]
        alpha=args.alpha,
        policy_noise=args.policy_noise,
        noise_clip=args.noise_clip,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=args.gamma)
    return policy, loss


def train(args: Args, run: Run, task: OfflineTask, policy: TensorDictModule, loss: DirectTD3BCLoss) -> None:
    """Run the training loop."""
    target = DirectSoftUpdate(loss, tau=args.tau)
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.parameters(), args.lr, fused=True)
    value_optimizer = torch.optim.Adam(loss.qvalue_network_params.parameters(), args.lr, fused=True)
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"actor": actor_optimizer, "value": value_optimizer})
    qvalue_loss, actor_loss = args.compiled(loss.qvalue_loss), args.compiled(loss.actor_loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        batch = task.data.sample()
        losses = {"loss_qvalue": qvalue_loss(batch)[0]}
        norms = gradient_step(losses, {"value": value_optimizer}, step=step, batch=batch)
        if step % args.policy_freq == 0:
            losses["loss_actor"], details = actor_loss(batch)
            norms |= gradient_step(
                {"loss_actor": losses["loss_actor"]}, {"actor": actor_optimizer}, step=step, batch=batch
            )
            losses["bc_loss"] = details["bc_loss"]
            target.step()
        if run.due(args.log_every):
            scores = q_diagnostics(loss, batch, policy, bound=task.value_bound)
            run.log({f"train/{key}": value for key, value in (losses | norms).items()} | scores)
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
        task.state_dim, task.action_dim, "deterministic", args.hidden_sizes, args.layer_norm, state_bound=bound
    )
    recipe = "td3_bc" if args.alpha else "bc"
    name = f"{recipe}-{task.path.stem}-{args.seed}"
    configs = {"state_policy": config, **task.module_configs}
    best = task.keep_best(args.eval_every)
    with args.open_run(name, task=task.info, module_configs=configs, keep_best=best) as run:
        policy, loss = make_loss(args, task, config)
        train(args, run, task, policy, loss)
        print(conclude_offline(run, task, policy, recipe=recipe, loss=loss))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
