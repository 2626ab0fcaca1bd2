"""Clone demonstrations weighted by a critic's advantages: advantage-weighted ShortCut flow, stage 2 of AWSC.

    python examples/aw_shortcut_flow_offline.py --policy runs/shortcut_flow_bc-planar-state-0

Starts from the policy of `shortcut_flow_bc.py` and its demonstrations, which should be of mixed quality (--quality
mixed there): a critic of action chunks is trained on them, and the policy gives higher weight to chunks with a higher
advantage. Takes about 2 minutes on one CPU core on the planar task; for its score see docs/results.md.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from torchrl.envs import EnvBase

from torchrl_flow.data import DemoReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, validation_seeds
from torchrl_flow.modules import CriticConfig
from torchrl_flow.objectives import AWFlowLoss
from torchrl_flow.options import (
    AdvantageWeightArgs,
    Count,
    NonNegativeInt,
    NotAbove,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import (
    aw_flow_modules,
    load_flow_checkpoint,
    make_aw_flow_actor,
    make_aw_flow_loss,
    make_aw_flow_stepper,
    policy_demonstrations,
    policy_evaluation_env,
    warm_start,
)
from torchrl_flow.reports import best_of_variants, conclude_run
from torchrl_flow.runs import Run
from torchrl_flow.training import NamedLossStepper


@dataclasses.dataclass(kw_only=True)
class Args(AdvantageWeightArgs):
    """Options of the recipe."""

    iterations: Count = 1000
    """gradient steps of actor and critic"""
    critic_warmup: NonNegativeInt = 3000
    """gradient steps of the critic only, before those of actor and critic"""
    num_min_qs: Annotated[Count, NotAbove("num_qs")] = 2
    eval_every: NonNegativeInt = 1000
    log_every: Count = 50
    save_every: Count = 500


def train(
    args: Args,
    run: Run,
    data: DemoReplayBuffer,
    loss_module: AWFlowLoss,
    stepper: NamedLossStepper,
    env: EnvBase,
) -> None:
    """Train critic and policy in the training loop."""
    run.track(modules=aw_flow_modules(loss_module), state={"stepper": stepper})
    for step in run.steps(args.critic_warmup + args.iterations, save_every=args.save_every):
        metrics = stepper.update(data.sample())
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            result = evaluate(env, loss_module.ema_actor(), validation_seeds(50), progress=False)
            run.log_evaluation(result.metrics())


def main(args: Args) -> EvaluationResult:
    """Load policy and demonstrations, train, evaluate, and write the report."""
    args.prepare()
    checkpoint = load_flow_checkpoint(args.policy, which=args.which)
    actor = make_aw_flow_actor(checkpoint, args.wanted_horizons(), extraction=args.extraction, device=args.device)
    asked = {name: getattr(args, name) for name in ("task", "control_mode", "max_episode_steps")}
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    env = policy_evaluation_env(checkpoint, episodes=args.eval_episodes, **simulation, **asked)
    task = task_info(env)
    source = DemoSource.of_checkpoint(checkpoint, args.demos)
    sampling: dict[str, Any] = {"gamma": args.gamma, "batch_size": args.batch_size, "device": args.device}
    data = policy_demonstrations(checkpoint, source, **sampling)
    critic_config = CriticConfig(num_qs=args.num_qs, hidden_sizes=args.critic_hidden)
    with args.open_run(
        f"aw_shortcut_flow-{task.task}-{task.obs_mode}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=actor.config,
        module_configs={"critic": critic_config},
        keep_best="eval/success_once",
    ) as run:
        loss_module = make_aw_flow_loss(actor, critic_config, preset=args.preset, **args.loss_options())
        updates: dict[str, Any] = {"critic_warmup": args.critic_warmup, "compute": args.compute(loss_module)}
        stepper = make_aw_flow_stepper(loss_module, **args.stepper_options(), **updates)
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
