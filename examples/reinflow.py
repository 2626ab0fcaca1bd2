r"""Fine-tune a flow policy with PPO over its denoising chain (ReinFlow), with noise in every sampling step.

    python examples/shortcut_flow_bc.py --task PickCube-v1 --quality mixed --act-horizon 4 --iterations 5000 --name bc
    python examples/reinflow.py --policy runs/bc

The defaults are for a ManiSkill task with state observations and 64 environments in one CPU process. The planar task
takes about 3 minutes on one CPU core, with more environments and larger steps:

    python examples/shortcut_flow_bc.py --task planar --num-demos 100 --iterations 1500 --width 128 --depth 2 \
        --pred-horizon 8 --name bc
    python examples/reinflow.py --policy runs/bc --rollout-steps 13 --minibatch-size 832 --epochs 2 --lr 2e-4 \
        --total-env-steps 2000000 --noise-decay-steps 4000000 --critic-warmup-steps 100000

The bound --clip is small because the log-probability is averaged over the K H A terms of the chain: 0.01 on the ratio
is about 1 on the chain's log-probability. With 0.2 it is about 20, which is no effective bound, and the policy fails
within ten iterations.

Starts from any checkpoint with a flow policy and writes one with the fine-tuned flow, without its noise, in the role
`policy`. The checkpoint with the best evaluation is kept in addition to the last, and later stages start from it
(--which). With images and a frozen encoder, rollouts store its features, not pixels. At the end the policy is evaluated
over fixed seeds, and the path of the report is printed. --resume continues a stopped run, bit-identically if the
environment can save its state, and with more --total-env-steps extends a finished one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch
from tensordict import TensorDictBase
from torch.optim import Optimizer
from torchrl.envs import EnvBase

from torchrl_flow.envs import PLANAR, CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate, validation_seeds
from torchrl_flow.modules import (
    FlowActor,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValue,
    StateValueConfig,
    flow_on_features,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.objectives import ReinFlowPPOLoss, make_chunk_advantage
from torchrl_flow.options import (
    ChainPPOArgs,
    Count,
    NonNegativeInt,
    PolicyOfTaskArgs,
    RunSource,
    SamplingSteps,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, load_policy, make_training_envs
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run
from torchrl_flow.training import append_features, finished_success, gradient_step, minibatches, noisy_rollouts


@dataclasses.dataclass(kw_only=True)
class Args(ChainPPOArgs, PolicyOfTaskArgs):
    """Options of the recipe."""

    policy: RunSource = "runs/bc"
    recipe: str = "reinflow"
    """name of the recipe in the table of results"""
    num_steps: SamplingSteps = 4
    """sampling steps K: a power of two up to 16"""
    total_env_steps: Count = 1_000_000
    """environment steps of training"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension; by default 256 of the planar task, 64 of a
    ManiSkill task whose states are observed, and one with images"""
    rollout_steps: Count = 16
    """chunks per environment and iteration"""
    eval_every: NonNegativeInt | None = None
    """iterations between evaluations on 50 other episodes, in addition to the first and the last; 0 for none; by
    default a twentieth of all iterations"""
    compare_steps: tuple[SamplingSteps, ...] = ()
    """further numbers of sampling steps to evaluate at the end"""
    log_every: Count = 1
    save_every: Count = 10


def keeps_features(args: Args, actor: FlowActor) -> bool:
    """Return whether rollouts store features instead of images, which requires a frozen encoder."""
    return actor.encoder.pixel_encoder is not None and not args.train_encoder


def make_networks(args: Args, actor: FlowActor) -> tuple[NoisyFlowActor, StateValue]:
    """Build the noise of the flow, and the value network on the features of its encoder."""
    actor = flow_on_features(actor) if keeps_features(args, actor) else actor
    noise_net = make_noise_net(NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max), actor)
    return NoisyFlowActor(actor, noise_net, **args.chain_options()), make_state_value(StateValueConfig(), actor)


def make_optimizers(args: Args, noisy: NoisyFlowActor, value: StateValue) -> dict[str, Optimizer]:
    """Build one optimiser for the flow and its noise, and one for the value network."""
    flow = [*noisy.flow_actor.velocity_network.parameters(), *noisy.noise_net.parameters()]
    flow += noisy.flow_actor.encoder.parameters() if args.train_encoder else []
    return {
        "flow": torch.optim.Adam(flow, args.lr, eps=1e-5, fused=True),
        "value": torch.optim.Adam(value.head.parameters(), args.critic_lr, eps=1e-5, fused=True),
    }


def update(
    args: Args, loss: ReinFlowPPOLoss, compute: Any, optimizers: dict[str, Optimizer], data: TensorDictBase, step: int
) -> dict[str, torch.Tensor]:
    """Do all epochs of minibatches over an iteration's chunks; return the metrics of the last gradient step."""
    metrics: dict[str, torch.Tensor] = {}
    start, epochs = time.perf_counter(), 0
    for _ in range(args.epochs):
        divergences = []
        for batch in minibatches(data, args.minibatch_size):
            metrics = dict(compute(batch).items())
            losses = {name: value for name, value in metrics.items() if name.startswith("loss_")}
            checks: dict[str, Any] = {"step": step, "batch": batch, "max_grad_norm": args.max_grad_norm}
            metrics |= gradient_step(losses, optimizers, **checks)
            if "divergence" in metrics:
                divergences.append(metrics["divergence"])
        epochs += 1
        if divergences:
            metrics["divergence"] = torch.stack(divergences).mean()
            if loss.should_stop(metrics["divergence"]):
                break
    seconds = torch.tensor(time.perf_counter() - start) / epochs
    return {**metrics, "epochs": torch.tensor(float(epochs)), "epoch_s": seconds}


def train(args: Args, run: Run, actor: FlowActor, env: EnvBase | CollectorEnvs, eval_env: EnvBase) -> None:
    """Run the training loop."""
    noisy, value = make_networks(args, actor)
    ppo: dict[str, Any] = {"loss_critic_type": "l2", "normalize_advantage": True}
    loss_module = ReinFlowPPOLoss(noisy, value, **args.loss_options(), **ppo)
    gae = make_chunk_advantage(value, gamma=args.gamma, lmbda=args.gae_lambda, deactivate_vmap=True)
    compute, optimizers = args.compiled(loss_module), make_optimizers(args, noisy, value)
    env = append_features(env, actor) if keeps_features(args, actor) else env
    rollouts = noisy_rollouts(env, noisy, args.rollout_steps, seed=args.seed, policy_device=args.device)
    modules = {"policy": actor, "noise_net": noisy.noise_net, "value": value}
    run.track(modules=modules, optimizers=optimizers, state={"rollouts": rollouts})
    iterations = math.ceil(args.total_env_steps / (rollouts.chunks * actor.act_horizon))
    eval_every = max(1, iterations // 20) if args.eval_every is None else args.eval_every
    for step in run.steps(iterations, save_every=args.save_every):
        env_steps = run.counters.get("env_steps", 0)
        loss_module.set_env_steps(env_steps)
        data = rollouts.collect().to(args.device)
        gae(data)
        metrics: dict[str, Any] = update(args, loss_module, compute, optimizers, data.reshape(-1), step)
        metrics |= finished_success(data) | run.count_env_steps(data) | rollouts.metrics()
        metrics |= {"sigma_max": loss_module.noise_bound(env_steps), "value": data["state_value"].mean()}
        if run.due(args.log_every):
            run.log({f"train/{name}": metric for name, metric in metrics.items()})
        if run.due(eval_every):
            run.log_evaluation(evaluate(eval_env, actor, validation_seeds(50), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> None:
    """Load the policy, train, evaluate, and write the report."""
    args.prepare()
    actor, checkpoint = load_policy(load_flow_checkpoint(args.policy, which=args.which), device=args.device)
    actor.num_steps = args.num_steps
    actor.config = dataclasses.replace(FlowActorConfig.from_dict(checkpoint.actor_config), num_steps=args.num_steps)
    limits: dict[str, Any] = {"task": args.task, "control_mode": args.control_mode, **args.env_options()}
    if checkpoint.task.task == PLANAR:
        limits["device"] = args.device
    env, eval_env = make_training_envs(checkpoint, maniskill_envs=64, **limits)
    task = task_info(eval_env)
    noise = NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max)
    with args.open_run(
        f"reinflow-{task.task}-{args.seed}",
        task=task,
        actor_config=actor.config,
        module_configs={"noise_net": noise, "value": StateValueConfig()},
        keep_best="eval/success_once",
    ) as run:
        train(args, run, actor, env, eval_env)
        notes = [f"Fine-tuned from {checkpoint.path.name} of {checkpoint.config.get('name') or args.policy}."]
        stage = None if args.label else f"K={args.num_steps}"
        asked: dict[str, Any] = {"stage": stage, "num_steps": args.compare_steps, "notes": notes}
        result, report = conclude_run(run, actor, eval_env, recipe=args.recipe, **asked)
    print(result.summary(), report.resolve(), sep="\n")


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
