"""Improve a flow policy online with its demonstrations in every batch: AWSC, stage 3.

    python examples/awsc_online.py --policy runs/aw_shortcut_flow-planar-state-0

Starts from what `aw_shortcut_flow_offline.py` left: policy, average, critic and target critic. Every batch is half
demonstrations and half chunks that the policy executed itself (RLPD); the critic learns from all of it, the policy
from the demonstrations and from those of its own chunks that the critic finds better than what it usually does there.
Takes about 5 minutes on one CPU core on the planar task; for its score see docs/results.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from tensordict.nn import TensorDictSequential
from torchrl.envs import EnvBase

from torchrl_flow.data import MixedReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import CollectorEnvs, task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate
from torchrl_flow.modules import (
    BestOfN,
    CriticConfig,
    FlowActor,
    FlowActorConfig,
    ScaledNoise,
    make_critic,
    make_flow_actor,
)
from torchrl_flow.objectives import AWFlowLoss, NetworkSoftUpdate
from torchrl_flow.options import (
    AdvantageWeightArgs,
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    load_flow_checkpoint,
    make_training_envs,
    require_actor_config,
    training_env_options,
    warm_start,
)
from torchrl_flow.reports import best_of_variants, conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import (
    ChunkRollouts,
    CollectorRollouts,
    LossGroup,
    NamedLossStepper,
    finished_success,
    make_rollouts,
    multi_chunk_transitions,
)

PLANAR_ENVS = 64


@dataclasses.dataclass(kw_only=True)
class Args(AdvantageWeightArgs):
    """What the recipe can be told on the command line."""

    recipe: str = "awsc"
    """name of the recipe in the table of results"""
    load_critic: bool = True
    """start with the critic of the checkpoint, not with a new critic"""
    chunks: Count = 4000
    """chunks to execute online"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one that is not batched; 64 of the planar task and one of ManiSkill
    where none is given"""
    collectors: Count = 1
    """processes that collect, with --num-envs environments each, on the CPU; 1 collects in this process. With more, a
    run continued with --resume starts new episodes, and is not equal to the bit to a run without a stop"""
    chunks_per_batch: Count | None = None
    """chunks that each environment executes between updates; by default 8 of one environment, one of several"""
    return_chunks: Count = 1
    """executed chunks whose rewards a target of the critic sums before it bootstraps; --chunks-per-batch bounds it"""
    utd_ratio: Positive = 1.0
    """updates of the critic per executed chunk"""
    actor_every: Count = 2
    """updates of the critic per update of the policy"""
    critic_warmup: NonNegativeInt = 0
    """updates of the critic before the first update of the policy; a new critic needs a few hundred"""
    online_ratio: Fraction = 0.5
    """share of online chunks in a batch"""
    filter_policy_data: bool = True
    """the policy learns from demonstrations and better online chunks alone"""
    buffer_size: Count = 100_000
    """online chunks to keep"""
    act_best_of: Count = 1
    """candidates in acting while training, of which the critic takes the best"""
    act_noise_scale: NonNegative = 1.0
    """standard deviation of the flow noise while the policy collects data; below 1, the policy explores less"""
    eval_every: NonNegativeInt = 50
    log_every: Count = 1
    save_every: Count = 50

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect."""
        super().check()
        if self.act_best_of > 1 and self.act_noise_scale != 1:
            raise SystemExit(
                "Act by the best of several samples (--act-best-of) or from less noise (--act-noise-scale)."
            )
        if self.return_chunks > (self.chunks_per_batch or 1):
            raise SystemExit(
                f"--return-chunks {self.return_chunks} needs rollouts of as many chunks: give --chunks-per-batch "
                f"{self.return_chunks} or more."
            )
        if self.utd_ratio * self.chunks < 1:
            raise SystemExit(f"--utd-ratio {self.utd_ratio} of --chunks {self.chunks} makes no update: raise one.")


def make_actor(args: Args, checkpoint: TrainingCheckpoint) -> FlowActor:
    """Build a policy as stage 1's is; its weights come later, with its average's."""
    wanted = {name: getattr(args, name) for name in ("obs_horizon", "pred_horizon", "act_horizon")}
    require_actor_config(checkpoint, wanted)
    config = FlowActorConfig.from_dict(checkpoint.actor_config)
    if args.extraction == "q_gradient":
        config = dataclasses.replace(config, num_steps=1)  # The map that the gradient of Q goes through.
    return make_flow_actor(config).to(args.device)


def make_critic_config(args: Args, checkpoint: TrainingCheckpoint) -> CriticConfig:
    """Describe the checkpoint's critic, or the new one."""
    if args.load_critic and "critic" in checkpoint.module_configs:
        return CriticConfig.from_dict(checkpoint.module_configs["critic"])
    return CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)


def make_loss(args: Args, actor: FlowActor, critic_config: CriticConfig) -> AWFlowLoss:
    """Build the loss around the policy and a new critic."""
    build: Any = AWFlowLoss.published if args.preset == "published" else AWFlowLoss
    options = {**args.loss_options(), "filter_policy_data": args.filter_policy_data}
    return build(actor, make_critic(critic_config, actor), **options)


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
            every=args.actor_every,
            warmup=args.critic_warmup,
            max_grad_norm=1.0,
            target_updater=averages,
        ),
    ]
    return NamedLossStepper(loss_module, groups, utd_ratio=args.utd_ratio)


def make_buffer(args: Args, source: DemoSource, task: dict[str, Any], actor: FlowActor) -> MixedReplayBuffer:
    """Read the demonstrations and put an empty ring for online chunks beside them."""
    horizons: dict[str, Any] = {name: getattr(actor, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    # After the last step of a demonstration the policy shall hold still, so that padding is a target too.
    demos = source.load(task, padding="hold", mask_padding=False, gamma=args.gamma, **horizons)
    return MixedReplayBuffer(
        demos,
        # Whole rollouts, of which the last one may pass the number of chunks.
        online=min(
            args.buffer_size,
            args.chunks + (args.num_envs or PLANAR_ENVS) * args.collectors * (args.chunks_per_batch or 8),
        ),
        online_ratio=args.online_ratio,
        batch_size=args.batch_size,
        device=args.device,
    )


def simulation_of(args: Args, checkpoint: TrainingCheckpoint) -> dict[str, Any]:
    """Return number and simulation of the environments to collect in, the number None for one that is not batched."""
    task, obs_mode = checkpoint.task["task"], checkpoint.task.get("obs_mode")
    given: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    return training_env_options(task, planar_envs=PLANAR_ENVS, obs_mode=obs_mode, **given)


def make_policy_rollouts(
    args: Args, env: EnvBase | CollectorEnvs, loss_module: AWFlowLoss
) -> ChunkRollouts | CollectorRollouts:
    """Let the policy that is being trained act, in episodes that end with success."""
    policy: Any = loss_module.actor_network
    if args.act_best_of > 1:
        policy = BestOfN(policy, loss_module.critic_network, num_samples=args.act_best_of)
    elif args.act_noise_scale != 1:
        noise: Any = ScaledNoise(policy, args.act_noise_scale)
        policy = TensorDictSequential(noise, policy)
        policy.select_out_keys(*loss_module.actor_network.out_keys)
    # One step of this environment is a whole chunk.
    num_steps = args.chunks_per_batch or (1 if env.batch_size else 8)
    return make_rollouts(env, policy, num_steps, seed=args.seed, policy_device=args.device)


def train(
    args: Args,
    run: Run,
    buffer: MixedReplayBuffer,
    loss_module: AWFlowLoss,
    stepper: NamedLossStepper,
    rollouts: ChunkRollouts | CollectorRollouts,
    eval_env: EnvBase,
) -> None:
    """Collect and train in turn; all of the loop is here."""
    modules = {"policy": loss_module.actor_network, "ema_policy": loss_module.ema_actor}
    modules |= {"critic": loss_module.critic_network, "target_critic": loss_module.target_critic}
    if loss_module.reference_actor is not None:
        modules["reference_policy"] = loss_module.reference_actor
    run.track(modules=modules, state={"stepper": stepper, "buffer": buffer, "rollouts": rollouts})
    for step in run.steps(math.ceil(args.chunks / rollouts.chunks), save_every=args.save_every):
        data = rollouts.collect()
        buffer.extend(multi_chunk_transitions(data, args.return_chunks, gamma=loss_module.gamma))
        following: Any = data["next"]
        run.counters["env_steps"] = run.counters.get("env_steps", 0) + int(following["steps_to_next_obs"].sum())
        metrics: dict[str, Any] = {"env_steps": run.counters["env_steps"], "wall_s": run.wall_s}
        for _ in range(stepper.updates_due(buffer.write_count)):
            metrics |= stepper.update(buffer.sample())
        metrics |= finished_success(data)
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            result = evaluate(eval_env, loss_module.ema_actor(), range(20_000, 20_050), progress=False)
            run.log_evaluation(result.metrics())
    rollouts.close()


def main(args: Args) -> EvaluationResult:
    """Policy, critic, demonstrations, training, evaluation, report."""
    args.prepare()
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    simulation_of(args, checkpoint)
    actor = make_actor(args, checkpoint)
    asked = {name: getattr(args, name) for name in ("task", "control_mode", "max_episode_steps")}
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend, "gamma": args.gamma}
    simulation |= {"planar_envs": PLANAR_ENVS, "episodes": args.eval_episodes, "collectors": args.collectors}
    train_env, env = make_training_envs(checkpoint, **simulation, **asked)
    task = task_info(env)
    source = DemoSource.of_checkpoint(checkpoint, args.demos)
    buffer = make_buffer(args, source, task, actor)
    critic_config = make_critic_config(args, checkpoint)
    with args.open_run(
        f"awsc-{task['task']}-{task['obs_mode']}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=actor.config,
        module_configs={"critic": critic_config},
        keep_best="eval/success_once",
    ) as run:
        loss_module = make_loss(args, actor, critic_config)
        stepper = make_stepper(args, loss_module)
        warm_start(loss_module, checkpoint, critic=args.load_critic)
        rollouts = make_policy_rollouts(args, train_env, loss_module)
        train(args, run, buffer, loss_module, stepper, rollouts, env)
        policy = loss_module.ema_actor()
        variants = best_of_variants(policy, loss_module.target_critic(), args.best_of)
        notes = [f"{buffer.num_demo_rows} demonstration and {buffer.num_online_rows} online chunks."]
        shown: dict[str, Any] = {"variants": variants, "notes": notes}
        result, report = conclude_run(run, policy, env, recipe=args.recipe, stage="3", **shown)
    print(result.summary(), report.resolve(), sep="\n")
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
