r"""Fine-tune a flow policy with PPO over its denoising chain (ReinFlow): noise in every sampling step, sparse reward.

    python examples/shortcut_flow_bc.py --task planar --num-demos 100 --iterations 1500 --width 128 --depth 2 \
        --pred-horizon 8 --name bc
    python examples/reinflow.py --policy runs/bc --num-steps 4 --num-envs 256 --rollout-steps 13 --minibatch-size 832 \
        --epochs 2 --total-env-steps 2000000 --lr 2e-4 --critic-lr 1e-3 --clip 0.01 --sigma-min 0.05 \
        --noise-decay-steps 4000000 --critic-warmup-steps 100000

Takes about 3 minutes on one CPU core for the planar task, success_once from about 0.5 to about 0.99. The defaults are
those of ManiSkill's tasks with one environment. Beware of --clip with the log-probability averaged over the chain's
K H A terms: a bound of 0.01 on the ratio is one of about 1 on the chain's log-probability here, 0.2 one of 20, which is
none, and with this command's learning rate the policy is lost within ten iterations.

Starts from any checkpoint with a flow policy and leaves one: the fine-tuned flow, without its noise, under the role
`policy`. Evaluation over fixed seeds and a report come at the end, whose path is printed last. A run that was stopped
goes on with --resume.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_flow import training
from torchrl_flow.functional import max_sigma_schedule
from torchrl_flow.modules import (
    FlowActor,
    FlowActorConfig,
    NoiseNetConfig,
    NoisyFlowActor,
    StateValue,
    StateValueConfig,
    make_noise_net,
    make_state_value,
)
from torchrl_flow.objectives import FlowAnchorLoss

KEPT = ("observation", "pixels", "flow")
KEPT_NEXT = (*KEPT[:2], "reward", "done", "terminated", "steps_to_next_obs", "success")


@dataclasses.dataclass
class Args:
    """What the recipe can be told on the command line."""

    policy: str = "runs/bc"
    """run directory or checkpoint of the flow policy to start from"""
    name: str | None = None
    """name of the run; task and recipe where none is given"""
    runs: str = "runs"
    """directory of the runs"""
    results: str = "runs/results.csv"
    """table to which the results are appended"""
    recipe: str = "reinflow"
    """what the table of results calls the recipe"""
    label: str | None = None
    """what the table of results calls this variant"""
    seed: int = 0
    """seed of the networks and of training"""
    num_steps: int = 8
    """sampling steps K: a power of two up to 16"""
    total_env_steps: int = 1_000_000
    """environment steps of training"""
    num_envs: int = 1
    """environments that are stepped together; above 1 ManiSkill needs physx_cuda"""
    sim_backend: str = "physx_cuda"
    """ManiSkill's simulation where num_envs is above 1"""
    rollout_steps: int = 128
    """chunks per environment and iteration"""
    epochs: int = 4
    """passes over an iteration's chunks"""
    minibatch_size: int = 64
    """chunks per gradient step"""
    lr: float = 3e-5
    """learning rate of the flow and of its noise"""
    critic_lr: float = 1e-4
    """learning rate of the value"""
    gamma: float = 0.99
    """discount of an environment step"""
    gae_lambda: float = 0.95
    """lambda of the advantage estimate"""
    clip: float = 0.2
    """bound on the ratio's distance from 1"""
    entropy_coef: float = 0.01
    """weight of the noise's entropy"""
    value_coef: float = 0.5
    """weight of the value's loss"""
    anchor_coef: float = 0.0
    """weight of the transport cost (W2) between the chunks of the flow and of its start; 0 for none"""
    max_grad_norm: float = 1.0
    """bound on the gradient's norm, of the flow and of the value"""
    target_kl: float | None = None
    """stop an iteration's epochs once the ratio's divergence passes it; None to never stop"""
    critic_warmup_steps: int = 5000
    """environment steps in which only the value learns"""
    log_prob_reduction: Literal["mean", "sum"] = "mean"
    """whether the chain's log-probability is averaged over its terms or summed"""
    mean_bound: float | None = None
    """clamp of the chain's means, in normalised units; for policies with min-max normalised actions"""
    sigma_min: float = 0.01
    """lower bound of the noise, in units of normalised actions"""
    sigma_max: float = 0.3
    """its upper bound at the start"""
    noise_schedule: Literal["constant", "linear", "exponential"] = "linear"
    """how the upper bound falls"""
    noise_decay_steps: int = 500_000
    """environment steps until it has fallen"""
    train_encoder: bool = False
    """train the encoder too"""
    eval_episodes: int = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: int = 0
    """iterations between evaluations on 50 other episodes; 0 for none"""
    compare_steps: tuple[int, ...] = ()
    """further numbers of sampling steps to evaluate at the end"""
    num_videos: int = 4
    """episodes to film, where the machine can render"""
    save_every: int = 10
    """iterations between checkpoints"""
    device: str = "cpu"
    """device of networks and batches"""
    threads: int = 1
    """CPU threads"""
    wandb: Literal["online", "offline"] | None = None
    """log to Weights & Biases"""
    tensorboard: bool = False
    """log to TensorBoard"""
    resume: bool = False
    """go on with a run that was stopped"""


def make_env(args: Args, checkpoint: training.TrainingCheckpoint, *, train: bool) -> EnvBase:
    """Make the policy's environment: in training episodes end with success, in evaluation at the time limit."""
    options: dict[str, Any] = {"ignore_terminations": not train, "num_envs": args.num_envs if train else None}
    if checkpoint.task["task"] == training.PLANAR:
        options |= {"num_envs": args.num_envs if train else 50, "device": args.device}
    elif args.num_envs == 1:
        options["num_envs"] = None
    elif train:
        options["sim_backend"] = args.sim_backend
    return training.evaluation_env(checkpoint, gamma=args.gamma, **options)


def make_networks(args: Args, actor: FlowActor) -> tuple[NoisyFlowActor, StateValue]:
    """Build the noise around the flow, and the value of states on the features of its encoder."""
    noise_net = make_noise_net(NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max), actor)
    noisy = NoisyFlowActor(
        actor,
        noise_net,
        log_prob_reduction=args.log_prob_reduction,
        mean_bound=args.mean_bound,
        train_encoder=args.train_encoder,
    )
    return noisy, make_state_value(StateValueConfig(), actor)


def make_losses(args: Args, noisy: NoisyFlowActor, value: StateValue) -> tuple[ClipPPOLoss, FlowAnchorLoss | None, GAE]:
    """Build TorchRL's PPO on the chain, the anchor where one is asked for, and the advantage estimate."""
    loss_module = ClipPPOLoss(
        noisy,  # pyright: ignore[reportArgumentType]
        value,  # pyright: ignore[reportArgumentType]
        clip_epsilon=args.clip,
        entropy_coeff=args.entropy_coef,
        critic_coeff=args.value_coef,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    anchor = FlowAnchorLoss(noisy.flow_actor) if args.anchor_coef else None
    gae = GAE(
        gamma=args.gamma,
        lmbda=args.gae_lambda,
        value_network=value,  # pyright: ignore[reportArgumentType]
        vectorized=False,
        deactivate_vmap=True,
    )
    gae.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))
    return loss_module, anchor, gae


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
    loss_module: ClipPPOLoss,
    anchor: FlowAnchorLoss | None,
    optimizers: dict[str, torch.optim.Optimizer],
    data: TensorDictBase,
    *,
    warming_up: bool,
) -> dict[str, torch.Tensor]:
    """Go over an iteration's chunks several times, a minibatch a gradient step; returns the last one's metrics."""
    metrics: dict[str, torch.Tensor] = {}
    start = time.perf_counter()
    for epoch in range(args.epochs):
        divergences = []
        for batch in training.minibatches(data, args.minibatch_size):
            if warming_up:
                metrics = {"loss_critic": loss_module.loss_critic(batch)[0].mean()}
            else:
                metrics = dict(loss_module(batch).items())
                # E[r - 1 - log r]: never negative, unlike TorchRL's kl_approx, the mean of -log r.
                divergences.append(metrics["mean_ratio"] - 1 + metrics["kl_approx"])
                if anchor is not None:
                    metrics["loss_anchor"] = args.anchor_coef * anchor(batch)["loss_anchor"]
            torch.stack([loss for name, loss in metrics.items() if name.startswith("loss_")]).sum().backward()
            for name, optimizer in optimizers.items():
                parameters = optimizer.param_groups[0]["params"]
                metrics[f"gradient_norm_{name}"] = torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        metrics["epochs"] = torch.tensor(epoch + 1.0)
        if divergences:
            metrics["divergence"] = torch.stack(divergences).mean()
            if args.target_kl is not None and metrics["divergence"] > args.target_kl:
                break
    metrics["epoch_s"] = (time.perf_counter() - start) / metrics["epochs"]
    return metrics


def train(args: Args, run: training.Run, actor: FlowActor, env: EnvBase, eval_env: EnvBase) -> None:
    """Train the policy; all of the loop is here."""
    noisy, value = make_networks(args, actor)
    loss_module, anchor, gae = make_losses(args, noisy, value)
    optimizers = make_optimizers(args, noisy, value)
    rollouts = training.ChunkRollouts(env, noisy, args.rollout_steps, keep=KEPT, keep_next=KEPT_NEXT, seed=args.seed)
    modules = {"policy": actor, "noise_net": noisy.noise_net, "value": value}
    run.track(modules=modules, optimizers=optimizers, state={"rollouts": rollouts})
    chunks = args.num_envs * args.rollout_steps
    for step in run.steps(math.ceil(args.total_env_steps / (chunks * actor.act_horizon)), save_every=args.save_every):
        env_steps = run.counters.get("env_steps", 0)
        sigma_max = max_sigma_schedule(
            env_steps,
            kind=args.noise_schedule,
            sigma_max=args.sigma_max,
            sigma_min=args.sigma_min,
            decay_steps=args.noise_decay_steps,
        )
        noisy.noise_net.set_sigma_max(sigma_max)
        data = rollouts.collect()
        gae(data)
        run.counters["env_steps"] = env_steps + int(data["next", "steps_to_next_obs"].sum())
        warming_up = env_steps < args.critic_warmup_steps
        metrics = update(args, loss_module, anchor, optimizers, data.reshape(-1), warming_up=warming_up)
        finished = data["next", "done"]
        if finished.any():
            metrics["success"] = data["next", "success"][finished].float().mean()
        metrics |= {"env_steps": run.counters["env_steps"], "wall_s": run.wall_s}
        metrics |= {"sigma_max": sigma_max, "value": data["state_value"].mean()}
        run.log({f"train/{name}": metric for name, metric in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            run.log(training.evaluate(eval_env, actor, range(20_000, 20_050), progress=False).metrics())


def main(args: Args) -> None:
    """Policy, training, evaluation, report."""
    torch.set_num_threads(args.threads)
    training.seed_everything(args.seed)
    actor, checkpoint = training.load_policy(args.policy, device=args.device)
    actor.num_steps = args.num_steps
    actor.config = dataclasses.replace(FlowActorConfig.from_dict(checkpoint.actor_config), num_steps=args.num_steps)
    name = args.name or f"reinflow-{checkpoint.task['task']}-{args.seed}"
    directory = Path(args.runs) / name
    env, eval_env = make_env(args, checkpoint, train=True), make_env(args, checkpoint, train=False)
    task, config = training.task_info(eval_env), dataclasses.asdict(args)
    configs = {
        "noise_net": NoiseNetConfig(sigma_min=args.sigma_min, sigma_max=args.sigma_max),
        "value": StateValueConfig(),
    }
    options = {"resume": args.resume, "tensorboard": args.tensorboard, "wandb": args.wandb}
    with training.Run(
        directory, config, task=task, actor_config=actor.config, module_configs=configs, **options
    ) as run:
        train(args, run, actor, env, eval_env)
        result, report = training.conclude(
            directory,
            actor,
            eval_env,
            range(10_000, 10_000 + args.eval_episodes),
            task=task,
            recipe=args.recipe,
            stage=args.label or f"K={args.num_steps}",
            seed=args.seed,
            num_steps=args.compare_steps,
            num_videos=args.num_videos,
            results=args.results,
            config=config,
            env_steps=run.counters["env_steps"],
            wall_s=run.wall_s,
            notes=[f"Fine-tuned from {checkpoint.path.name} of {checkpoint.config.get('name') or args.policy}."],
        )
    print(result.summary())
    print(report.resolve())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
