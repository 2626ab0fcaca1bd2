"""TD3+BC on logged slates: a deterministic policy of latents, with TorchRL's own loss; alpha 0 is behaviour cloning.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python -m torchrl_flow collect-slates --env diffuse_topdown --policy medium --steps 300000
    python examples/td3_bc.py --data data/diffuse_topdown-medium-300000.npz

Takes about three minutes on one CPU core. The last lines compare the policy's return with random latents, the
short-term oracle, the policy that logged the data, and the oracle.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
import tyro
from tensordict.nn import TensorDictModule
from torchrl.objectives import SoftUpdate, TD3BCLoss

from torchrl_flow import training
from torchrl_flow.modules import StatePolicyConfig, make_state_policy, make_state_values


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
    alpha: float = 2.5
    """weight of the value against cloning; 0 clones behaviour"""
    gamma: float = 0.8
    """discount; at .99 values diverge on these data"""
    tau: float = 0.005
    """rate of the target networks"""
    policy_noise: float = 0.05
    """scale of the noise on target actions, where the box is [-1, 1]"""
    noise_clip: float = 0.1
    """its bound"""
    policy_freq: int = 2
    """critic updates per policy update"""
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


def make_loss(args: Args, task: training.SlateTask, config: StatePolicyConfig) -> tuple[TensorDictModule, TD3BCLoss]:
    """Build the policy, and TorchRL's loss of it and two critics, with the paper's squared error."""
    statistics = task.statistics()["observation"]
    policy = make_state_policy(config, statistics)
    loss = TD3BCLoss(
        policy,
        make_state_values(config, statistics),  # pyright: ignore[reportArgumentType]
        bounds=(-1.0, 1.0),  # pyright: ignore[reportArgumentType]
        alpha=args.alpha,
        policy_noise=args.policy_noise,
        noise_clip=args.noise_clip,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=args.gamma)
    return policy, loss


def train(args: Args, run: training.Run, task: training.SlateTask, policy: TensorDictModule, loss: TD3BCLoss) -> None:
    """Train; all of the loop is here."""
    target = SoftUpdate(loss, tau=args.tau)
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.parameters(), args.lr, fused=True)
    value_optimizer = torch.optim.Adam(loss.qvalue_network_params.parameters(), args.lr, fused=True)
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"actor": actor_optimizer, "value": value_optimizer})
    for step in run.steps(args.iterations, save_every=args.iterations):
        batch = task.data.sample()
        value_loss = loss.qvalue_loss(batch)[0]
        value_optimizer.zero_grad()
        value_loss.backward()
        value_optimizer.step()
        if step % args.policy_freq == 0:
            actor_loss, details = loss.actor_loss(batch)
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            target.step()
            if step % 1000 == 0:
                scores = training.q_diagnostics(loss, batch, policy, bound=task.value_bound)
                run.log({"train/loss_qvalue": value_loss, "train/bc_loss": details["bc_loss"], **scores})
        if args.eval_every and step % args.eval_every == 0:
            run.log(task.evaluate(policy, episodes=args.eval_episodes).metrics())


def main(args: Args) -> None:
    """Data, policy, training, evaluation."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    task = training.offline_task(args.data, args.models, batch_size=args.batch_size, gamma=args.gamma)
    config = StatePolicyConfig(task.state_dim, task.action_dim, "deterministic", args.hidden_sizes, args.layer_norm)
    recipe = "td3_bc" if args.alpha else "bc"
    directory = Path(args.runs) / (args.name or f"{recipe}-{task.path.stem}-{args.seed}")
    options = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    with training.Run(directory, args, task=task.info, module_configs={"state_policy": config}, **options) as run:
        policy, loss = make_loss(args, task, config)
        train(args, run, task, policy, loss)
        result = task.evaluate(policy, episodes=args.eval_episodes)
        row = {"seed": args.seed, "episodes": args.eval_episodes, "wall_s": run.wall_s, "stage": args.label}
        task.record(args.results, recipe, result, **row)
        print(task.report(directory, recipe, result, episodes=args.eval_episodes))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
