"""Improve a flow policy in rounds of collection and cloning of successful episodes: AWSC with episode returns.

    python examples/awsc_rounds.py --policy runs/shortcut_flow_bc-planar-state-0

In each round the policy plays episodes. Successful episodes are kept, up to the success, and the policy trains on all
kept episodes: binary advantage weights with the return of the whole episode instead of a critic's value. Chunks are cut
from the executed actions. Use this if the policy solves some episodes and a critic does not rank chunks well, as on
robots with sparse rewards. Takes about 6 minutes for a round of PickCube-v1 on one CPU core. --resume continues a run.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_flow.data import DemoReplayBuffer, DemoStore
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, record_episodes, successful_part
from torchrl_flow.evaluation.seeds import TRAINING_SEED, validation_seeds
from torchrl_flow.modules import FlowActor, FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import ShortCutFlowLoss
from torchrl_flow.options import (
    Count,
    Decay,
    NonNegative,
    NonNegativeInt,
    PolicyArgs,
    Positive,
    SimulationArgs,
    TrainingArgs,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, policy_evaluation_env, warm_start
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run
from torchrl_flow.runs.fields import AFTER_TRAINING, BOOKKEEPING
from torchrl_flow.training import gradient_step, warmup_cosine


@dataclasses.dataclass(kw_only=True)
class Args(TrainingArgs, SimulationArgs, PolicyArgs):
    """Options of the recipe."""

    rounds: Count = 3
    """number of rounds, each of which plays episodes and clones"""
    episodes: Count = 1000
    """episodes that the policy plays in a round"""
    iterations: Count = 6000
    """gradient steps of a round"""
    anew: bool = False
    """start each round from new weights, not from those of the previous round; clones of new weights were worse"""
    hold: NonNegativeInt = 15
    """steps to keep after a success that lasts to the end of its episode, so that the policy learns to stay there"""
    noise_scale: NonNegative = 1.0
    """standard deviation of the flow noise while the policy plays; below 1, it explores less"""
    tied_noise: bool = False
    """use the same flow noise for all steps of a chunk while the policy plays, so that it explores more"""
    batch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 1e-3
    """learning rate at its peak in each round; warm-up of 200 steps, then a cosine"""
    weight_decay: NonNegative = 1e-4
    """weight decay of AdamW"""
    ema: Decay = 0.999
    """decay of the averaged policy, which plays"""
    eval_every: NonNegativeInt = 1
    """1: evaluate on 100 other episodes after each round; 0 for no evaluation in training"""
    save_every: Count = 1000

    def check(self) -> None:
        """Refuse options that contradict each other."""
        super().check()
        if self.episodes >= TRAINING_SEED:
            raise SystemExit(f"--episodes must be below {TRAINING_SEED}, got {self.episodes}: give more --rounds.")


class Learner:
    """Loss, optimiser and average of the cloned flow."""

    def __init__(self, args: Args, config: FlowActorConfig, start: FlowActor | None = None, **box: Any) -> None:
        self.config, actor = config, make_flow_actor(config, **box).to(args.device)
        if start is not None:
            actor.load_state_dict(start.state_dict())
        self.loss = ShortCutFlowLoss(actor)
        self.compute, self.average = args.compiled(self.loss), SoftUpdate(self.loss, eps=args.ema)
        parameters = self.loss.parameters()
        self.adamw = torch.optim.AdamW(parameters, args.lr, (0.9, 0.99), weight_decay=args.weight_decay, fused=True)

    def track(self, run: Run) -> None:
        """Register the parts of the checkpoints."""
        modules = {"policy": self.loss.actor_network, "ema_policy": self.loss.ema_actor}
        run.track(modules=modules, optimizers={"adamw": self.adamw})

    def update(self, args: Args, data: DemoReplayBuffer, step: int) -> dict[str, Any]:
        """Do the gradient step with the given number in its round."""
        self.adamw.param_groups[0]["lr"] = warmup_cosine(args.lr, step, args.iterations)
        batch = data.sample()
        losses = self.compute(batch)
        total, adamw = {"loss_flow": losses["loss_flow"]}, {"adamw": self.adamw}
        norms = gradient_step(total, adamw, step=step, batch=batch, max_grad_norm=1.0)
        self.average.eps = min(args.ema, (1 + step) / (10 + step))
        self.average.step()
        return {**losses, "gradient_norm": norms["gradient_norm_adamw"]}


def play(args: Args, run: Run, env: EnvBase, actor: FlowActor, number: int) -> DemoStore:
    """Play the episodes of a round; return the kept episodes of this and earlier rounds."""
    root = run.directory / "rounds" / str(number)
    if root.exists():
        return DemoStore.open(root)
    before = DemoStore.open(root.with_name(str(number - 1))) if number > 1 else None
    counted = {"env_steps": 0 if before is None else before.metadata["env_steps"], "solved": 0}
    kept = []
    first = TRAINING_SEED * number
    noise: dict[str, Any] = {"noise_scale": args.noise_scale, "tied_noise": args.tied_noise}
    for episode in record_episodes(env, actor, range(first, first + args.episodes), **noise):
        counted["env_steps"] += len(episode)
        part = successful_part(episode, args.hold)
        if part is not None:
            kept.append(part)
    if not kept and before is None:
        raise SystemExit(f"none of {args.episodes} episodes solves the task: start from a policy that solves some.")
    counted["solved"] = len(kept)
    episodes = itertools.chain(before or [], kept)
    root.parent.mkdir(exist_ok=True)
    return DemoStore.from_episodes(episodes, root, task_info=task_info(env), metadata=counted)


def chunks_of(args: Args, run: Run, store: DemoStore, actor: FlowActor) -> DemoReplayBuffer:
    """Cut the kept episodes into chunks."""
    horizons: dict[str, Any] = {name: getattr(actor, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    options: dict[str, Any] = {"batch_size": args.batch_size, "next_obs": False, "device": args.device, **horizons}
    source = DemoSource(path=str(store.root), num_demos=None)
    return source.load(run.task, uses_rewards=False, padding="hold", mask_padding=False, **options)


def train(args: Args, run: Run, learner: Learner, env: EnvBase) -> Learner:
    """Run the loop of collection and cloning."""
    actor, data, store = learner.loss.ema_actor(), None, None
    box: dict[str, Any] = {"action_low": actor.action_low, "action_high": actor.action_high}
    for step in run.steps(args.rounds * args.iterations, save_every=args.save_every):
        number, within = divmod(step - 1, args.iterations)
        if data is None or store is None or within == 0:
            store = play(args, run, env, learner.loss.ema_actor(), number + 1)
            run.counters["env_steps"] = store.metadata["env_steps"]
            data = chunks_of(args, run, store, actor)
        if within == 0:
            start = learner.loss.ema_actor()
            made: dict[str, Any] = {"statistics": data.statistics()} if args.anew else {"start": start}
            learner = Learner(args, learner.config, **box, **made)
            learner.track(run)
        metrics = learner.update(args, data, within + 1)
        if run.due(args.log_every):
            solved = store.metadata["solved"] / args.episodes
            metrics |= {"env_steps": run.counters["env_steps"], "wall_s": run.wall_s, "success": solved}
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if within + 1 == args.iterations and args.eval_every:
            result = evaluate(env, learner.loss.ema_actor(), validation_seeds(100), progress=False)
            run.log_evaluation(result.metrics())
    return learner


def main(args: Args) -> EvaluationResult:
    """Load the policy, run the rounds, evaluate, and write the report."""
    args.prepare()
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    simulation |= {"max_episode_steps": args.max_episode_steps, "episodes": args.eval_episodes}
    env = policy_evaluation_env(checkpoint, record_steps=True, **simulation)
    task = task_info(env)
    learner = Learner(args, FlowActorConfig.from_dict(checkpoint.actor_config))
    with args.open_run(
        f"awsc_rounds-{task.task}-{task.obs_mode}-{args.seed}",
        task=task,
        # The demonstrations of the policy, for later stages.
        config={"demonstrations": checkpoint.config.get("demonstrations")},
        actor_config=learner.config,
        keep_best="eval/success_once",
        may_differ={*AFTER_TRAINING, *BOOKKEEPING, "rounds"},
    ) as run:
        warm_start(learner.loss, checkpoint)
        learner.track(run)
        learner = train(args, run, learner, env)
        store = DemoStore.open(run.directory / "rounds" / str(args.rounds))
        notes = [f"{store.num_episodes} of {args.rounds * args.episodes} episodes kept, {len(store)} steps."]
        result, report = conclude_run(run, learner.loss.ema_actor(), env, recipe="awsc_rounds", notes=notes)
    print(result.summary(), report.resolve(), sep="\n")
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
