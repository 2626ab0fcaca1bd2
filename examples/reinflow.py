r"""Fine-tune a flow policy with PPO over its denoising chain (ReinFlow): noise in every sampling step, sparse reward.

    python examples/shortcut_flow_bc.py --task PickCube-v1 --quality mixed --act-horizon 4 --iterations 5000 --name bc
    python examples/reinflow.py --policy runs/bc

The defaults are those of a ManiSkill task whose states are observed, with 64 environments in one CPU process. The
planar task takes about 3 minutes on one CPU core, with more and larger steps:

    python examples/shortcut_flow_bc.py --task planar --num-demos 100 --iterations 1500 --width 128 --depth 2 \
        --pred-horizon 8 --name bc
    python examples/reinflow.py --policy runs/bc --rollout-steps 13 --minibatch-size 832 --epochs 2 --lr 2e-4 \
        --total-env-steps 2000000 --noise-decay-steps 4000000 --critic-warmup-steps 100000

The bound --clip is small because the log-probability is averaged over the K H A terms of the chain: 0.01 on the ratio
is about 1 on the chain's log-probability. With 0.2 it is about 20, which bounds nothing, and the policy is lost within
ten iterations.

Starts from any checkpoint with a flow policy and leaves one: the fine-tuned flow, without its noise, under the role
`policy`. The best policy of the evaluations along the way is kept besides the last, and a later stage starts from it
(--which). With images and a frozen encoder rollouts keep its features, no pixels. Evaluation over fixed seeds and a
report come at the end, whose path is printed last. A run that was stopped goes on with --resume, to the same bits where
the environment can tell its state; a finished one is made longer by --resume with more --total-env-steps.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Annotated, Any, Literal

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives.value import GAE

from torchrl_flow.envs import PLANAR, CollectorEnvs, task_info
from torchrl_flow.evaluation import evaluate
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
from torchrl_flow.objectives import ReinFlowPPOLoss
from torchrl_flow.options import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    NotAbove,
    OnlineArgs,
    PolicyArgs,
    Positive,
    RunSource,
    SamplingSteps,
    TaskName,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, load_policy, make_training_envs
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run, Which
from torchrl_flow.training import (
    ChunkRollouts,
    CollectorRollouts,
    append_features,
    finished_success,
    gradient_step,
    make_rollouts,
    minibatches,
)

OUTCOME = ("reward", "done", "terminated", "steps_to_next_obs", "success")


@dataclasses.dataclass(kw_only=True)
class Args(OnlineArgs, PolicyArgs):
    """What the recipe can be told on the command line."""

    policy: RunSource = "runs/bc"
    which: Which = "best"
    recipe: str = "reinflow"
    """name of the recipe in the table of results"""
    task: TaskName | None = None
    """refuse a policy of another task"""
    control_mode: str | None = None
    """refuse a policy of another control mode"""
    num_steps: SamplingSteps = 4
    """sampling steps K: a power of two up to 16"""
    total_env_steps: Count = 1_000_000
    """environment steps of training"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one that is not batched; by default 256 of the planar task, 64 of a
    ManiSkill task whose states are observed, and one with images"""
    rollout_steps: Count = 16
    """chunks per environment and iteration"""
    epochs: Count = 4
    """passes over an iteration's chunks"""
    minibatch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 1e-4
    """learning rate of the flow and of the noise network"""
    critic_lr: Positive = 1e-3
    """learning rate of the value network"""
    gae_lambda: Fraction = 0.95
    """lambda of the advantage estimate"""
    clip: Positive = 0.01
    """bound on the distance of the probability ratio from 1"""
    entropy_coef: NonNegative = 0.01
    """weight of the noise's entropy"""
    value_coef: NonNegative = 0.5
    """weight of the loss of the value network"""
    anchor_coef: NonNegative = 0.0
    """weight of the transport cost (W2) between chunks of the flow and of its initial weights; 0 for none"""
    max_grad_norm: Positive = 1.0
    """bound on the gradient's norm, of the flow and of the value"""
    target_kl: Positive | None = None
    """divergence of the probability ratio at which the epochs of an iteration stop; None for no limit"""
    critic_warmup_steps: NonNegativeInt = 20_000
    """environment steps in which only the value learns"""
    log_prob_reduction: Literal["mean", "sum"] = "mean"
    """whether the log-probability of the chain is the mean or the sum over steps, chunk and action dimensions"""
    mean_bound: Positive | None = None
    """clamp of the chain's means, in normalised units; for policies with min-max normalised actions"""
    sigma_min: Annotated[Positive, NotAbove("sigma_max")] = 0.05
    """lower bound of the noise, in units of normalised actions"""
    sigma_max: Positive = 0.3
    """upper bound of the noise at the start of training, in units of normalised actions"""
    noise_schedule: Literal["constant", "linear", "exponential"] = "linear"
    """how the upper bound of the noise falls"""
    noise_decay_steps: Count = 1_500_000
    """environment steps over which the upper bound of the noise falls"""
    train_encoder: bool = False
    """train the encoder too"""
    eval_every: NonNegativeInt | None = None
    """iterations between evaluations on 50 other episodes, beside the first and the last; 0 for none; a twentieth of
    all iterations where none is given"""
    compare_steps: tuple[SamplingSteps, ...] = ()
    """further numbers of sampling steps to evaluate at the end"""
    log_every: Count = 1
    save_every: Count = 10


def keeps_features(args: Args, actor: FlowActor) -> bool:
    """Whether rollouts keep the features of images in place of the images: where the encoder stays as it is."""
    return actor.encoder.pixel_encoder is not None and not args.train_encoder


def make_networks(args: Args, actor: FlowActor) -> tuple[NoisyFlowActor, StateValue]:
    """Build the noise around the flow, and the value of states on the features of its encoder."""
    actor = flow_on_features(actor) if keeps_features(args, actor) else actor
    noise_net = make_noise_net(NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max), actor)
    noisy = NoisyFlowActor(
        actor,
        noise_net,
        log_prob_reduction=args.log_prob_reduction,
        mean_bound=args.mean_bound,
        train_encoder=args.train_encoder,
    )
    return noisy, make_state_value(StateValueConfig(), actor)


def make_loss(args: Args, noisy: NoisyFlowActor, value: StateValue) -> tuple[ReinFlowPPOLoss, GAE]:
    """Build PPO on the chain, with warm-up, schedule, stop and anchor in it, and the advantage estimate."""
    loss_module = ReinFlowPPOLoss(
        noisy,
        value,
        clip_epsilon=args.clip,
        entropy_coeff=args.entropy_coef,
        critic_coeff=args.value_coef,
        loss_critic_type="l2",
        normalize_advantage=True,
        warmup_steps=args.critic_warmup_steps,
        noise_schedule=args.noise_schedule,
        noise_decay_steps=args.noise_decay_steps,
        target_kl=args.target_kl,
        anchor_coeff=args.anchor_coef,
    )
    gae = GAE(
        gamma=args.gamma,
        lmbda=args.gae_lambda,
        value_network=value,  # pyright: ignore[reportArgumentType]
        vectorized=False,
        deactivate_vmap=True,
    )
    gae.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return loss_module, gae


def make_noisy_rollouts(
    args: Args, actor: FlowActor, noisy: NoisyFlowActor, env: EnvBase | CollectorEnvs
) -> ChunkRollouts | CollectorRollouts:
    """Let the noisy policy act; observations are kept as the networks read them."""
    if keeps_features(args, actor):
        env = append_features(env, actor)
    observed = list(noisy.in_keys)
    parts: dict[str, Any] = {"keep": [*observed, "flow"], "keep_next": [*observed, *OUTCOME]}
    return make_rollouts(env, noisy, args.rollout_steps, seed=args.seed, policy_device=args.device, **parts)


def make_optimizers(args: Args, noisy: NoisyFlowActor, value: StateValue) -> dict[str, torch.optim.Optimizer]:
    """Build an optimiser for the flow with its noise and one for the value."""
    flow = [*noisy.flow_actor.velocity_network.parameters(), *noisy.noise_net.parameters()]
    flow += noisy.flow_actor.encoder.parameters() if args.train_encoder else []
    return {
        "flow": torch.optim.Adam(flow, args.lr, eps=1e-5, fused=True),
        "value": torch.optim.Adam(value.head.parameters(), args.critic_lr, eps=1e-5, fused=True),
    }


def update(
    args: Args,
    loss_module: ReinFlowPPOLoss,
    optimizers: dict[str, torch.optim.Optimizer],
    data: TensorDictBase,
    *,
    step: int,
) -> dict[str, torch.Tensor]:
    """Go over an iteration's chunks several times, a minibatch a gradient step; returns the last one's metrics."""
    metrics: dict[str, torch.Tensor] = {}
    start, epochs = time.perf_counter(), 0
    for _ in range(args.epochs):
        divergences = []
        for batch in minibatches(data, args.minibatch_size):
            metrics = dict(loss_module(batch).items())
            losses = {name: loss for name, loss in metrics.items() if name.startswith("loss_")}
            checks: dict[str, Any] = {"step": step, "batch": batch, "max_grad_norm": args.max_grad_norm}
            metrics |= gradient_step(losses, optimizers, **checks)
            if "divergence" in metrics:
                divergences.append(metrics["divergence"])
        epochs += 1
        if divergences:
            metrics["divergence"] = torch.stack(divergences).mean()
            if loss_module.should_stop(metrics["divergence"]):
                break
    return {
        **metrics,
        "epochs": torch.tensor(float(epochs)),
        "epoch_s": torch.tensor(time.perf_counter() - start) / epochs,
    }


def train(args: Args, run: Run, actor: FlowActor, env: EnvBase | CollectorEnvs, eval_env: EnvBase) -> None:
    """Train the policy; all of the loop is here."""
    noisy, value = make_networks(args, actor)
    loss_module, gae = make_loss(args, noisy, value)
    optimizers, rollouts = make_optimizers(args, noisy, value), make_noisy_rollouts(args, actor, noisy, env)
    modules = {"policy": actor, "noise_net": noisy.noise_net, "value": value}
    run.track(modules=modules, optimizers=optimizers, state={"rollouts": rollouts})
    iterations = math.ceil(args.total_env_steps / (rollouts.chunks * actor.act_horizon))
    eval_every = max(1, iterations // 20) if args.eval_every is None else args.eval_every
    for step in run.steps(iterations, save_every=args.save_every):
        env_steps = run.counters.get("env_steps", 0)
        loss_module.set_env_steps(env_steps)
        data = rollouts.collect().to(args.device)
        gae(data)
        run.counters["env_steps"] = env_steps + int(data["next", "steps_to_next_obs"].sum())
        metrics: dict[str, Any] = update(args, loss_module, optimizers, data.reshape(-1), step=step)
        metrics |= finished_success(data)
        metrics |= {"env_steps": run.counters["env_steps"], "wall_s": run.wall_s}
        metrics |= {"sigma_max": loss_module.noise_bound(env_steps), "value": data["state_value"].mean()}
        if run.due(args.log_every):
            run.log({f"train/{name}": metric for name, metric in metrics.items()})
        if run.due(eval_every):
            run.log_evaluation(evaluate(eval_env, actor, range(20_000, 20_050), progress=False).metrics())
    rollouts.close()


def main(args: Args) -> None:
    """Policy, training, evaluation, report."""
    args.prepare()
    actor, checkpoint = load_policy(load_flow_checkpoint(args.policy, which=args.which), device=args.device)
    actor.num_steps = args.num_steps
    actor.config = dataclasses.replace(FlowActorConfig.from_dict(checkpoint.actor_config), num_steps=args.num_steps)
    limits: dict[str, Any] = {"task": args.task, "control_mode": args.control_mode, **args.env_options()}
    if checkpoint.task.get("task") == PLANAR:
        limits["device"] = args.device
    env, eval_env = make_training_envs(checkpoint, maniskill_envs=64, **limits)
    task = task_info(eval_env)
    noise = NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max)
    with args.open_run(
        f"reinflow-{task['task']}-{args.seed}",
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
