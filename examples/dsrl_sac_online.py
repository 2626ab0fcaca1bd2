"""Steer a frozen flow policy through its noise off policy: SAC over latents, stage 2 of DSRL, with or without aliasing.

    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-planar-state-0
    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-planar-state-0 --na

take 2 to 5 minutes on one CPU thread for the planar task. With --na a critic learns from executed actions, and
the critics of latents are distilled from it (DSRL-NA). --aliasing puts the demonstrations into the replay buffer, with
latents that are found once and cached on disk; --init goes on from a stage 1 (dsrl_sac_offline.py). The flow's
weights do not change, which is checked at the end. A run that was stopped goes on with --resume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_flow import training
from torchrl_flow.data import module_digest
from torchrl_flow.modules import (
    AliasConfig,
    CriticConfig,
    LatentPolicyConfig,
    NoiseAliaser,
    SteeredFlowActor,
    make_critic,
    make_latent_critics,
    make_latent_policy,
)
from torchrl_flow.objectives import ChunkCriticLoss, DistilledSACLoss, LatentSACLoss, NetworkSoftUpdate
from torchrl_flow.training import LossGroup, NamedLossStepper

Update = Callable[[TensorDictBase], dict[str, Any]]


@dataclasses.dataclass
class Args:
    """What the recipe can be told on the command line."""

    policy: str
    """run directory or checkpoint with the flow to steer"""
    init: str | None = None
    """run directory or checkpoint of a stage 1 whose latent policy and critics to start from"""
    na: bool = False
    """noise aliasing: distil the critics of latents from a critic of actions"""
    aliasing: Literal["none", "inversion", "retrieval", "reversal"] = "none"
    """put demonstrations into the replay buffer, with latents found in this way"""
    name: str | None = None
    """name of the run; recipe and task where none is given"""
    runs: str = "runs"
    """directory of the runs"""
    results: str = "runs/results.csv"
    """table to which the results are appended"""
    label: str | None = None
    """what the table of results calls this variant"""
    seed: int = 0
    """seed of the networks and of training"""
    steer_mode: Literal["full", "act_horizon", "tied"] = "tied"
    """what the latent steers: one vector for all steps, the executed steps' noise, or the whole"""
    latent_bound: float | None = 2.0
    """b of the bound b tanh(u / b) on the latent"""
    hidden_sizes: tuple[int, ...] = (128, 128, 128)
    """hidden layers of all networks"""
    num_qs: int = 2
    """critics"""
    num_steps: int | None = None
    """sampling steps K of the flow; its own where none is given"""
    num_envs: int = 128
    """environments that run side by side; 0 for one that is not batched, as ManiSkill's on a CPU"""
    rollout: int = 13
    """chunks per environment and iteration; 13 chunks of 8 steps cover an episode of the planar task"""
    iterations: int = 14
    """iterations of collecting and updating"""
    warm_up: int = 1
    """iterations before the first update"""
    policy_delay: int = 200
    """updates of the critics before the first of the policy, which would climb what they have not learnt yet"""
    utd: float = 0.25
    """updates per collected chunk; 1 to 100 where environment steps are what is scarce"""
    policy_every: int | None = None
    """updates of the critics per update of the policy; where none is given, as many as there are per chunk, so that a
    high ratio is the critics' alone"""
    distill_steps: int = 1
    """steps of distillation per update, with --na"""
    distillation: Literal["forward", "aliased", "both"] = "forward"
    """pairs that are distilled, with --na: latents of the prior, those of the replay buffer, or both"""
    batch_size: int = 256
    """chunks per update"""
    gamma: float = 0.97
    """discount of one environment step"""
    tau: float = 0.02
    """rate of the target critics"""
    actor_lr: float = 3e-4
    """learning rate of the latent policy"""
    critic_lr: float = 3e-4
    """learning rate of the critics"""
    alpha_lr: float = 3e-3
    """learning rate of the temperature's logarithm"""
    alpha: float = 3e-3
    """temperature at the start"""
    target_entropy: float | None = 0.0
    """entropy that the temperature aims at; -0.5 per dimension of the latent where none is given"""
    backup_entropy: bool = False
    """count the entropy in the targets"""
    eval_episodes: int = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: int = 1
    """iterations between evaluations on 100 other episodes; 0 for none"""
    num_videos: int = 0
    """episodes to film, where the machine can render"""
    save_every: int = 5
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


@dataclasses.dataclass
class Learner:
    """The losses, their steppers and what a checkpoint must hold of them."""

    update: Update
    modules: dict[str, Any]
    state: dict[str, Any]


def make_envs(args: Args, checkpoint: training.TrainingCheckpoint) -> tuple[EnvBase, EnvBase]:
    """Make the environment to train in, where success ends an episode, and that to evaluate in, where it does not."""
    training_options: dict[str, Any] = {"num_envs": args.num_envs or None, "ignore_terminations": False}
    train_env = training.evaluation_env(checkpoint, gamma=args.gamma, **training_options)
    return train_env, training.evaluation_env(checkpoint, gamma=args.gamma)


def sac_options(args: Args, actor: SteeredFlowActor) -> dict[str, Any]:
    """Return the arguments of the loss over latents."""
    target = -0.5 * actor.policy.latent_shape.numel() if args.target_entropy is None else args.target_entropy
    options = {"gamma": args.gamma, "target_entropy": target, "backup_entropy": args.backup_entropy}
    # A loop over two critics is no slower than vmap on a CPU.
    return {**options, "alpha_init": args.alpha, "deactivate_vmap": args.device == "cpu"}


def policy_group(args: Args, loss: LatentSACLoss) -> list[LossGroup]:
    """Make the optimiser of policy and temperature."""
    parameters = [{"params": list(loss.actor_network_params.parameters()), "lr": args.actor_lr}]
    parameters += [{"params": [loss.log_alpha], "lr": args.alpha_lr}]
    return [LossGroup(("loss_actor", "loss_alpha"), torch.optim.Adam(parameters, fused=True), method="policy_loss")]


def improves(args: Args, num_updates: int) -> bool:
    """Tell whether the policy learns too at this update of the critics."""
    every = max(1, round(args.utd)) if args.policy_every is None else args.policy_every
    return num_updates > args.policy_delay and num_updates % every == 0


def make_sac(args: Args, actor: SteeredFlowActor, critic_config: CriticConfig) -> Learner:
    """SAC over latents: critics of latents by temporal differences."""
    critics = make_latent_critics(critic_config, actor.flow, actor.policy)
    loss = LatentSACLoss(actor.policy, critics, **sac_options(args, actor))
    critic_adam = torch.optim.Adam(loss.qvalue_network_params.parameters(), args.critic_lr, fused=True)
    critics_group = LossGroup("loss_qvalue", critic_adam, method="qvalue_loss")
    td = NamedLossStepper(loss, [critics_group], target_updater=SoftUpdate(loss, tau=args.tau))
    improve = NamedLossStepper(loss, policy_group(args, loss))

    def update(batch: TensorDictBase) -> dict[str, Any]:
        metrics = td.update(batch)
        return metrics | improve.update(batch) if improves(args, td.num_updates) else metrics

    return Learner(update, {"sac": loss}, {"td": td, "improve": improve})


def make_na(args: Args, actor: SteeredFlowActor, critic_config: CriticConfig) -> Learner:
    """SAC with noise aliasing: a critic of actions by temporal differences, distilled into critics of latents."""
    action_critic = make_critic(critic_config, actor.flow)
    own = {"gamma": args.gamma, "target_num_steps": actor.num_steps}
    critic_loss = ChunkCriticLoss(actor.flow, action_critic, actor.policy, **own)
    critics = make_latent_critics(critic_config, actor.flow, actor.policy)
    aliased = {"mode": args.distillation, "num_steps": actor.num_steps}
    loss = DistilledSACLoss(actor.policy, critics, action_critic, actor.flow, **aliased, **sac_options(args, actor))
    target = NetworkSoftUpdate(critic_loss, "critic_network", tau=args.tau)
    critic_adam = torch.optim.Adam(critic_loss.critic_parameters(), args.critic_lr, fused=True)
    latent_adam = torch.optim.Adam(loss.qvalue_network_params.parameters(), args.critic_lr, fused=True)
    td = NamedLossStepper(critic_loss, [LossGroup("loss_qvalue", critic_adam, target_updater=target)])
    distil = NamedLossStepper(loss, [LossGroup("loss_qvalue", latent_adam, method="qvalue_loss")])
    improve = NamedLossStepper(loss, policy_group(args, loss))

    def update(batch: TensorDictBase) -> dict[str, Any]:
        metrics = td.update(batch)
        for pairs in loss.distillation_pairs(batch, args.distill_steps).unbind(0):
            metrics["distillation_error"] = distil.update(pairs)["td_error"]
        return metrics | improve.update(batch) if improves(args, td.num_updates) else metrics

    modules = {"sac": loss, "critic": action_critic, "target_critic": critic_loss.ema_value}
    return Learner(update, modules, {"td": td, "distil": distil, "improve": improve})


def start_from(args: Args, learner: Learner) -> None:
    """Take the critics of a stage 1 too; where it was another variant's, the policy alone."""
    if args.init is not None:
        checkpoint = training.load_checkpoint(args.init)
        checkpoint.restore(modules={role: part for role, part in learner.modules.items() if role in checkpoint.roles})


def add_demonstrations(
    args: Args, buffer: TensorDictReplayBuffer, actor: SteeredFlowActor, checkpoint: training.TrainingCheckpoint
) -> str:
    """Put the demonstrations into the buffer, each with a latent that the flow carries to its action, or nearly."""
    if args.aliasing == "none":
        return "No demonstrations in the replay buffer."
    data = training.policy_demonstrations(checkpoint, gamma=args.gamma)
    config = AliasConfig(mode=args.aliasing)
    aliaser = NoiseAliaser(actor.flow, actor.policy, config=config, num_steps=actor.num_steps)
    root = Path("demos") / f"latents-{args.aliasing}-{args.steer_mode}-{module_digest(actor.flow)[:12]}"
    cache = training.alias_demonstrations(data, aliaser, root)
    for rows in torch.arange(len(data)).split(4096):
        buffer.extend(training.macro_transitions(data[rows].set("latent", cache.latent[rows])))
    return f"{len(data)} demonstrated chunks, latents by {args.aliasing}, residual {cache.residual.mean():.3f}."


def train(
    args: Args, run: training.Run, actor: SteeredFlowActor, learner: Learner, buffer: Any, envs: tuple[EnvBase, ...]
) -> None:
    """Train the latent policy; all of the loop is here."""
    frames = args.rollout * max(1, args.num_envs)
    options: dict[str, Any] = {"frames_per_batch": frames, "total_frames": -1, "reset_at_each_iter": True}
    collected = iter(Collector(envs[0], actor, trust_policy=True, **options))
    modules = {"policy": actor.flow, training.LATENT_POLICY: actor.policy, **learner.modules}
    run.track(modules=modules, state={"env": training.base_env(envs[0]), "replay": buffer, **learner.state})
    for step in run.steps(args.iterations, save_every=args.save_every):
        data = next(collected)
        buffer.extend(training.macro_transitions(data))
        run.counters["env_steps"] = run.counters.get("env_steps", 0) + int(data["next", "steps_to_next_obs"].sum())
        ended = data["next", "done"]
        success = (data["next", "terminated"] & ended).sum() / ended.sum().clamp(min=1)
        metrics: dict[str, Any] = {"success": success, "env_steps": run.counters["env_steps"], "wall_s": run.wall_s}
        if step > args.warm_up:
            for _ in range(round(args.utd * data.numel())):
                metrics |= learner.update(buffer.sample())
            metrics |= {"utd": args.utd}
        run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            run.log(training.evaluate(envs[1], actor, range(20_000, 20_100), progress=False).metrics())


def main(args: Args) -> None:
    """Flow, latent policy, critics, training, evaluation, report."""
    if args.policy_every is not None and args.policy_every < 1:
        raise SystemExit(f"--policy-every must be at least 1, got {args.policy_every}.")
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    flow, checkpoint = training.load_policy(args.policy, device=args.device)
    digest = module_digest(flow)
    envs = make_envs(args, checkpoint)
    task = training.task_info(envs[1])
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    policy = make_latent_policy(latents, flow)
    if args.init is not None:
        policy, _ = training.load_latent_policy(args.init, flow)
    actor = SteeredFlowActor(policy, flow, num_steps=args.num_steps)
    critics = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.hidden_sizes)
    learner = (make_na if args.na else make_sac)(args, actor, critics)
    start_from(args, learner)
    recipe = "dsrl_na" if args.na else "dsrl_sac"
    directory = Path(args.runs) / (args.name or f"{recipe}-{task['task']}-{args.seed}")
    # What the flow was cloned from, for the stages after this one.
    config = {**dataclasses.asdict(args), "demonstrations": checkpoint.config.get("demonstrations")}
    options: dict[str, Any] = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    configs = {training.LATENT_POLICY: policy.config, **({"critic": critics} if args.na else {})}
    with training.Run(directory, config, task=task, actor_config=flow.config, module_configs=configs, **options) as run:
        capacity = args.iterations * args.rollout * max(1, args.num_envs) + 50_000 * (args.aliasing != "none")
        buffer = training.macro_replay(capacity, batch_size=args.batch_size, device=args.device)
        note = add_demonstrations(args, buffer, actor, checkpoint)
        train(args, run, actor, learner, buffer, envs)
        result, report = training.conclude(
            directory,
            actor,
            envs[1],
            range(10_000, 10_000 + args.eval_episodes),
            task=task,
            recipe=recipe,
            stage=" ".join(["2", *([args.label] if args.label else [])]),
            seed=args.seed,
            num_videos=args.num_videos,
            results=args.results,
            config=config,
            env_steps=run.counters["env_steps"],
            wall_s=run.wall_s,
            notes=[note],
        )
    if module_digest(flow) != digest:
        raise RuntimeError("training changed the weights of the flow that it was to leave alone.")
    print(result.summary())
    print(report.resolve())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
