"""Improve a flow policy online with demonstrations in every batch: AWSC, stage 3.

    python examples/awsc_online.py --policy runs/aw_shortcut_flow-planar-state-0

Starts from a checkpoint of `aw_shortcut_flow_offline.py`: policy, average, critic and target critic. Half of every
batch are demonstrations and half are chunks that the policy executed (RLPD). The critic learns from all rows, the
policy from the demonstrations and from its own chunks with a positive advantage. Takes about 5 minutes on one CPU core
on the planar task; for its score see docs/results.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torchrl.envs import EnvBase

from torchrl_flow.data import MixedReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import CollectorEnvs, task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, validation_seeds
from torchrl_flow.modules import CriticConfig, FlowActor
from torchrl_flow.objectives import AWFlowLoss
from torchrl_flow.options import CollectorArgs, OnlineAdvantageWeightArgs, parse_options, refusals_in_one_line
from torchrl_flow.policies import (
    aw_flow_modules,
    collecting_policy,
    critic_config,
    load_flow_checkpoint,
    make_aw_flow_actor,
    make_aw_flow_loss,
    make_aw_flow_stepper,
    make_training_envs,
    policy_demonstrations,
    warm_start,
)
from torchrl_flow.reports import best_of_variants, conclude_run
from torchrl_flow.runs import Run, TrainingCheckpoint
from torchrl_flow.training import (
    ChunkRollouts,
    CollectorRollouts,
    NamedLossStepper,
    RayLearners,
    RayRollouts,
    finished_success,
    make_rollouts,
    multi_chunk_transitions,
)

PLANAR_ENVS = 64


@dataclasses.dataclass(kw_only=True)
class Args(OnlineAdvantageWeightArgs, CollectorArgs):
    """Options of the recipe."""


@dataclasses.dataclass
class Stage:
    """Inputs of the stage: policy, demonstrations, and environments for training and evaluation."""

    checkpoint: TrainingCheckpoint
    actor: FlowActor
    critic: CriticConfig
    source: DemoSource
    buffer: MixedReplayBuffer
    train_env: EnvBase | CollectorEnvs
    eval_env: EnvBase

    def run_options(self, seed: int) -> dict[str, Any]:
        """Return name and description of the run, for ``args.open_run``."""
        task = task_info(self.eval_env)
        name = {"default_name": f"awsc-{task['task']}-{task['obs_mode']}-{seed}", "task": task}
        parts = {"actor_config": self.actor.config, "module_configs": {"critic": self.critic}}
        return {**name, **parts, "config": {"demonstrations": dataclasses.asdict(self.source)}}


def start_stage(args: OnlineAdvantageWeightArgs, *, processes: int = 1, **collecting: Any) -> Stage:
    """Load the policy, read the demonstrations, and make the environments in one or several processes."""
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    actor = make_aw_flow_actor(checkpoint, args.wanted_horizons(), extraction=args.extraction, device=args.device)
    asked = {name: getattr(args, name) for name in ("task", "control_mode", "max_episode_steps")}
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend, "gamma": args.gamma}
    simulation |= {"planar_envs": PLANAR_ENVS, "episodes": args.eval_episodes}
    envs = make_training_envs(checkpoint, **simulation, **asked, **collecting)
    source = DemoSource.of_checkpoint(checkpoint, args.demos)
    found = critic_config(checkpoint) if args.load_critic else None
    critic = found or CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)
    buffer = make_buffer(args, checkpoint, source, processes, env=envs[1])
    return Stage(checkpoint, actor, critic, source, buffer, *envs)


def make_buffer(
    args: OnlineAdvantageWeightArgs,
    checkpoint: TrainingCheckpoint,
    source: DemoSource,
    processes: int = 1,
    *,
    env: EnvBase | None = None,
) -> MixedReplayBuffer:
    """Make a replay buffer of the demonstrations and an empty ring for online chunks."""
    gamma: Any = args.gamma
    # Chunks of a task without success have no such entry, but demonstrations have it.
    has_success = env is None or "success" in env.full_observation_spec.keys(True, True)
    rollout = (args.num_envs or PLANAR_ENVS) * processes * (args.chunks_per_batch or 8)
    return MixedReplayBuffer(
        policy_demonstrations(checkpoint, source, gamma=gamma),
        # Whole rollouts; the last one may exceed the number of chunks.
        online=min(args.buffer_size, args.chunks + rollout),
        online_ratio=args.online_ratio,
        batch_size=args.batch_size,
        device=args.device,
        exclude_keys=[] if has_success else [("next", "success")],
    )


def make_learner(args: OnlineAdvantageWeightArgs, stage: Stage) -> tuple[AWFlowLoss, NamedLossStepper]:
    """Build loss and updates, with the weights of the policy that the stage starts from."""
    options = {**args.loss_options(), "filter_policy_data": args.filter_policy_data}
    loss_module = make_aw_flow_loss(stage.actor, stage.critic, preset=args.preset, **options)
    updates: dict[str, Any] = {**args.update_options(), "compute": args.compute(loss_module)}
    stepper = make_aw_flow_stepper(loss_module, **args.stepper_options(), **updates)
    warm_start(loss_module, stage.checkpoint, critic=args.load_critic)
    return loss_module, stepper


def make_chunk_rollouts(
    args: OnlineAdvantageWeightArgs, stage: Stage, loss_module: AWFlowLoss, **options: Any
) -> ChunkRollouts | CollectorRollouts | RayRollouts:
    """Make the rollouts of the collecting policy."""
    acting = collecting_policy(loss_module, best_of=args.act_best_of, noise_scale=args.act_noise_scale)
    # One step of this environment executes a whole chunk.
    chunks = args.chunks_per_batch or (1 if stage.train_env.batch_size else 8)
    return make_rollouts(stage.train_env, acting, chunks, seed=args.seed, policy_device=args.device, **options)


def train(
    args: OnlineAdvantageWeightArgs,
    run: Run,
    buffer: MixedReplayBuffer,
    loss_module: AWFlowLoss,
    stepper: NamedLossStepper | RayLearners,
    rollouts: ChunkRollouts | CollectorRollouts | RayRollouts,
    eval_env: EnvBase,
) -> None:
    """Run the loop of collection and training."""
    parts = {"stepper": stepper, "buffer": buffer, "rollouts": rollouts}
    run.track(modules=aw_flow_modules(loss_module), state=parts)
    for step in run.steps(math.ceil(args.chunks / rollouts.chunks), save_every=args.save_every):
        data = rollouts.collect()
        buffer.extend(multi_chunk_transitions(data, args.return_chunks, gamma=loss_module.gamma))
        metrics = run.count_env_steps(data)
        for _ in range(stepper.updates_due(buffer.write_count)):
            metrics |= stepper.update(buffer.sample())
        metrics |= finished_success(data) | rollouts.metrics()
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            average = loss_module.ema_actor()
            run.log_evaluation(evaluate(eval_env, average, validation_seeds(50), progress=False).metrics())
    rollouts.close()


def conclude(args: OnlineAdvantageWeightArgs, run: Run, stage: Stage, loss_module: AWFlowLoss) -> EvaluationResult:
    """Evaluate the averaged policy, and write the report."""
    policy, buffer = loss_module.ema_actor(), stage.buffer
    variants = best_of_variants(policy, loss_module.target_critic(), args.best_of)
    notes = [f"{buffer.num_demo_rows} demonstration and {buffer.num_online_rows} online chunks."]
    labels: dict[str, Any] = {"recipe": args.recipe, "stage": "3", "notes": notes}
    result, report = conclude_run(run, policy, stage.eval_env, variants=variants, **labels)
    print(result.summary(), report.resolve(), sep="\n")
    return result


def main(args: Args) -> EvaluationResult:
    """Load policy, critic and demonstrations, train, evaluate, and write the report."""
    args.prepare()
    collecting: dict[str, Any] = {"collectors": args.collectors, "collector_sync": args.collector_sync}
    stage = start_stage(args, processes=args.collectors, **collecting)
    with args.open_run(**stage.run_options(args.seed), keep_best="eval/success_once") as run:
        loss_module, stepper = make_learner(args, stage)
        rollouts = make_chunk_rollouts(args, stage, loss_module)
        train(args, run, stage.buffer, loss_module, stepper, rollouts, stage.eval_env)
        return conclude(args, run, stage, loss_module)


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
