"""Steer a frozen flow policy through its noise from demonstrations alone: AW-MLE, stage 1 of DSRL on policy.

    python examples/dsrl_offline.py --policy runs/shortcut_flow_bc-planar-state-0

takes about 3 minutes on one CPU thread for the planar task. The critic of the checkpoint is used where there is one
(that of an advantage-weighted flow); else one is trained on the demonstrations first. Then the latent policy is fitted
to those latents of the prior whose actions the critic values. examples/dsrl_ppo.py --init <this run> goes on online.
A run that was stopped goes on with --resume.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from torchrl_flow import training
from torchrl_flow.data import DemoReplayBuffer, module_digest
from torchrl_flow.modules import (
    CriticConfig,
    FlowActor,
    LatentPolicyConfig,
    QEnsemble,
    SteeredFlowActor,
    make_critic,
    make_latent_policy,
)
from torchrl_flow.objectives import ChunkCriticLoss, LatentAWMLELoss, NetworkSoftUpdate


@dataclasses.dataclass
class Args:
    """What the recipe can be told on the command line."""

    policy: str
    """run directory or checkpoint with the flow to steer"""
    demos: str | None = None
    """trajectory file (.h5) or demo store; those that the policy was cloned from where none is given"""
    num_demos: int | None = None
    """how many of them, where demos names others"""
    name: str | None = None
    """name of the run; recipe and task where none is given"""
    runs: str = "runs"
    """directory of the runs"""
    results: str = "runs/results.csv"
    """table to which the results are appended"""
    seed: int = 0
    """seed of the networks and of training"""
    steer_mode: Literal["full", "act_horizon", "tied"] = "full"
    """what the latent steers: the whole noise, its executed steps, or one vector for all steps"""
    latent_bound: float | None = None
    """b of the bound b tanh(u / b) on the latent"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """hidden layers of the latent policy"""
    num_steps: int | None = None
    """sampling steps K of the flow; its own where none is given"""
    num_qs: int = 10
    """members of a critic that is trained here"""
    critic_sizes: tuple[int, ...] = (128, 128)
    """hidden layers of the critic"""
    critic_iterations: int = 3000
    """gradient steps of the critic, where the checkpoint has none"""
    critic_lr: float = 3e-4
    """learning rate of the critic"""
    tau: float = 0.01
    """rate of the target critic"""
    gamma: float = 0.99
    """discount of one environment step"""
    iterations: int = 1000
    """gradient steps of the latent policy"""
    lr: float = 3e-4
    """learning rate of the latent policy"""
    num_candidates: int = 16
    """M, latents of the prior per observation"""
    beta: float = 1.0
    """inverse temperature of their weights, in units of the scores' spread"""
    kappa: float = -1.0
    """weight of the members' standard deviation in a score, mean + kappa std: at most 0, pessimistic"""
    kl_coef: float = 1e-3
    """weight of the divergence from the prior"""
    batch_size: int = 256
    """chunks per gradient step"""
    eval_episodes: int = 100
    """episodes of the final evaluation, from seed 10000 on"""
    num_videos: int = 0
    """episodes to film, where the machine can render"""
    save_every: int = 500
    """gradient steps between checkpoints"""
    device: str = "cpu"
    """device of networks and batches"""
    threads: int = 1
    """CPU threads"""
    wandb: Literal["online", "offline"] | None = None
    """log to Weights & Biases"""
    tensorboard: bool = False
    """log to TensorBoard"""
    resume: bool = False
    """go on with a run that was stopped"""


def find_critic(
    args: Args, checkpoint: training.TrainingCheckpoint, flow: FlowActor
) -> tuple[QEnsemble, CriticConfig, int]:
    """Take the checkpoint's critic, or make one that is to be trained for so many steps."""
    if "critic" in checkpoint.module_configs:
        critic, _ = training.load_critic(checkpoint, flow)
        return critic, CriticConfig.from_dict(checkpoint.module_configs["critic"]), 0
    config = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_sizes)
    return make_critic(config, flow), config, args.critic_iterations


def train(
    args: Args, run: training.Run, data: DemoReplayBuffer, actor: SteeredFlowActor, critic: QEnsemble, warm_up: int
) -> None:
    """Train critic and latent policy, one after the other; all of the loop is here."""
    critic_loss = ChunkCriticLoss(actor.flow, critic, gamma=args.gamma, target_num_steps=args.num_steps)
    target = NetworkSoftUpdate(critic_loss, "critic_network", tau=args.tau)
    critic_adam = torch.optim.Adam(critic_loss.critic_parameters(), args.critic_lr, fused=True)
    options = {"beta": args.beta, "kappa": args.kappa, "kl_coef": args.kl_coef, "num_candidates": args.num_candidates}
    options |= {"standardize_scores": True, "num_steps": args.num_steps}
    loss = LatentAWMLELoss(actor.policy, critic, actor.flow, **options)
    adam = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    modules = {"policy": actor.flow, training.LATENT_POLICY: actor.policy, "critic": critic}
    modules["target_critic"] = critic_loss.ema_value
    run.track(modules=modules, optimizers={"critic": critic_adam, "adam": adam})
    for step in run.steps(warm_up + args.iterations, save_every=args.save_every):
        batch = data.sample()
        if step <= warm_up:
            losses = critic_loss(batch)
            losses["loss_qvalue"].backward()
            critic_adam.step()
            critic_adam.zero_grad()
            target.step()
        else:
            losses = loss(batch)
            losses["loss_latent_policy"].backward()
            adam.step()
            adam.zero_grad()
        if step % 100 == 0:
            run.log({f"train/{key}": value for key, value in losses.items()})


def main(args: Args) -> None:
    """Flow, demonstrations, critic, latent policy, evaluation, report."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    flow, checkpoint = training.load_policy(args.policy, device=args.device)
    digest = module_digest(flow)
    env = training.evaluation_env(checkpoint, gamma=args.gamma)
    task = training.task_info(env)
    source = training.DemoSource.of_checkpoint(checkpoint, args.demos, args.num_demos)
    sampling: dict[str, Any] = {"batch_size": args.batch_size, "device": args.device}
    data = training.policy_demonstrations(checkpoint, source, gamma=args.gamma, **sampling)
    latents = LatentPolicyConfig(
        steer_mode=args.steer_mode, latent_bound=args.latent_bound, hidden_sizes=args.hidden_sizes
    )
    actor = SteeredFlowActor(make_latent_policy(latents, flow), flow, num_steps=args.num_steps)
    critic, critic_config, warm_up = find_critic(args, checkpoint, flow)
    directory = Path(args.runs) / (args.name or f"dsrl_offline-{task['task']}-{args.seed}")
    config = {**dataclasses.asdict(args), "demonstrations": dataclasses.asdict(source)}
    options: dict[str, Any] = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    options |= {"module_configs": {training.LATENT_POLICY: latents, "critic": critic_config}}
    with training.Run(directory, config, task=task, actor_config=flow.config, **options) as run:
        train(args, run, data, actor, critic, warm_up)
        result, report = training.conclude(
            directory,
            actor,
            env,
            range(10_000, 10_000 + args.eval_episodes),
            task=task,
            recipe="dsrl_ppo",
            stage="1",
            seed=args.seed,
            num_videos=args.num_videos,
            results=args.results,
            config=config,
            wall_s=run.wall_s,
            notes=[f"{data.store.num_episodes} demonstrations; critic {'trained here' if warm_up else 'given'}."],
        )
    if module_digest(flow) != digest:
        raise RuntimeError("training changed the weights of the flow that it was to leave alone.")
    print(result.summary())
    print(report.resolve())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
