"""Steer a frozen flow policy through its noise with demonstrations only: AW-MLE, stage 1 of on-policy DSRL.

    python examples/dsrl_offline.py --policy runs/shortcut_flow_bc-planar-state-0

takes about 3 minutes on one CPU thread for the planar task. The critic of the checkpoint is used if it has one (that of
an advantage-weighted flow); otherwise a critic is first trained on the demonstrations. Then the latent policy is fitted
to latents of the prior, weighted by the critic's values of their actions. examples/dsrl_ppo.py --init <this run>
continues online. --resume continues a stopped run.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from torchrl.envs import EnvBase

from torchrl_flow.data import DemoReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import evaluate, validation_seeds
from torchrl_flow.modules import (
    CriticConfig,
    FlowActor,
    LatentPolicyConfig,
    QEnsemble,
    SteeredFlowActor,
    make_critic,
    write_features,
)
from torchrl_flow.objectives import ActionScorer, ChunkCriticLoss, LatentAWMLELoss, NetworkSoftUpdate
from torchrl_flow.options import (
    Count,
    DemoPath,
    Fraction,
    NonNegative,
    Positive,
    Range,
    Rate,
    Sizes,
    SteeringArgs,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    critic_config,
    frozen_flow,
    load_critic,
    load_steering_start,
    policy_demonstrations,
    policy_evaluation_env,
    start_latent_policy,
)
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import gradient_step


@dataclasses.dataclass(kw_only=True)
class Args(SteeringArgs):
    """Options of the recipe."""

    demos: DemoPath | None = None
    """trajectory file (.h5) or demo store; by default the demonstrations that the policy was cloned from"""
    num_demos: Count | None = None
    """number of demonstrations to use, if --demos names other demonstrations"""
    steer_mode: Literal["full", "act_horizon", "tied"] = "full"
    latent_bound: Positive | None = None
    hidden_sizes: Sizes = (256, 256)
    num_qs: Count = 10
    """members of the critic, if this recipe trains a new critic"""
    critic_sizes: Sizes = (128, 128)
    """hidden layers of the critic"""
    critic_iterations: Count = 3000
    """gradient steps of the critic, if the checkpoint has no critic"""
    critic_lr: Positive = 3e-4
    """learning rate of the critic"""
    tau: Rate = 0.01
    """rate (tau) at which the target critic follows the critic"""
    gamma: Fraction = 0.99
    """discount of one environment step"""
    iterations: Count = 1000
    """gradient steps of the latent policy"""
    lr: Positive = 3e-4
    """learning rate of the latent policy"""
    num_candidates: Count = 16
    """M, latents of the prior per observation"""
    beta: NonNegative = 1.0
    """inverse temperature of the weights of the candidate latents, in units of the spread of their scores"""
    kappa: Annotated[float, Range(high=0)] = -1.0
    """weight of the members' standard deviation in a score, mean + kappa std: at most 0, pessimistic"""
    kl_coef: NonNegative = 1e-3
    """weight of the KL divergence of the latent policy from the prior"""
    batch_size: Count = 256
    """chunks per gradient step"""


def find_critic(args: Args, checkpoint: TrainingCheckpoint, flow: FlowActor) -> tuple[QEnsemble, CriticConfig, int]:
    """Return the checkpoint's critic or a new one, its configuration, and its number of training steps."""
    given = critic_config(checkpoint)
    if given is not None:
        return load_critic(checkpoint, flow)[0], given, 0
    config = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_sizes)
    return make_critic(config, flow), config, args.critic_iterations


def train(
    args: Args,
    run: Run,
    data: DemoReplayBuffer,
    actor: SteeredFlowActor,
    critic: QEnsemble,
    warm_up: int,
    env: EnvBase,
) -> None:
    """Train the critic, then the latent policy, in one training loop."""
    critic_loss = ChunkCriticLoss(actor.flow, critic, gamma=args.gamma)
    target = NetworkSoftUpdate(critic_loss, "critic_network", tau=args.tau)
    critic_adam = torch.optim.Adam(critic_loss.critic_parameters(), args.critic_lr, fused=True)
    options = {"beta": args.beta, "kappa": args.kappa, "kl_coef": args.kl_coef, "num_candidates": args.num_candidates}
    scorer = ActionScorer(actor.flow, critic, steer_mode=actor.policy.steer_mode)
    loss = LatentAWMLELoss(actor.policy, scorer, standardize_scores=True, **options)
    adam = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    critic_compute, compute = args.compiled(critic_loss), args.compiled(loss)
    modules = {"policy": actor.flow, LATENT_POLICY: actor.policy, "critic": critic}
    modules["target_critic"] = critic_loss.target_critic
    run.track(modules=modules, optimizers={"critic": critic_adam, "adam": adam})
    for step in run.steps(warm_up + args.iterations, save_every=args.save_every):
        batch = data.sample()
        if step <= warm_up:
            metrics = dict(critic_compute(batch).items())
            trained = {"critic": ("loss_qvalue", critic_adam)}
        else:
            batch = write_features(actor.flow, batch) if actor.flow.encoder.pixel_encoder is not None else batch
            metrics = dict(compute(batch).items())
            trained = {"latent_policy": ("loss_latent_policy", adam)}
        for name, (term, optimizer) in trained.items():
            metrics |= gradient_step({term: metrics[term]}, {name: optimizer}, step=step, batch=batch)
        if step <= warm_up:
            target.step()
        if run.due(args.log_every) or step == warm_up + 1:
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if step > warm_up and run.due(args.eval_every):
            run.log_evaluation(evaluate(env, actor, validation_seeds(100), progress=False).metrics())


def main(args: Args) -> None:
    """Load flow and demonstrations, train critic and latent policy, evaluate, and write the report."""
    args.prepare()
    asked: dict[str, Any] = {"which": args.which, "num_steps": args.num_steps, "device": args.device}
    flow, checkpoint, _ = load_steering_start(args.policy, **asked)
    limits: dict[str, Any] = {"gamma": args.gamma, "max_episode_steps": args.max_episode_steps}
    limits["episodes"] = args.eval_episodes
    env = policy_evaluation_env(checkpoint, num_envs=args.num_envs, sim_backend=args.sim_backend, **limits)
    task = task_info(env)
    source = DemoSource.of_checkpoint(checkpoint, args.demos, args.num_demos)
    sampling: dict[str, Any] = {"batch_size": args.batch_size, "device": args.device}
    data = policy_demonstrations(checkpoint, source, gamma=args.gamma, **sampling)
    latents = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes)
    policy = start_latent_policy(flow, latents, train_encoder=args.train_encoder)
    actor = SteeredFlowActor(policy, flow)
    critic, described, warm_up = find_critic(args, checkpoint, flow)
    with args.open_run(
        f"dsrl_offline-{task.task}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=flow.config,
        module_configs={LATENT_POLICY: policy.config, "critic": described},
        keep_best="eval/success_once",
    ) as run:
        with frozen_flow(flow, run.resumed_from):
            train(args, run, data, actor, critic, warm_up, env)
        notes = [f"{data.store.num_episodes} demonstrations; critic {'trained here' if warm_up else 'given'}."]
        result, report = conclude_run(run, actor, env, recipe="dsrl_ppo", stage="1", notes=notes)
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
