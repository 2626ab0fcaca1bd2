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
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_flow.envs import CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate
from torchrl_flow.modules import (
    CriticConfig,
    LatentPolicyConfig,
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
    OnlineArgs,
    Positive,
    Rate,
    RunSource,
    SteeringArgs,
    WritableDirectory,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    aliased_demonstrations,
    frozen_flow,
    load_flow_checkpoint,
    make_training_envs,
    start_latent_policy,
    steering_flow,
)
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run, load_checkpoint
from torchrl_flow.training import (
    ReplayState,
    finished_success,
    gradient_step,
    macro_replay,
    macro_transitions,
    replay_demonstrations,
    steered_rollouts,
)


@dataclasses.dataclass(kw_only=True)
class Args(SteeringArgs, OnlineArgs):
    """What the recipe can be told on the command line."""

    init: RunSource | None = None
    """run directory or checkpoint of stage 1; training starts from the latent policy, critics and options of stage 1"""
    na: bool = False
    """noise aliasing: distil the critics of latents from a critic of actions"""
    aliasing: Literal["none", "inversion", "retrieval", "reversal"] = "none"
    """method that finds the latents of demonstrations for the replay buffer; none: no demonstrations"""
    cache: WritableDirectory = "demos"
    """directory in which the latents of demonstrations are cached"""
    num_qs: Count = 2
    """number of critics"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one that is not batched; 128 of the planar task and one of ManiSkill
    where none is given"""
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
    eval_every: NonNegativeInt = 1
    log_every: Count = 1
    save_every: Count = 5

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


def improves(args: Args, number: int) -> bool:
    """Tell whether the policy learns too at this update of the critics."""
    every = max(1, round(args.utd)) if args.policy_every is None else args.policy_every
    return number > args.policy_delay and number % every == 0


class Learner:
    """The losses of latents, and with ``--na`` of actions, with their optimisers and targets."""

    def __init__(self, args: Args, actor: SteeredFlowActor, config: CriticConfig) -> None:
        policy, flow = actor.policy, flow_on_features(actor.flow) if actor.reads_features else actor.flow
        entropy = -0.5 * policy.latent_shape.numel() if args.target_entropy is None else args.target_entropy
        options: dict[str, Any] = {"gamma": args.gamma, "target_entropy": entropy, "alpha_init": args.alpha}
        # A loop over two critics is no slower than vmap on a CPU.
        options |= {"backup_entropy": args.backup_entropy, "deactivate_vmap": args.device == "cpu"}
        critic, self.td = make_critic(config, flow) if args.na else None, None
        critics = make_latent_critics(config, flow, policy)
        self.modules: dict[str, Any] = {}
        if critic is not None:
            self.td = ChunkCriticLoss(flow, critic, policy, gamma=args.gamma)
            teacher = ActionScorer(flow, critic, steer_mode=policy.steer_mode)
            self.sac: LatentSACLoss = DistilledSACLoss(policy, critics, teacher, mode=args.distillation, **options)
            self.target: Any = NetworkSoftUpdate(self.td, "critic_network", tau=args.tau)
            self.modules = {"critic": critic, "target_critic": self.td.target_critic}
        else:
            self.sac = LatentSACLoss(policy, critics, **options)
            self.target = SoftUpdate(self.sac, tau=args.tau)
        self.modules["sac"] = self.sac
        parameters = [{"params": [*self.sac.actor_network_params.parameters()], "lr": args.actor_lr}]
        parameters += [{"params": [self.sac.log_alpha], "lr": args.alpha_lr}]
        groups: dict[str, Any] = {"policy": parameters, "critics": self.sac.qvalue_network_params.parameters()}
        groups |= {} if self.td is None else {"critic": self.td.critic_parameters()}
        self.optimizers = {name: torch.optim.Adam(group, args.critic_lr, fused=True) for name, group in groups.items()}

    def update(self, args: Args, batch: TensorDictBase, number: int) -> dict[str, Any]:
        """Do one update of the critics and, every so often, one of policy and temperature."""

        def minimise(losses: dict[str, Tensor], name: str) -> None:
            gradient_step(losses, {name: self.optimizers[name]}, step=number, batch=batch)

        loss, metrics = self.sac.qvalue_loss(batch) if self.td is None else self.td.qvalue_loss(batch)
        minimise({"loss_qvalue": loss}, "critics" if self.td is None else "critic")
        self.target.step()
        if isinstance(self.sac, DistilledSACLoss):
            for pairs in self.sac.distillation_pairs(batch, args.distill_steps).unbind(0):
                distillation, details = self.sac.qvalue_loss(pairs)
                minimise({"loss_qvalue": distillation}, "critics")
                metrics["distillation_error"] = details["td_error"]
        if improves(args, number):
            losses = dict(self.sac.policy_loss(batch).items())
            minimise({name: losses[name] for name in ("loss_actor", "loss_alpha")}, "policy")
            metrics |= losses
        return {**metrics, "loss_qvalue": loss}


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
    state = {"rollouts": rollouts, "replay": ReplayState(buffer)}
    run.track(modules=modules, optimizers=learner.optimizers, state=state)
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
                run.counters["updates"] = run.counters.get("updates", 0) + 1
                metrics |= learner.update(args, buffer.sample(), run.counters["updates"])
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
    envs = make_training_envs(checkpoint, planar_envs=128, maniskill_envs=64, **args.env_options())
    task = task_info(envs[1])
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    choice: dict[str, Any] = {"defaults": LatentPolicyConfig(Args.steer_mode, Args.latent_bound)}
    policy = start_latent_policy(flow, latents, init, train_encoder=args.train_encoder, **choice)
    actor = SteeredFlowActor(policy, flow)
    critics = CriticConfig(args.num_qs, args.hidden_sizes, on_features=actor.reads_features)
    learner = Learner(args, actor, critics)
    if init is not None:  # The critics too; of another variant's stage 1, the policy alone.
        init.restore(modules={role: part for role, part in learner.modules.items() if role in init.roles})
    recipe = "dsrl_na" if args.na else "dsrl_sac"
    with args.open_run(
        f"{recipe}-{task['task']}-{args.seed}",
        task=task,
        # What the flow was cloned from, for the stages after this one.
        config={"demonstrations": checkpoint.config.get("demonstrations")},
        actor_config=flow.config,
        module_configs={LATENT_POLICY: policy.config, **({"critic": critics} if args.na else {})},
        keep_best="eval/success_once",
    ) as run:
        buffer = macro_replay(args.buffer_size, batch_size=args.batch_size, device=args.device)
        note = "No demonstrations in the replay buffer."
        if args.aliasing != "none":
            search: dict[str, Any] = {"mode": args.aliasing, "gamma": args.gamma}
            data, found, note = aliased_demonstrations(checkpoint, actor, args.cache, **search)
            replay_demonstrations(buffer, data, found, actor)
        with frozen_flow(flow, run.resumed_from):
            train(args, run, actor, learner, buffer, envs)
        result, report = conclude_run(run, actor, envs[1], recipe=recipe, stage="2", notes=[note])
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
