"""Steer a frozen flow policy through its noise on policy: PPO over whole chunks, stage 2 of DSRL.

    python examples/dsrl_ppo.py --policy runs/shortcut_flow_bc-planar-state-0

takes 2 to 4 minutes on one CPU thread for the planar task and lifts a policy of success 0.57 to above 0.90. The policy
may be any run or checkpoint with a flow; with --init it goes on from a stage 1 (dsrl_offline.py). The flow's weights
do not change, which is checked at the end. A run that was stopped goes on with --resume.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_flow import training
from torchrl_flow.data import module_digest
from torchrl_flow.modules import (
    FlowActor,
    LatentGaussianPolicy,
    LatentPolicyConfig,
    StateValue,
    StateValueConfig,
    SteeredFlowActor,
    make_latent_policy,
    make_state_value,
)


@dataclasses.dataclass
class Args:
    """What the recipe can be told on the command line."""

    policy: str
    """run directory or checkpoint with the flow to steer"""
    init: str | None = None
    """run directory or checkpoint of a stage 1 whose latent policy to start from; else it starts as the prior"""
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
    """hidden layers of latent policy and value network"""
    num_steps: int | None = None
    """sampling steps K of the flow; its own where none is given"""
    num_envs: int = 512
    """environments that run side by side; 0 for one that is not batched, as ManiSkill's on a CPU"""
    rollout: int = 13
    """chunks per environment and iteration; 13 chunks of 8 steps cover an episode of the planar task"""
    iterations: int = 80
    """iterations of collecting and updating"""
    epochs: int = 4
    """passes over what an iteration collected"""
    minibatch: int = 1024
    """chunks per gradient step"""
    gamma: float = 0.99
    """discount of one environment step"""
    lmbda: float = 0.95
    """lambda of the advantage estimator, per chunk"""
    clip: float = 0.2
    """clipping of the ratio"""
    entropy: float = 1e-3
    """weight of the entropy"""
    lr: float = 3e-4
    """learning rate of the latent policy"""
    value_lr: float = 1e-3
    """learning rate of the value network"""
    prior_fraction: float = 0.3
    """share of draws from the prior at the start; the behaviour is the mixture"""
    prior_decay: float = 0.995
    """factor on that share per iteration"""
    max_grad_norm: float = 0.5
    """bound on the gradient's norm, for each network"""
    eval_episodes: int = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: int = 10
    """iterations between evaluations on 100 other episodes; 0 for none"""
    num_videos: int = 0
    """episodes to film, where the machine can render"""
    save_every: int = 10
    """iterations between checkpoints"""
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


def make_envs(args: Args, checkpoint: training.TrainingCheckpoint) -> tuple[EnvBase, EnvBase]:
    """Make the environment to train in, where success ends an episode, and that to evaluate in, where it does not."""
    training_options: dict[str, Any] = {"num_envs": args.num_envs or None, "ignore_terminations": False}
    train_env = training.evaluation_env(checkpoint, gamma=args.gamma, **training_options)
    return train_env, training.evaluation_env(checkpoint, gamma=args.gamma)


def make_policy(args: Args, flow: FlowActor) -> LatentGaussianPolicy:
    """Build the latent policy, or take that of a stage 1; its behaviour is the mixture with the prior."""
    if args.init is not None:
        return training.load_latent_policy(args.init, flow, prior_mixing=True)[0]
    config = LatentPolicyConfig(
        steer_mode=args.steer_mode,
        latent_bound=args.latent_bound,
        hidden_sizes=args.hidden_sizes,
        log_std_range=(-5.0, 1.0),
        prior_mixing=True,
    )
    return make_latent_policy(config, flow)


def make_loss(args: Args, policy: LatentGaussianPolicy, value: StateValue) -> tuple[ClipPPOLoss, GAE]:
    """Make TorchRL's loss and advantage estimator; the latter discounts a chunk of k steps by gamma^k."""
    network: Any = value
    loss = ClipPPOLoss(
        policy,
        network,
        clip_epsilon=args.clip,
        entropy_coeff=args.entropy,
        critic_coeff=1.0,
        normalize_advantage=True,
        loss_critic_type="l2",
    )
    loss.set_keys(action=policy.latent_key, sample_log_prob=policy.latent_log_prob_key)
    advantage = GAE(gamma=args.gamma, lmbda=args.lmbda, value_network=network, vectorized=False)
    advantage.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return loss, advantage


def update(args: Args, loss: ClipPPOLoss, optimizer: torch.optim.Optimizer, rows: TensorDictBase) -> dict[str, Any]:
    """Do all epochs on what was collected; return the metrics of the last step."""
    out: Any = {}
    for _ in range(args.epochs):
        for index in torch.randperm(len(rows)).split(args.minibatch):
            out = loss(rows[index.to(rows.device)])
            (out["loss_objective"] + out["loss_entropy"] + out["loss_critic"]).backward()
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
    return {f"train/{key}": value for key, value in out.items() if value.numel() == 1}


def outcome(data: TensorDictBase) -> dict[str, Any]:
    """Return what the episodes that ended in a batch came to."""
    ended = data["next", "done"]
    return {"train/success": (data["next", "terminated"] & ended).sum() / ended.sum().clamp(min=1)}


def train(args: Args, run: training.Run, actor: SteeredFlowActor, value: StateValue, envs: tuple[EnvBase, ...]) -> None:
    """Train the latent policy; all of the loop is here."""
    policy, frames = actor.policy, args.rollout * max(1, args.num_envs)
    loss, advantage = make_loss(args, policy, value)
    groups = [{"params": list(policy.parameters()), "lr": args.lr}]
    optimizer = torch.optim.Adam([*groups, {"params": list(value.head.parameters()), "lr": args.value_lr}], fused=True)
    options: dict[str, Any] = {"frames_per_batch": frames, "total_frames": -1, "reset_at_each_iter": True}
    collected = iter(Collector(envs[0], actor, trust_policy=True, **options))
    modules = {"policy": actor.flow, training.LATENT_POLICY: policy, "value": value}
    run.track(modules=modules, optimizers={"adam": optimizer}, state={"env": training.base_env(envs[0])})
    for step in run.steps(args.iterations, save_every=args.save_every):
        policy.set_prior_fraction(args.prior_fraction * args.prior_decay ** (step - 1))
        data = next(collected).exclude("noise", "action_chunk", "action")
        run.counters["env_steps"] = run.counters.get("env_steps", 0) + int(data["next", "steps_to_next_obs"].sum())
        with torch.no_grad():
            advantage(data)
        metrics = update(args, loss, optimizer, data.reshape(-1))
        metrics |= {"train/env_steps": run.counters["env_steps"], "train/wall_s": run.wall_s}
        run.log(metrics | outcome(data) | {"train/prior_fraction": policy.prior_fraction})
        if args.eval_every and step % args.eval_every == 0:
            run.log(training.evaluate(envs[1], actor, range(20_000, 20_100), progress=False).metrics())


def main(args: Args) -> None:
    """Flow, latent policy, training, evaluation, report."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    flow, checkpoint = training.load_policy(args.policy, device=args.device)
    digest = module_digest(flow)
    envs = make_envs(args, checkpoint)
    task = training.task_info(envs[1])
    actor = SteeredFlowActor(make_policy(args, flow), flow, num_steps=args.num_steps)
    value_config = StateValueConfig(args.hidden_sizes)
    value = make_state_value(value_config, flow)
    directory = Path(args.runs) / (args.name or f"dsrl_ppo-{task['task']}-{args.seed}")
    # What the flow was cloned from, for the stages after this one.
    config = {**dataclasses.asdict(args), "demonstrations": checkpoint.config.get("demonstrations")}
    options: dict[str, Any] = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    configs = {training.LATENT_POLICY: actor.policy.config, "value": value_config}
    options |= {"actor_config": flow.config, "module_configs": configs}
    with training.Run(directory, config, task=task, **options) as run:
        train(args, run, actor, value, envs)
        unchanged = module_digest(flow) == digest
        result, report = training.conclude(
            directory,
            actor,
            envs[1],
            range(10_000, 10_000 + args.eval_episodes),
            task=task,
            recipe="dsrl_ppo",
            stage="2",
            seed=args.seed,
            num_videos=args.num_videos,
            results=args.results,
            config=config,
            env_steps=run.counters["env_steps"],
            wall_s=run.wall_s,
            notes=[f"Flow of {checkpoint.path.name}, bitwise {'unchanged' if unchanged else 'CHANGED'} by training."],
        )
    if not unchanged:
        raise RuntimeError("training changed the weights of the flow that it was to leave alone.")
    print(result.summary())
    print(report.resolve())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
