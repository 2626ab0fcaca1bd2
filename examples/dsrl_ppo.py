"""Steer a frozen flow policy through its noise with PPO over whole chunks: stage 2 of on-policy DSRL.

    python examples/dsrl_ppo.py --policy runs/shortcut_flow_bc-planar-state-0

takes 2 to 4 minutes on one CPU thread for the planar task and raises the success of a policy from 0.57 to above 0.90.
The policy may be any run or checkpoint with a flow; --init continues from stage 1 (dsrl_offline.py). The flow's weights
do not change, which is checked at the end. Episodes continue from one iteration to the next. --resume continues a
stopped run bit-identically, and extends it with more --iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_flow.envs import CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate, validation_seeds
from torchrl_flow.modules import (
    FlowActor,
    LatentGaussianPolicy,
    LatentPolicyConfig,
    StateValue,
    StateValueConfig,
    SteeredFlowActor,
    flow_on_features,
    make_state_value,
)
from torchrl_flow.objectives import make_chunk_advantage
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OnlineSteeringArgs,
    Positive,
    Rate,
    Sizes,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    LATENT_POLICY,
    frozen_flow,
    load_steering_start,
    make_training_envs,
    start_latent_policy,
)
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import finished_success, gradient_step, steered_rollouts


@dataclasses.dataclass(kw_only=True)
class Args(OnlineSteeringArgs):
    """Options of the recipe."""

    on_policy = True

    steer_mode: Literal["full", "act_horizon", "tied"] = "full"
    latent_bound: Positive | None = None
    hidden_sizes: Sizes = (256, 256)
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension; by default 512 of the planar task and one
    of ManiSkill"""
    iterations: Count = 80
    epochs: Count = 4
    """passes over the chunks of an iteration"""
    minibatch: Count = 1024
    """chunks per gradient step"""
    lmbda: Fraction = 0.95
    """lambda of the advantage estimator, per chunk"""
    clip: Positive = 0.2
    """bound on the distance of the probability ratio from 1"""
    entropy: NonNegative = 1e-3
    """weight of the entropy"""
    lr: Positive = 3e-4
    """learning rate of the latent policy"""
    value_lr: Positive = 1e-3
    """learning rate of the value network"""
    prior_fraction: Fraction = 0.3
    """share of latents that are drawn from the prior in the first iteration; data is collected with this mixture"""
    prior_decay: Rate = 0.995
    """factor by which the share of draws from the prior (--prior-fraction) is multiplied in each iteration"""
    max_grad_norm: Positive = 0.5
    """bound on the gradient's norm, for each network"""
    eval_every: NonNegativeInt = 10
    save_every: Count = 10


def make_actor(
    args: Args, flow: FlowActor, init: TrainingCheckpoint | None
) -> tuple[SteeredFlowActor, StateValue, StateValueConfig]:
    """Build the steered flow, which collects with the mixture with the prior, and the value network."""
    config = LatentPolicyConfig(args.steer_mode, args.latent_bound, args.hidden_sizes, (-5.0, 1.0))
    choice: dict[str, Any] = {"defaults": LatentPolicyConfig(Args.steer_mode, Args.latent_bound)}
    choice |= {"train_encoder": args.train_encoder, "prior_mixing": True}
    policy = start_latent_policy(flow, config, init, **choice)
    actor, values = SteeredFlowActor(policy, flow), StateValueConfig(args.hidden_sizes)
    return actor, make_state_value(values, flow_on_features(flow) if actor.reads_features else flow), values


def make_loss(args: Args, policy: LatentGaussianPolicy, value: StateValue) -> tuple[ClipPPOLoss, GAE]:
    """Make TorchRL's loss and advantage estimator, which discounts a chunk of k steps by gamma^k."""
    network: Any = value
    weights: dict[str, Any] = {"entropy_coeff": args.entropy, "critic_coeff": 1.0, "loss_critic_type": "l2"}
    loss = ClipPPOLoss(policy, network, clip_epsilon=args.clip, normalize_advantage=True, **weights)
    loss.set_keys(action=policy.latent_key, sample_log_prob=policy.latent_log_prob_key)
    return loss, make_chunk_advantage(value, gamma=args.gamma, lmbda=args.lmbda)


def update(
    args: Args,
    run: Run,
    compute: Callable[[TensorDictBase], TensorDictBase],
    optimizers: dict[str, torch.optim.Optimizer],
    rows: TensorDictBase,
) -> dict[str, Any]:
    """Do all epochs on the collected chunks; return the metrics of the last step."""
    metrics: dict[str, Any] = {}
    for _ in range(args.epochs):
        for index in torch.randperm(len(rows)).split(args.minibatch):
            batch: Any = rows[index.to(rows.device)]
            out = compute(batch)
            losses = {name: out[name] for name in ("loss_objective", "loss_entropy", "loss_critic")}
            run.counters["updates"] = run.counters.get("updates", 0) + 1
            checks: dict[str, Any] = {"step": run.counters["updates"], "batch": batch}
            norms = gradient_step(losses, optimizers, max_grad_norm=args.max_grad_norm, **checks)
            metrics = {key: value for key, value in out.items() if value.numel() == 1} | norms
    return metrics


def train(
    args: Args,
    run: Run,
    actor: SteeredFlowActor,
    value: StateValue,
    envs: tuple[EnvBase | CollectorEnvs, EnvBase],
) -> None:
    """Run the training loop of the latent policy."""
    policy = actor.policy
    loss, advantage = make_loss(args, policy, value)
    compute = args.compiled(loss)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "latent_policy": torch.optim.Adam(policy.parameters(), args.lr, fused=True),
        "value": torch.optim.Adam(value.head.parameters(), args.value_lr, fused=True),
    }
    rollouts = steered_rollouts(envs[0], actor, args.rollout, seed=args.seed, policy_device=args.device)
    modules = {"policy": actor.flow, LATENT_POLICY: policy, "value": value}
    run.track(modules=modules, optimizers=optimizers, state={"rollouts": rollouts})
    for step in run.steps(args.iterations, save_every=args.save_every):
        policy.set_prior_fraction(args.prior_fraction * args.prior_decay ** (step - 1))
        data = rollouts.collect().to(args.device)
        # Episodes continue after the end of a rollout: their last value is bootstrapped, not treated as an end.
        with torch.no_grad():
            advantage(data)
        metrics = update(args, run, compute, optimizers, data.reshape(-1)) | finished_success(data) | rollouts.metrics()
        metrics |= {"prior_fraction": policy.prior_fraction, "value": data["state_value"].mean()}
        metrics |= run.count_env_steps(data)
        if run.due(args.log_every):
            run.log({f"train/{name}": metric for name, metric in metrics.items()})
        if run.due(args.eval_every):
            run.log_evaluation(evaluate(envs[1], actor, validation_seeds(100), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> None:
    """Load the flow, build and train the latent policy, evaluate, and write the report."""
    args.prepare()
    asked: dict[str, Any] = {"which": args.which, "num_steps": args.num_steps, "device": args.device}
    flow, checkpoint, init = load_steering_start(args.policy, init=args.init, **asked)
    envs = make_training_envs(checkpoint, planar_envs=512, **args.env_options())
    task = task_info(envs[1])
    actor, value, value_config = make_actor(args, flow, init)
    with args.open_run(
        f"dsrl_ppo-{task.task}-{args.seed}",
        task=task,
        # The demonstrations of the flow, for later stages.
        config={"demonstrations": checkpoint.config.get("demonstrations")},
        actor_config=flow.config,
        module_configs={LATENT_POLICY: actor.policy.config, "value": value_config},
        keep_best="eval/success_once",
    ) as run:
        with frozen_flow(flow, run.resumed_from):
            train(args, run, actor, value, envs)
        notes = [f"Flow of {checkpoint.path.name}, bitwise unchanged by training."]
        result, report = conclude_run(run, actor, envs[1], recipe="dsrl_ppo", stage="2", notes=notes)
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
