"""Steer a frozen flow policy through its noise off policy: SAC over latents, stage 2 of DSRL, with or without aliasing.

    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-planar-state-0
    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-planar-state-0 --na

take 2 to 5 minutes on one CPU thread for the planar task. With --na a critic learns from executed actions, and
the critics of latents are distilled from it (DSRL-NA). --aliasing puts the demonstrations into the replay buffer, with
latents that are found once and cached on disk; --init goes on from a stage 1 (dsrl_sac_offline.py). The flow's
weights do not change, which is checked at the end. Episodes go on from one iteration to the next. A run that was
stopped goes on with --resume, to the same bits, and becomes longer with more --iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_flow.envs import AfterSuccess, CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate
from torchrl_flow.modules import (
    AliasConfig,
    CriticConfig,
    LatentPolicyConfig,
    NoiseAliaser,
    SteeredFlowActor,
    flow_on_features,
    make_critic,
    make_latent_critics,
)
from torchrl_flow.objectives import ActionScorer, ChunkCriticLoss, DistilledSACLoss, LatentSACLoss, NetworkSoftUpdate
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegativeInt,
    Positive,
    Rate,
    RunArgs,
    RunSource,
    SamplingSteps,
    Sizes,
    WritableDirectory,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    alias_demonstrations,
    frozen_flow,
    load_flow_checkpoint,
    make_training_envs,
    policy_demonstrations,
    start_latent_policy,
    steering_flow,
)
from torchrl_flow.reports import conclude
from torchrl_flow.runs import Run, TrainingCheckpoint, Which, load_checkpoint
from torchrl_flow.training import (
    LossGroup,
    NamedLossStepper,
    ReplayState,
    finished_success,
    macro_replay,
    macro_transitions,
    replay_demonstrations,
    steered_rollouts,
)

Update = Callable[[TensorDictBase], dict[str, Any]]


@dataclasses.dataclass
class Args(RunArgs):
    """What the recipe can be told on the command line."""

    policy: RunSource
    """run directory or checkpoint with the flow to steer"""
    init: RunSource | None = None
    """run directory or checkpoint of stage 1; training starts from the latent policy, critics and options of stage 1"""
    which: Which = "best"
    """checkpoint of the --policy and --init runs: best (the last one, if a run keeps no best one) or last"""
    na: bool = False
    """noise aliasing: distil the critics of latents from a critic of actions"""
    aliasing: Literal["none", "inversion", "retrieval", "reversal"] = "none"
    """method that finds the latents of demonstrations for the replay buffer; none: no demonstrations"""
    cache: WritableDirectory = "demos"
    """directory in which the latents of demonstrations are cached"""
    steer_mode: Literal["full", "act_horizon", "tied"] = "tied"
    """what the latent sets: one vector for all steps, the flow noise of the executed steps, or of all steps"""
    latent_bound: Positive | None = 2.0
    """b of the bound b tanh(u / b) on the latent"""
    hidden_sizes: Sizes = (128, 128, 128)
    """hidden layers of all networks"""
    num_qs: Count = 2
    """number of critics"""
    num_steps: SamplingSteps | None = None
    """sampling steps K of the flow; by default those of --init, or else of the --policy run"""
    train_encoder: bool = False
    """train separate image encoders for policy and critics (the replay buffer then keeps images); otherwise policy and
    critics read features of the encoder of the frozen flow"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one that is not batched; 128 of the planar task and one of ManiSkill
    where none is given"""
    sim_backend: str | None = None
    """ManiSkill's simulation; several environments take physx_cuda where there is a CUDA device, and else physx_cpu"""
    collectors: Count = 1
    """processes that collect, with --num-envs environments each, on the CPU; 1 collects in this process. With more, a
    run continued with --resume starts new episodes, and is not equal to the bit to a run without a stop"""
    max_episode_steps: Count | None = None
    """time limit of an episode; by default the time limit of the policy's task"""
    after_success: AfterSuccess = "end"
    """end a training episode at its first success, or continue it to the time limit; then sparse rewards pay for every
    step at the goal, and the policy learns to stay there"""
    rollout: Count = 13
    """chunks per environment and iteration"""
    buffer_size: Count = 200_000
    """capacity of the replay buffer in chunks, demonstrations included; the oldest chunks are overwritten first"""
    iterations: Count = 14
    """iterations of collecting and updating"""
    warm_up: NonNegativeInt = 1
    """iterations before the first update"""
    policy_delay: NonNegativeInt = 200
    """updates of the critics before the first update of the policy, so that the policy does not exploit new critics"""
    utd: Positive = 0.25
    """updates per collected chunk (update-to-data ratio); use 1 to 100 if environment steps are expensive"""
    policy_every: Count | None = None
    """updates of the critics for each update of the policy; by default --utd, so that a high update-to-data ratio
    applies to the critics only"""
    distill_steps: Count = 1
    """steps of distillation per update, with --na"""
    distillation: Literal["forward", "aliased", "both"] = "forward"
    """pairs for the distillation (with --na): latents of the prior, latents of the replay buffer, or both"""
    batch_size: Count = 256
    """chunks per update"""
    gamma: Fraction = 0.97
    """discount of one environment step"""
    tau: Rate = 0.02
    """rate (tau) at which the target critics follow the critics"""
    actor_lr: Positive = 3e-4
    """learning rate of the latent policy"""
    critic_lr: Positive = 3e-4
    """learning rate of the critics"""
    alpha_lr: Positive = 3e-3
    """learning rate of the temperature's logarithm"""
    alpha: Positive = 3e-3
    """temperature at the start"""
    target_entropy: float | None = 0.0
    """entropy that the temperature aims at; -0.5 per dimension of the latent where none is given"""
    backup_entropy: bool = False
    """count the entropy in the targets"""
    eval_episodes: Count = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: NonNegativeInt = 1
    """iterations between evaluations on 100 other episodes; 0 for none"""
    num_videos: NonNegativeInt = 0
    """episodes to film, where the machine can render"""
    log_every: Count = 1
    """iterations between two lines of metrics"""
    save_every: Count = 5
    """iterations between checkpoints"""

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect."""
        if not self.na and (self.distillation != Args.distillation or self.distill_steps != Args.distill_steps):
            raise SystemExit("--distillation and --distill-steps are for --na: without it nothing is distilled.")
        if self.buffer_size < self.batch_size:
            raise SystemExit(f"--buffer-size {self.buffer_size} holds no batch of {self.batch_size}.")
        if self.warm_up >= self.iterations:
            raise SystemExit(
                f"--warm-up {self.warm_up} leaves none of --iterations {self.iterations} to learn in: lower it."
            )


@dataclasses.dataclass
class Learner:
    """The losses, their steppers and what a checkpoint must hold of them."""

    update: Update
    modules: dict[str, Any]
    state: dict[str, Any]


def make_envs(args: Args, checkpoint: TrainingCheckpoint) -> tuple[EnvBase | CollectorEnvs, EnvBase]:
    """Make the environment to train in, and that to evaluate in, where success does not end an episode."""
    limits: dict[str, Any] = {
        "gamma": args.gamma,
        "max_episode_steps": args.max_episode_steps,
        "after_success": args.after_success,
    }
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend, "planar_envs": 128}
    simulation["collectors"] = args.collectors
    return make_training_envs(checkpoint, episodes=args.eval_episodes, **simulation, **limits)


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
    flow = flow_on_features(actor.flow) if actor.reads_features else actor.flow
    action_critic = make_critic(critic_config, flow)
    critic_loss = ChunkCriticLoss(flow, action_critic, actor.policy, gamma=args.gamma)
    critics = make_latent_critics(critic_config, flow, actor.policy)
    options = {"mode": args.distillation, **sac_options(args, actor)}
    teacher = ActionScorer(flow, action_critic, steer_mode=actor.policy.steer_mode)
    loss = DistilledSACLoss(actor.policy, critics, teacher, **options)
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

    modules = {"sac": loss, "critic": action_critic, "target_critic": critic_loss.target_critic}
    return Learner(update, modules, {"td": td, "distil": distil, "improve": improve})


def start_from(init: TrainingCheckpoint | None, learner: Learner) -> None:
    """Take the critics of a stage 1 too; where it was another variant's, the policy alone."""
    if init is not None:
        init.restore(modules={role: part for role, part in learner.modules.items() if role in init.roles})


def add_demonstrations(
    args: Args, buffer: TensorDictReplayBuffer, actor: SteeredFlowActor, checkpoint: TrainingCheckpoint
) -> str:
    """Put the demonstrations into the buffer, each with a latent that the flow carries to its action, or nearly."""
    if args.aliasing == "none":
        return "No demonstrations in the replay buffer."
    data = policy_demonstrations(checkpoint, gamma=args.gamma)
    config = AliasConfig(mode=args.aliasing)
    aliaser = NoiseAliaser(actor.flow, actor.policy, config=config, num_steps=actor.num_steps)
    cache = alias_demonstrations(data, aliaser, args.cache)
    replay_demonstrations(buffer, data, cache.latent, actor)
    return f"{len(data)} demonstrated chunks, latents by {args.aliasing}, residual {cache.residual.mean():.3f}."


def train(
    args: Args,
    run: Run,
    actor: SteeredFlowActor,
    learner: Learner,
    buffer: TensorDictReplayBuffer,
    envs: tuple[EnvBase | CollectorEnvs, EnvBase],
) -> None:
    """Train the latent policy; all of the loop is here."""
    rollouts = steered_rollouts(envs[0], actor, args.rollout, seed=args.seed, policy_device=args.device)
    modules = {"policy": actor.flow, LATENT_POLICY: actor.policy, **learner.modules}
    states = {"rollouts": rollouts, "replay": ReplayState(buffer), **learner.state}
    run.track(modules=modules, state=states)
    if round(args.utd * rollouts.chunks) < 1:
        raise SystemExit(f"--utd {args.utd} of {rollouts.chunks} chunks an iteration makes no update: raise it.")
    for step in run.steps(args.iterations, save_every=args.save_every):
        data = rollouts.collect()
        buffer.extend(macro_transitions(data, flow=actor.flow if actor.reads_features else None))
        run.counters["env_steps"] = run.counters.get("env_steps", 0) + int(data["next", "steps_to_next_obs"].sum())
        metrics: dict[str, Any] = {**finished_success(data)}
        metrics |= {"env_steps": run.counters["env_steps"], "wall_s": run.wall_s}
        if step > args.warm_up:
            for _ in range(round(args.utd * data.numel())):
                metrics |= learner.update(buffer.sample())
            metrics |= {"utd": args.utd}
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if run.due(args.eval_every):
            run.log_evaluation(evaluate(envs[1], actor, range(20_000, 20_100), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> None:
    """Flow, latent policy, critics, training, evaluation, report."""
    args.prepare()
    start = load_flow_checkpoint(args.policy, which=args.which)
    init = None if args.init is None else load_checkpoint(args.init, which=args.which)
    options: dict[str, Any] = {"num_steps": args.num_steps, "init": init, "device": args.device}
    flow, checkpoint = steering_flow(start, **options)
    envs = make_envs(args, checkpoint)
    task = task_info(envs[1])
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    choice: dict[str, Any] = {"defaults": LatentPolicyConfig(Args.steer_mode, Args.latent_bound)}
    policy = start_latent_policy(flow, latents, init, train_encoder=args.train_encoder, **choice)
    actor = SteeredFlowActor(policy, flow)
    critics = CriticConfig(args.num_qs, args.hidden_sizes, on_features=actor.reads_features)
    learner = (make_na if args.na else make_sac)(args, actor, critics)
    start_from(init, learner)
    recipe = "dsrl_na" if args.na else "dsrl_sac"
    directory = args.run_directory(f"{recipe}-{task['task']}-{args.seed}")
    # What the flow was cloned from, for the stages after this one.
    config = {**dataclasses.asdict(args), "demonstrations": checkpoint.config.get("demonstrations")}
    configs = {LATENT_POLICY: policy.config, **({"critic": critics} if args.na else {})}
    parts: dict[str, Any] = {"actor_config": flow.config, "module_configs": configs, "keep_best": "eval/success_once"}
    with Run(directory, config, task=task, **parts, **args.run_options()) as run:
        buffer = macro_replay(args.buffer_size, batch_size=args.batch_size, device=args.device)
        note = add_demonstrations(args, buffer, actor, checkpoint)
        with frozen_flow(flow, run.resumed_from):
            train(args, run, actor, learner, buffer, envs)
        result, report = conclude(
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
            run=run,
            notes=[note],
        )
    print(result.summary())
    print(report.resolve())


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
