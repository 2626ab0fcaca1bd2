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

from torchrl.envs import EnvBase

from torchrl_flow.data import MixedReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, validation_seeds
from torchrl_flow.modules import CriticConfig
from torchrl_flow.objectives import AWFlowLoss
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
    """environments that run side by side, 0 for one without batch dimension; by default 64 of the planar task and one
    of ManiSkill"""
    collectors: Count = 1
    """processes that collect, with --num-envs environments each, on the CPU; 1 collects in this process. With more, a
    run continued with --resume starts new episodes, and is not equal to the bit to a run without a stop"""
    chunks_per_batch: Count | None = None
    """chunks that each environment executes between updates; by default 8 of one environment, one of several"""
    return_chunks: Count = 1
    """number of executed chunks whose rewards a target of the critic sums before it bootstraps; at most
    --chunks-per-batch"""
    utd_ratio: Positive = 1.0
    """updates of the critic per executed chunk"""
    actor_every: Count = 2
    """updates of the critic per update of the policy"""
    critic_warmup: NonNegativeInt = 0
    """updates of the critic before the first update of the policy; a new critic needs a few hundred"""
    online_ratio: Fraction = 0.5
    """share of online chunks in a batch"""
    filter_policy_data: bool = True
    """train the policy only on demonstrations and on online chunks with a positive advantage"""
    buffer_size: Count = 100_000
    """capacity for online chunks"""
    act_best_of: Count = 1
    """candidates of the policy that collects data, of which it executes the one with the highest value"""
    act_noise_scale: NonNegative = 1.0
    """standard deviation of the flow noise while the policy collects data; below 1, the policy explores less"""
    eval_every: NonNegativeInt = 50
    log_every: Count = 1
    save_every: Count = 50

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect."""
        super().check()
        if self.act_best_of > 1 and self.act_noise_scale != 1:
            raise SystemExit("Give --act-best-of or --act-noise-scale, not both: a policy collects in one way.")
        if self.return_chunks > (self.chunks_per_batch or 1):
            raise SystemExit(
                f"--return-chunks {self.return_chunks} needs rollouts of as many chunks: give --chunks-per-batch "
                f"{self.return_chunks} or more."
            )
        if self.utd_ratio * self.chunks < 1:
            raise SystemExit(f"--utd-ratio {self.utd_ratio} of --chunks {self.chunks} makes no update: raise one.")


def make_buffer(args: Args, checkpoint: TrainingCheckpoint, source: DemoSource) -> MixedReplayBuffer:
    """Read the demonstrations and put an empty ring for online chunks beside them."""
    gamma: Any = args.gamma
    rollout = (args.num_envs or PLANAR_ENVS) * args.collectors * (args.chunks_per_batch or 8)
    return MixedReplayBuffer(
        policy_demonstrations(checkpoint, source, gamma=gamma),
        # Whole rollouts, of which the last one may pass the number of chunks.
        online=min(args.buffer_size, args.chunks + rollout),
        online_ratio=args.online_ratio,
        batch_size=args.batch_size,
        device=args.device,
    )


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
    parts = {"stepper": stepper, "buffer": buffer, "rollouts": rollouts}
    run.track(modules=aw_flow_modules(loss_module), state=parts)
    for step in run.steps(math.ceil(args.chunks / rollouts.chunks), save_every=args.save_every):
        data = rollouts.collect()
        buffer.extend(multi_chunk_transitions(data, args.return_chunks, gamma=loss_module.gamma))
        metrics = run.count_env_steps(data)
        for _ in range(stepper.updates_due(buffer.write_count)):
            metrics |= stepper.update(buffer.sample())
        metrics |= finished_success(data)
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            average = loss_module.ema_actor()
            run.log_evaluation(evaluate(eval_env, average, validation_seeds(50), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> EvaluationResult:
    """Policy, critic, demonstrations, training, evaluation, report."""
    args.prepare()
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    actor = make_aw_flow_actor(checkpoint, args.wanted_horizons(), extraction=args.extraction, device=args.device)
    asked = {name: getattr(args, name) for name in ("task", "control_mode", "max_episode_steps")}
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend, "gamma": args.gamma}
    simulation |= {"planar_envs": PLANAR_ENVS, "episodes": args.eval_episodes, "collectors": args.collectors}
    train_env, env = make_training_envs(checkpoint, **simulation, **asked)
    task = task_info(env)
    source = DemoSource.of_checkpoint(checkpoint, args.demos)
    buffer = make_buffer(args, checkpoint, source)
    found = critic_config(checkpoint) if args.load_critic else None
    critic = found or CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)
    with args.open_run(
        f"awsc-{task.task}-{task.obs_mode}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=actor.config,
        module_configs={"critic": critic},
        keep_best="eval/success_once",
    ) as run:
        options = {**args.loss_options(), "filter_policy_data": args.filter_policy_data}
        loss_module = make_aw_flow_loss(actor, critic, preset=args.preset, **options)
        updates = {name: getattr(args, name) for name in ("actor_every", "critic_warmup", "utd_ratio")}
        stepper = make_aw_flow_stepper(loss_module, **args.stepper_options(), **updates)
        warm_start(loss_module, checkpoint, critic=args.load_critic)
        acting = collecting_policy(loss_module, best_of=args.act_best_of, noise_scale=args.act_noise_scale)
        # One step of this environment is a whole chunk.
        chunks = args.chunks_per_batch or (1 if train_env.batch_size else 8)
        rollouts = make_rollouts(train_env, acting, chunks, seed=args.seed, policy_device=args.device)
        train(args, run, buffer, loss_module, stepper, rollouts, env)
        policy = loss_module.ema_actor()
        variants = best_of_variants(policy, loss_module.target_critic(), args.best_of)
        notes = [f"{buffer.num_demo_rows} demonstration and {buffer.num_online_rows} online chunks."]
        labels: dict[str, Any] = {"recipe": args.recipe, "stage": "3", "notes": notes}
        result, report = conclude_run(run, policy, env, variants=variants, **labels)
    print(result.summary(), report.resolve(), sep="\n")
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
