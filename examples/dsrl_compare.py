"""Evaluate a flow policy before and after each stage of steering, on equal seeds, with a table and a plot.

    python examples/dsrl_compare.py --run runs/dsrl_ppo-planar-0
    python examples/dsrl_compare.py --run runs/dsrl_na-planar-0 --stage1 runs/dsrl_sac_offline-planar-0

evaluates runs of dsrl_ppo.py, dsrl_sac_online.py, dsrl_offline.py and dsrl_sac_offline.py. The prior is the run's
frozen flow with noise from N(0, I), at the sampling steps of the last stage. Every stage is evaluated on the same
episodes with the same noise. If a run holds critics of latents, the table also lists their mean values of the prior's
and the policy's latents on fixed observations. Table, plot and report are written into the run's directory; the path of
the report is printed last.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_flow.data import module_digest
from torchrl_flow.evaluation import evaluation_seeds
from torchrl_flow.modules import CriticConfig, FlowActor, SteeredFlowActor, make_latent_critics, write_features
from torchrl_flow.objectives import LatentSACLoss
from torchrl_flow.options import (
    Count,
    NonNegativeInt,
    RunSource,
    WritableDirectory,
    WritableFile,
    check_options,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import latent_value_gap, load_acting_policy, policy_evaluation_env, policy_kind, run_labels
from torchrl_flow.reports import compare_stages
from torchrl_flow.runs import TrainingCheckpoint, Which


@dataclasses.dataclass
class Args:
    """Options of the command."""

    run: RunSource
    """run directory or checkpoint of the last stage"""
    which: Which = "last"
    """checkpoint of --run to evaluate: last or best"""
    stage1: RunSource | None = None
    """run directory or checkpoint of stage 1; by default the --init of the stage 2 run"""
    recipe: str | None = None
    """name of the recipe in the table of results; by default the recipe of the run"""
    output: WritableDirectory | None = None
    """directory of table, plot and report; by default the directory of the run"""
    results: WritableFile | None = None
    """table of results to which the rows are appended"""
    eval_episodes: Count = 100
    """episodes of each stage, from seed 10000 on"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension; by default 50 of the planar task and one
    of ManiSkill"""
    sim_backend: str | None = None
    """ManiSkill's simulation; by default physx_cuda for several environments if there is a CUDA device, else
    physx_cpu"""
    threads: Count = 1
    """CPU threads"""


def is_offline(checkpoint: TrainingCheckpoint) -> bool:
    """Return whether a checkpoint is of stage 1, which uses no environment steps."""
    return "env_steps" not in checkpoint.counters


def value_gap(
    checkpoint: TrainingCheckpoint, actor: SteeredFlowActor, observations: TensorDictBase
) -> dict[str, float]:
    """Return the mean values of the prior's and the policy's latents, if there are critics of latents."""
    if "sac" not in checkpoint.roles:
        return {}
    own: dict[str, Any] = {"on_features": actor.reads_features}
    config = CriticConfig(checkpoint.config["num_qs"], tuple(checkpoint.config["hidden_sizes"]), **own)
    loss = LatentSACLoss(actor.policy, make_latent_critics(config, actor.flow, actor.policy))
    checkpoint.restore(modules={"sac": loss})
    seen = write_features(actor.flow, observations.copy()) if actor.reads_features else observations
    return latent_value_gap(loss.mean_value, actor.policy, seen)


def load_steered(source: str, which: Which) -> tuple[SteeredFlowActor, TrainingCheckpoint]:
    """Load the policy that a run trained, which must be a steered flow.

    Raises:
        SystemExit: if the run trained another type of policy.
    """
    actor, checkpoint = load_acting_policy(source, which=which)
    if not isinstance(actor, SteeredFlowActor):
        kind = policy_kind(checkpoint).name
        raise SystemExit(f"{checkpoint.path} holds a {kind}: name a run of examples/dsrl_*.py, which steers a flow.")
    return actor, checkpoint


def main(args: Args) -> None:
    """Load the stages, evaluate them on equal seeds, write table, plot and report."""
    check_options(args)
    torch.set_num_threads(args.threads)
    last, checkpoint = load_steered(args.run, args.which)
    found = {"1" if is_offline(checkpoint) else "2": (last, checkpoint)}
    first = args.stage1 or (None if is_offline(checkpoint) else checkpoint.config.get("init"))
    if first is not None:
        # Stage 1, with the checkpoint from which the run started.
        found = {"1": load_steered(first, checkpoint.config.get("which", "last")), **found}
        if module_digest(found["1"][0].flow) != module_digest(last.flow):
            raise SystemExit(f"{first} steers another flow than {args.run}: its weights differ.")
    simulation: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    env = policy_evaluation_env(checkpoint, episodes=args.eval_episodes, gamma=checkpoint.config["gamma"], **simulation)
    torch.manual_seed(0)
    with torch.no_grad():
        observations = env.rollout(8, last.flow, break_when_any_done=False).reshape(-1)
    stages: dict[str, FlowActor | SteeredFlowActor] = {"prior": last.flow}
    stages |= {name: actor for name, (actor, _) in found.items()}
    output = Path(args.output) if args.output else checkpoint.run_directory
    results = compare_stages(
        output,
        stages,
        env,
        evaluation_seeds(args.eval_episodes),
        task=checkpoint.task,
        recipe=args.recipe or run_labels(checkpoint).recipe,
        seed=checkpoint.config["seed"],
        diagnostics={name: value_gap(source, actor, observations) for name, (actor, source) in found.items()},
        results=args.results,
        env_steps={name: source.counters.get("env_steps", 0) for name, (_, source) in found.items()},
        wall_s={name: source.metadata.get("wall_s", 0.0) for name, (_, source) in found.items()},
    )
    for name, result in results.items():
        print(f"{name}: {result.summary()}")
    print((output / "stages.html").resolve())


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
