"""Weigh demonstrations by a critic's advantages: advantage-weighted ShortCut flow, stage 2 of AWSC.

    python examples/aw_shortcut_flow_offline.py --policy runs/shortcut_flow_bc-planar-state-0

Starts from the policy of `shortcut_flow_bc.py` and its demonstrations, which should be of mixed quality (--quality
mixed there): a critic of action chunks is learnt from them, and the policy learns most from the better ones. Takes
about 2 minutes on one CPU core on the planar task; for its score see docs/results.md.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import torch
from torchrl.envs import EnvBase

from torchrl_flow.data import DemoReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate
from torchrl_flow.modules import CriticConfig, FlowActor, FlowActorConfig, make_critic, make_flow_actor
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.options import (
    AdvantageWeightArgs,
    Count,
    NonNegativeInt,
    NotAbove,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, policy_evaluation_env, require_actor_config, warm_start
from torchrl_flow.reports import best_of_variants, conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import LossGroup, NamedLossStepper


@dataclasses.dataclass(kw_only=True)
class Args(AdvantageWeightArgs):
    """What the recipe can be told on the command line."""

    iterations: Count = 1000
    """gradient steps of actor and critic"""
    critic_warmup: NonNegativeInt = 3000
    """gradient steps of the critic alone, before the gradient steps of actor and critic"""
    num_min_qs: Annotated[Count, NotAbove("num_qs")] = 2
    eval_every: NonNegativeInt = 1000
    log_every: Count = 50
    save_every: Count = 500


def make_actor(args: Args, checkpoint: TrainingCheckpoint) -> FlowActor:
    """Build a policy as stage 1's is; its weights come later, with its average's."""
    wanted = {name: getattr(args, name) for name in ("obs_horizon", "pred_horizon", "act_horizon")}
    require_actor_config(checkpoint, wanted)
    config = FlowActorConfig.from_dict(checkpoint.actor_config)
    if args.extraction == "q_gradient":
        config = dataclasses.replace(config, num_steps=1)  # The map that the gradient of Q goes through.
    return make_flow_actor(config).to(args.device)


def make_loss(args: Args, actor: FlowActor, critic_config: CriticConfig) -> AWFlowLoss:
    """Build the loss around the policy and a new critic."""
    build: Any = AWFlowLoss.published if args.preset == "published" else AWFlowLoss
    return build(actor, make_critic(critic_config, actor), **args.loss_options())


def make_stepper(args: Args, loss_module: AWFlowLoss) -> NamedLossStepper:
    """Build what does an update: two optimisers, two averages."""
    targets = NetworkSoftUpdate(loss_module, "critic_network", tau=args.tau)
    averages = NetworkSoftUpdate(loss_module, "actor_network", eps=args.ema)
    actor = torch.optim.AdamW(loss_module.actor_parameters(), args.lr, weight_decay=1e-4, fused=True)
    critic = torch.optim.Adam(loss_module.critic_parameters(), args.critic_lr, fused=True)
    groups = [
        LossGroup("loss_qvalue", critic, method="qvalue_loss", target_updater=targets),
        LossGroup(
            "loss_actor",
            actor,
            method="actor_loss",
            warmup=args.critic_warmup,
            max_grad_norm=1.0,
            target_updater=averages,
        ),
    ]
    return NamedLossStepper(loss_module, groups)


def make_data(args: Args, source: DemoSource, task: dict[str, Any], actor: FlowActor) -> DemoReplayBuffer:
    """Read the demonstrations, as a replay buffer of action chunks and what they lead to."""
    horizons: dict[str, Any] = {name: getattr(actor, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    options: dict[str, Any] = {"gamma": args.gamma, "batch_size": args.batch_size, "device": args.device}
    # After the last step of a demonstration the policy shall hold still, so that padding is a target too.
    return source.load(task, padding="hold", mask_padding=False, **horizons, **options)


def train(
    args: Args,
    run: Run,
    data: DemoReplayBuffer,
    loss_module: AWFlowLoss,
    stepper: NamedLossStepper,
    env: EnvBase,
) -> None:
    """Train critic and policy; all of the loop is here."""
    modules = {"policy": loss_module.actor_network, "ema_policy": loss_module.ema_actor}
    modules |= {"critic": loss_module.critic_network, "target_critic": loss_module.target_critic}
    if loss_module.reference_actor is not None:
        modules["reference_policy"] = loss_module.reference_actor
    run.track(modules=modules, state={"stepper": stepper})
    for step in run.steps(args.critic_warmup + args.iterations, save_every=args.save_every):
        metrics = stepper.update(data.sample())
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            result = evaluate(env, loss_module.ema_actor(), range(20_000, 20_050), progress=False)
            run.log_evaluation(result.metrics())


def main(args: Args) -> EvaluationResult:
    """Policy, demonstrations, training, evaluation, report."""
    args.prepare()
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    actor = make_actor(args, checkpoint)
    asked = {name: getattr(args, name) for name in ("task", "control_mode", "max_episode_steps")}
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    env = policy_evaluation_env(checkpoint, episodes=args.eval_episodes, **simulation, **asked)
    task = task_info(env)
    source = DemoSource.of_checkpoint(checkpoint, args.demos)
    data = make_data(args, source, task, actor)
    critic_config = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)
    with args.open_run(
        f"aw_shortcut_flow-{task['task']}-{task['obs_mode']}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=actor.config,
        module_configs={"critic": critic_config},
        keep_best="eval/success_once",
    ) as run:
        loss_module = make_loss(args, actor, critic_config)
        stepper = make_stepper(args, loss_module)
        warm_start(loss_module, checkpoint)
        train(args, run, data, loss_module, stepper, env)
        policy = loss_module.ema_actor()
        variants = best_of_variants(policy, loss_module.target_critic(), args.best_of)
        notes = [f"{data.store.num_episodes} demonstrations, {len(data)} steps; policy of {checkpoint.path.name}."]
        shown: dict[str, Any] = {"variants": variants, "notes": notes}
        result, report = conclude_run(run, policy, env, recipe="awsc", stage="2", **shown)
    print(result.summary(), report.resolve(), sep="\n")
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
