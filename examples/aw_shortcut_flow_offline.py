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
    Decay,
    DemoPath,
    NonNegative,
    NonNegativeInt,
    NotAbove,
    Positive,
    Rate,
    RunSource,
    Sizes,
    TaskName,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, policy_evaluation_env, require_actor_config, warm_start
from torchrl_flow.reports import best_of_variants, conclude
from torchrl_flow.runs import Run, TrainingCheckpoint, Which
from torchrl_flow.training import LossGroup, NamedLossStepper


@dataclasses.dataclass
class Args(AdvantageWeightArgs):
    """What the recipe can be told on the command line."""

    policy: RunSource
    """run or checkpoint of shortcut_flow_bc"""
    which: Which = "best"
    """checkpoint of the --policy run: best (the last one, if the run keeps no best one) or last"""
    demos: DemoPath | None = None
    """trajectory file (.h5) or demo store; by default the demonstrations that the policy was trained on"""
    task: TaskName | None = None
    """refuse a policy of another task"""
    control_mode: str | None = None
    """refuse a policy of another control mode"""
    max_episode_steps: Count | None = None
    """time limit of the environment, also of later stages; by default the time limit of the policy's stage"""
    obs_horizon: Count | None = None
    """refuse a policy of another number of frames"""
    pred_horizon: Count | None = None
    """refuse a policy of another chunk length"""
    act_horizon: Count | None = None
    """refuse a policy that executes another number of steps"""
    iterations: Count = 1000
    """gradient steps of actor and critic"""
    critic_warmup: NonNegativeInt = 3000
    """gradient steps of the critic alone, before the gradient steps of actor and critic"""
    batch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 3e-4
    """learning rate of the actor"""
    critic_lr: Positive = 1e-3
    """learning rate of the critic"""
    tau: Rate = 0.01
    """rate (tau) at which the target critic follows the critic"""
    ema: Decay = 0.995
    """decay of the averaged policy"""
    num_qs: Count = 10
    """members of the critic"""
    num_min_qs: Annotated[Count, NotAbove("num_qs")] = 2
    """members in the minimum of the target"""
    critic_hidden: Sizes = (256, 256)
    """widths of the critic's hidden layers"""
    num_action_samples: Count = 1
    """candidates for the following action, of which the target takes the best"""
    best_of: tuple[Count, ...] = ()
    """also evaluate acting by the best of so many samples, by the critic"""
    noise_scales: tuple[NonNegative, ...] = ()
    """also evaluate with the flow noise multiplied by these factors; below 1, actions are closer to their mode"""
    eval_episodes: Count = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: NonNegativeInt = 1000
    """iterations between evaluations on 50 other episodes; 0 for none"""
    num_envs: NonNegativeInt | None = None
    """environments that evaluate side by side, 0 for one that is not batched; as many as suit the task where none is
    given"""
    sim_backend: str | None = None
    """ManiSkill's simulation; several environments take physx_cuda where there is a CUDA device, and else physx_cpu"""
    num_videos: NonNegativeInt = 4
    """episodes to film, where the machine can render"""
    log_every: Count = 50
    """iterations between two lines of metrics"""
    save_every: Count = 500
    """iterations between checkpoints"""


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
    names = (
        "extraction",
        "anchor",
        "anchor_coeff",
        "clone_coeff",
        "beta",
        "weight_clip",
        "baseline",
        "advantage",
        "num_baseline_samples",
        "weighting",
        "advantage_norm",
    )
    names += ("gamma", "num_min_qs", "num_action_samples")
    build: Any = AWFlowLoss.published if args.preset == "published" else AWFlowLoss
    return build(actor, make_critic(critic_config, actor), **{name: getattr(args, name) for name in names})


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
    directory = args.run_directory(f"aw_shortcut_flow-{task['task']}-{task['obs_mode']}-{args.seed}")
    critic_config = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)
    config = {**dataclasses.asdict(args), "demonstrations": dataclasses.asdict(source)}
    parts: dict[str, Any] = {"actor_config": actor.config, "module_configs": {"critic": critic_config}}
    parts |= {"keep_best": "eval/success_once", **args.run_options()}
    with Run(directory, config, task=task, **parts) as run:
        loss_module = make_loss(args, actor, critic_config)
        stepper = make_stepper(args, loss_module)
        warm_start(loss_module, checkpoint)
        train(args, run, data, loss_module, stepper, env)
        policy = loss_module.ema_actor()
        result, report = conclude(
            directory,
            policy,
            env,
            range(10_000, 10_000 + args.eval_episodes),
            task=task,
            recipe="awsc",
            stage=" ".join(["2", *([args.label] if args.label else [])]),
            seed=args.seed,
            noise_scales=args.noise_scales,
            variants=best_of_variants(policy, loss_module.target_critic(), args.best_of),
            num_videos=args.num_videos,
            results=args.results,
            run=run,
            notes=[f"{data.store.num_episodes} demonstrations, {len(data)} steps; policy of {checkpoint.path.name}."],
        )
    print(result.summary())
    print(report.resolve())
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
