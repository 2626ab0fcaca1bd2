"""Steer a frozen flow policy through its noise with demonstrations and noise aliasing: stage 1 of off-policy DSRL.

    python examples/dsrl_sac_offline.py --policy runs/shortcut_flow_bc-planar-state-0

takes about 4 minutes on one CPU thread for the planar task. A critic of executed actions is trained on the
demonstrations (or taken from the checkpoint). Critics of latents are distilled from it on latents that the flow maps to
the demonstrated actions, and on draws from the prior. The latent policy is then fitted to them by AW-MLE or SAC.
examples/dsrl_sac_online.py --init <this run> continues from all of them. The latents are cached on disk. --resume
continues a stopped run.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, cast

import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import evaluate, validation_seeds
from torchrl_flow.modules import CriticConfig, LatentPolicyConfig, QEnsemble, SteeredFlowActor, make_critic
from torchrl_flow.objectives import ChunkCriticLoss, DistilledSACLoss, LatentAWMLELoss, LatentScorer
from torchrl_flow.options import (
    Count,
    DemoPath,
    LatentCriticArgs,
    NonNegative,
    Positive,
    SteeringArgs,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    critic_config,
    frozen_flow,
    latent_replay,
    latent_value_gap,
    load_critic,
    load_steering_start,
    make_latent_losses,
    policy_evaluation_env,
    start_latent_policy,
)
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import gradient_step

POLICY_LOSSES = ("loss_actor", "loss_alpha")


@dataclasses.dataclass(kw_only=True)
class Args(LatentCriticArgs, SteeringArgs):
    """Options of the recipe."""

    demos: DemoPath | None = None
    """trajectory file (.h5) or demo store; by default the demonstrations that the policy was cloned from"""
    num_demos: Count | None = None
    """number of demonstrations to use, if --demos names other demonstrations"""
    aliasing: Literal["inversion", "retrieval", "reversal"] = "inversion"
    """method that finds the latents of the demonstrated actions"""
    extraction: Literal["aw_mle", "sac"] = "aw_mle"
    """method that fits the latent policy to the critics of latents"""
    critic_iterations: Count = 3000
    """gradient steps of the critic of actions, if the checkpoint has no suitable critic"""
    distill_iterations: Count = 2000
    """gradient steps of the critics of latents"""
    iterations: Count = 1000
    """gradient steps of the latent policy"""
    lr: Positive = 3e-4
    """learning rate of all networks"""
    distillation: Literal["forward", "aliased", "both"] = "both"
    num_candidates: Count = 32
    """M, latents of the prior per observation (aw_mle)"""
    beta: NonNegative = 1.0
    """inverse temperature of the weights of the candidate latents, in units of the spread of their scores (aw_mle)"""
    kl_coef: NonNegative = 1e-3
    """weight of the KL divergence of the latent policy from the prior (aw_mle)"""


def find_critic(
    args: Args, checkpoint: TrainingCheckpoint, actor: SteeredFlowActor
) -> tuple[QEnsemble, CriticConfig, int]:
    """Return the checkpoint's critic if it matches the critics of latents, otherwise a new critic."""
    own = CriticConfig(args.num_qs, args.hidden_sizes, on_features=actor.reads_features)
    given = critic_config(checkpoint)
    # The critics match if they have as many heads and read the same form of observations.
    if given is not None and given.num_qs == args.num_qs and given.on_features == own.on_features:
        return load_critic(checkpoint, actor.flow)[0], given, 0
    return make_critic(own, actor.flow), own, args.critic_iterations


def train(
    args: Args,
    run: Run,
    buffer: TensorDictReplayBuffer,
    actor: SteeredFlowActor,
    critic: QEnsemble,
    first: int,
    env: EnvBase,
) -> dict[str, float]:
    """Train the critic of actions, the critics of latents and the policy, in this order."""
    policy = actor.policy
    latent_critics = CriticConfig(args.num_qs, args.hidden_sizes, on_features=actor.reads_features)
    built = make_latent_losses(actor, latent_critics, critic, steered_targets=False, **args.sac_options())
    sac, td = cast(DistilledSACLoss, built.sac), cast(ChunkCriticLoss, built.td)
    weights = {"num_candidates": args.num_candidates, "beta": args.beta}
    aw_mle = LatentAWMLELoss(policy, LatentScorer(sac), kl_coef=args.kl_coef, standardize_scores=True, **weights)

    td_loss, distillation = args.compiled(td.qvalue_loss), args.compiled(sac.qvalue_loss)
    policy_loss = args.compiled(aw_mle if args.extraction == "aw_mle" else sac.policy_loss)
    targets = built.target, SoftUpdate(sac, tau=args.tau)
    temperature = [sac.log_alpha] if args.extraction == "sac" else []
    parameters = {
        "critic": td.critic_parameters(),
        "latent_critics": sac.qvalue_network_params.parameters(),
        "policy": [*policy.parameters(), *temperature],
    }
    adam = {name: torch.optim.Adam(values, args.lr, fused=True) for name, values in parameters.items()}
    ends = (first, first + args.distill_iterations, first + args.distill_iterations + args.iterations)
    modules = {"policy": actor.flow, LATENT_POLICY: policy, "sac": sac, "critic": critic}
    run.track(modules={**modules, "target_critic": td.target_critic}, optimizers=adam)
    fixed = buffer[torch.arange(0, len(buffer), max(1, len(buffer) // 1024))]
    for step in run.steps(ends[-1], save_every=args.save_every):
        batch = buffer.sample()
        if step <= ends[0]:
            name, (loss, metrics) = "critic", td_loss(batch)
            losses = {"loss_qvalue": loss}
        elif step <= ends[1]:
            name, (loss, metrics) = "latent_critics", distillation(args.distillation_rows(batch))
            losses = {"loss_qvalue": loss}
        else:
            name, metrics = "policy", policy_loss(batch)
            losses = {key: value for key, value in metrics.items() if key in ("loss_latent_policy", *POLICY_LOSSES)}
        gradient_step(losses, {name: adam[name]}, step=step, batch=batch)
        if step <= ends[1]:
            targets[0 if step <= ends[0] else 1].step()
        if run.due(args.log_every) or step - 1 in ends:
            run.log({f"train/{key}": value for key, value in {**metrics, **losses}.items()})
        if step > ends[1] and run.due(args.eval_every):
            run.log_evaluation(evaluate(env, actor, validation_seeds(100), progress=False).metrics())
    return latent_value_gap(sac.mean_value, policy, fixed)


def main(args: Args) -> None:
    """Load flow, demonstrations and latents, train critics and latent policy, evaluate, and write the report."""
    args.prepare()
    asked: dict[str, Any] = {"which": args.which, "num_steps": args.num_steps, "device": args.device}
    flow, checkpoint, _ = load_steering_start(args.policy, **asked)
    limits: dict[str, Any] = {"gamma": args.gamma, "max_episode_steps": args.max_episode_steps}
    limits["episodes"] = args.eval_episodes
    env = policy_evaluation_env(checkpoint, num_envs=args.num_envs, sim_backend=args.sim_backend, **limits)
    task = task_info(env)
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    actor = SteeredFlowActor(start_latent_policy(flow, latents, train_encoder=args.train_encoder), flow)
    critic, described, first = find_critic(args, checkpoint, actor)
    source = DemoSource.of_checkpoint(checkpoint, args.demos, args.num_demos)
    with args.open_run(
        f"dsrl_sac_offline-{task.task}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=flow.config,
        module_configs={LATENT_POLICY: actor.policy.config, "critic": described},
        keep_best="eval/success_once",
    ) as run:
        search: dict[str, Any] = {"cache": args.cache, "gamma": args.gamma, "source": source}
        sampling: dict[str, Any] = {"batch_size": args.batch_size, "device": args.device}
        buffer, note = latent_replay(checkpoint, actor, args.aliasing, **search, **sampling)
        with frozen_flow(flow, run.resumed_from):
            gap = train(args, run, buffer, actor, critic, first, env)
        run.write_json("latent_value_gap.json", gap)
        notes = [note, f"Mean value of latents on fixed observations: {gap}."]
        result, report = conclude_run(run, actor, env, recipe="dsrl_na", stage="1", notes=notes)
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
