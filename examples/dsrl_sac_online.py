"""Steer a frozen flow policy through its noise with SAC over latents: stage 2 of off-policy DSRL.

    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-PickCube-v1-state-0
    python examples/dsrl_sac_online.py --policy runs/shortcut_flow_bc-planar-state-0 --iterations 14 --na

The first takes a quarter of an hour on one CPU core, the second a few minutes. With --na a critic learns from executed
actions, and the critics of latents are distilled from it (DSRL-NA). --aliasing puts the demonstrations into the replay
buffer, with latents that are computed once and cached on disk; --init continues from stage 1 (dsrl_sac_offline.py). The
flow's weights do not change, which is checked at the end. --resume continues a stopped run bit-identically.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_flow.envs import CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate, validation_seeds
from torchrl_flow.modules import CriticConfig, LatentPolicyConfig, SteeredFlowActor
from torchrl_flow.objectives import DistilledSACLoss
from torchrl_flow.options import (
    Count,
    LatentCriticArgs,
    NonNegativeInt,
    OnlineSteeringArgs,
    Positive,
    option_name,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    LatentLosses,
    frozen_flow,
    latent_replay,
    load_steering_start,
    make_latent_losses,
    make_training_envs,
    start_latent_policy,
)
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run
from torchrl_flow.training import ReplayState, finished_success, gradient_step, macro_transitions, steered_rollouts

Metrics = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Args(LatentCriticArgs, OnlineSteeringArgs):
    """Options of the recipe."""

    na: bool = False
    """noise aliasing: distil the critics of latents from a critic of actions"""
    aliasing: Literal["none", "inversion", "retrieval", "reversal"] = "none"
    """method that finds the latents of demonstrations for the replay buffer; none: no demonstrations"""
    buffer_size: Count = 200_000
    """capacity of the replay buffer in chunks, including demonstrations; the oldest chunks are overwritten first"""
    rollout: Count = 25
    iterations: Count = 50
    """iterations of collecting and updating; the planar task needs 14"""
    warm_up: NonNegativeInt = 3
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
    actor_lr: Positive = 3e-4
    """learning rate of the latent policy"""
    critic_lr: Positive = 3e-4
    """learning rate of the critics"""
    alpha_lr: Positive = 3e-3
    """learning rate of the temperature's logarithm"""
    backup_entropy: bool = False
    """include the entropy in the targets"""
    eval_every: NonNegativeInt = 5
    save_every: Count = 5

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect."""
        super().check()
        distilling = ("distillation", "distill_steps", "distill_latents", "within_state_weight")
        if not self.na and any(getattr(self, name) != getattr(Args, name) for name in distilling):
            raise SystemExit(f"{', '.join(map(option_name, distilling))} have no effect without --na.")
        if self.buffer_size < self.batch_size:
            raise SystemExit(f"--buffer-size must be at least --batch-size {self.batch_size}, got {self.buffer_size}.")
        if self.warm_up >= self.iterations:
            raise SystemExit(f"--warm-up must be below --iterations {self.iterations}, got {self.warm_up}: lower it.")


def improves(args: Args, number: int) -> bool:
    """Return whether this update of the critics also updates the policy."""
    return number > args.policy_delay and number % (args.policy_every or max(1, round(args.utd))) == 0


def update(args: Args, losses: LatentLosses, compute: Any, adam: Any, batch: TensorDictBase, number: int) -> Metrics:
    """Do one update of the critics and, at some updates, one of policy and temperature."""

    def minimise(terms: dict[str, Tensor], name: str) -> None:
        gradient_step(terms, {name: adam[name]}, step=number, batch=batch)

    sac, name = losses.sac, "critics" if losses.td is None else "critic"
    loss, metrics = compute[name](batch)
    minimise({"loss_qvalue": loss}, name)
    losses.target.step()
    if isinstance(sac, DistilledSACLoss):
        for pairs in sac.distillation_pairs(args.distillation_rows(batch), args.distill_steps).unbind(0):
            distillation, details = compute["critics"](pairs)
            minimise({"loss_qvalue": distillation}, "critics")
            within = {key: details[key] for key in ("within_state_correlation",) if key in details}
            metrics |= {"distillation_error": details["td_error"], **within}
    if improves(args, number):
        terms = dict(compute["policy"](batch).items())
        minimise({name: terms[name] for name in ("loss_actor", "loss_alpha")}, "policy")
        metrics |= terms
    return {**metrics, "loss_qvalue": loss}


def train(
    args: Args,
    run: Run,
    actor: SteeredFlowActor,
    losses: LatentLosses,
    buffer: TensorDictReplayBuffer,
    envs: tuple[EnvBase | CollectorEnvs, EnvBase],
) -> None:
    """Run the training loop of the latent policy."""
    rollouts = steered_rollouts(envs[0], actor, args.rollout, seed=args.seed, policy_device=args.device)
    compute = {name: args.compiled(term) for name, term in losses.terms().items()}
    adam = losses.optimizers(actor_lr=args.actor_lr, critic_lr=args.critic_lr, alpha_lr=args.alpha_lr)
    modules = {"policy": actor.flow, LATENT_POLICY: actor.policy, **losses.modules()}
    run.track(modules=modules, optimizers=adam, state={"rollouts": rollouts, "replay": ReplayState(buffer)})
    if round(args.utd * rollouts.chunks) < 1:
        raise SystemExit(f"--utd {args.utd} of {rollouts.chunks} chunks an iteration makes no update: raise it.")
    for step in run.steps(args.iterations, save_every=args.save_every):
        data = rollouts.collect()
        buffer.extend(macro_transitions(data, flow=actor.flow if actor.reads_features else None))
        metrics: Metrics = finished_success(data) | run.count_env_steps(data) | rollouts.metrics()
        if step > args.warm_up:
            for _ in range(round(args.utd * data.numel())):
                run.counters["updates"] = run.counters.get("updates", 0) + 1
                metrics |= update(args, losses, compute, adam, buffer.sample(), run.counters["updates"])
            metrics |= {"utd": args.utd}
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if run.due(args.eval_every):
            run.log_evaluation(evaluate(envs[1], actor, validation_seeds(100), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> None:
    """Load the flow, build and train latent policy and critics, evaluate, and write the report."""
    args.prepare()
    asked: dict[str, Any] = {"which": args.which, "num_steps": args.num_steps, "device": args.device}
    flow, checkpoint, init = load_steering_start(args.policy, init=args.init, **asked)
    envs = make_training_envs(checkpoint, planar_envs=128, maniskill_envs=64, **args.env_options())
    task = task_info(envs[1])
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    choice: dict[str, Any] = {"defaults": LatentPolicyConfig(Args.steer_mode, Args.latent_bound)}
    policy = start_latent_policy(flow, latents, init, train_encoder=args.train_encoder, **choice)
    actor = SteeredFlowActor(policy, flow)
    critics = CriticConfig(args.num_qs, args.hidden_sizes, on_features=actor.reads_features)
    # A loop over two critics is as fast as vmap on a CPU.
    options: dict[str, Any] = {"backup_entropy": args.backup_entropy, "deactivate_vmap": args.device == "cpu"}
    losses = make_latent_losses(actor, critics, critics if args.na else None, **args.sac_options(), **options)
    if init is not None:  # With the critics, or only the policy if stage 1 is of another variant.
        init.restore(modules={role: part for role, part in losses.modules().items() if role in init.roles})
    recipe = "dsrl_na" if args.na else "dsrl_sac"
    with args.open_run(
        f"{recipe}-{task.task}-{args.seed}",
        task=task,
        # The demonstrations of the flow, for later stages.
        config={"demonstrations": checkpoint.config.get("demonstrations")},
        actor_config=flow.config,
        module_configs={LATENT_POLICY: policy.config, **({"critic": critics} if args.na else {})},
        keep_best="eval/success_once",
    ) as run:
        sizes: dict[str, Any] = {"capacity": args.buffer_size, "batch_size": args.batch_size, "device": args.device}
        search: dict[str, Any] = {"cache": args.cache, "gamma": args.gamma}
        buffer, note = latent_replay(checkpoint, actor, args.aliasing, **sizes, **search)
        with frozen_flow(flow, run.resumed_from):
            train(args, run, actor, losses, buffer, envs)
        result, report = conclude_run(run, actor, envs[1], recipe=recipe, stage="2", notes=[note])
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
