"""IQL on logged slates: an expectile of values, and a policy weighted by advantage, with TorchRL's own loss.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/iql.py --data data/diffuse_topdown-medium-300000.npz

Takes about four minutes on one CPU core. The last lines compare the policy's return with random latents, the
short-term oracle, the policy that logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
import tyro
from tensordict.nn import TensorDictModule
from torchrl.objectives import IQLLoss, SoftUpdate

from torchrl_flow import training
from torchrl_flow.modules import StatePolicyConfig, make_observation_value, make_state_policy, make_state_values


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
    """updates of the critics"""
    batch_size: int = 256
    """transitions per update"""
    expectile: float = 0.7
    """expectile of the value; 0.5 is the mean"""
    temperature: float = 3.0
    """inverse temperature of the advantage weights; 0 clones behaviour"""
    gamma: float = 0.8
    """discount; at .99 values diverge on these data"""
    tau: float = 0.005
    """rate of the target networks"""
    lr: float = 3e-4
    """learning rate"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers"""
    layer_norm: bool = True
    """normalise the values' hidden layers, against divergence outside the data"""
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


def make_loss(args: Args, task: training.SlateTask, config: StatePolicyConfig) -> tuple[TensorDictModule, IQLLoss]:
    """Build the policy, and TorchRL's loss of it, two critics and a value, with the paper's squared error."""
    statistics = task.statistics()["observation"]
    policy = make_state_policy(config, statistics)
    loss = IQLLoss(
        policy,  # pyright: ignore[reportArgumentType]
        make_state_values(config, statistics),  # pyright: ignore[reportArgumentType]
        make_observation_value(config, statistics),
        loss_function="l2",
        expectile=args.expectile,
        temperature=args.temperature,
    )
    loss.make_value_estimator(gamma=args.gamma)
    return policy, loss


def train(args: Args, run: training.Run, task: training.SlateTask, policy: TensorDictModule, loss: IQLLoss) -> None:
    """Train; all of the loop is here."""
    target = SoftUpdate(loss, tau=args.tau)
    # One optimiser is as three: each term reaches the parameters of its own network alone.
    optimizer = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"adam": optimizer})
    for step in run.steps(args.iterations, save_every=args.iterations):
        batch = task.data.sample()
        losses = loss(batch)
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_value"]).backward()
        optimizer.step()
        target.step()
        if step % 1000 == 0:
            scores = training.q_diagnostics(loss, batch, policy, bound=task.value_bound)
            run.log({f"train/{key}": value for key, value in losses.items()} | scores)
        if args.eval_every and step % args.eval_every == 0:
            run.log(task.evaluate(policy, episodes=args.eval_episodes).metrics())


def main(args: Args) -> None:
    """Data, policy, training, evaluation."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    task = training.offline_task(args.data, args.models, batch_size=args.batch_size, gamma=args.gamma)
    config = StatePolicyConfig(task.state_dim, task.action_dim, "gaussian", args.hidden_sizes, args.layer_norm)
    directory = Path(args.runs) / (args.name or f"iql-{task.path.stem}-{args.seed}")
    options = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    with training.Run(directory, args, task=task.info, module_configs={"state_policy": config}, **options) as run:
        policy, loss = make_loss(args, task, config)
        train(args, run, task, policy, loss)
        result = task.evaluate(policy, episodes=args.eval_episodes)
        row = {"seed": args.seed, "episodes": args.eval_episodes, "wall_s": run.wall_s, "stage": args.label}
        task.record(args.results, "iql", result, **row)
        print(task.report(directory, "iql", result, episodes=args.eval_episodes))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
