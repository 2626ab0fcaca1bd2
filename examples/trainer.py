"""ReinFlow, DSRL and AWSC in TorchRL's trainers, with hooks for action chunks.

    python examples/trainer.py --policy runs/bc
    python examples/trainer.py --policy runs/bc --algorithm dsrl_sac

Policies and losses are those of reinflow.py, dsrl_ppo.py, dsrl_sac_online.py and awsc_online.py; collector, replay
buffer, epochs, weights and logs are TorchRL's. Unlike the recipes, it neither resumes nor writes a report.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import ClipPPOLoss, SoftUpdate
from torchrl.objectives.value import GAE
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import ReplayBufferTrainer, Trainer
from torchrl.trainers.algorithms import PPOTrainer, SACTrainer

from torchrl_flow import modules as nets
from torchrl_flow import objectives, training
from torchrl_flow import options as opt
from torchrl_flow.data import MixedReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, evaluation_seeds, validation_seeds
from torchrl_flow.policies import LATENT_POLICY, load_flow_checkpoint, load_policy, make_training_envs
from torchrl_flow.runs import TrainingCheckpoint, save_checkpoint


@dataclasses.dataclass(kw_only=True)
class Args(opt.PolicyArgs):
    """Options of the script."""

    algorithm: Literal["reinflow", "dsrl_ppo", "dsrl_sac", "awsc"] = "reinflow"
    """ReinFlow or DSRL by PPO in PPOTrainer, DSRL by SAC in SACTrainer, AWSC in Trainer"""
    demos: opt.DemoPath | None = None
    """demonstrations for awsc; by default those that the policy was trained on"""
    num_envs: opt.Count = 64
    """environments that run side by side"""
    rollout_steps: opt.Count = 13
    """chunks of each environment between updates"""
    total_env_steps: opt.Count = 300_000
    """total environment steps, if every chunk is executed to its end"""
    minibatch_size: opt.Count = 208
    """chunks per gradient step"""
    epochs: opt.Count = 2
    """passes over the chunks of a rollout, of PPO"""
    utd: opt.Positive = 0.25
    """updates per chunk of dsrl_sac and awsc"""
    lr: opt.Positive = 2e-4
    """learning rate of the policy"""
    critic_lr: opt.Positive = 1e-3
    """learning rate of the value or the critics"""
    gamma: opt.Fraction = 0.99
    """discount of one environment step"""
    eval_every: opt.NonNegativeInt = 0
    """rollouts between evaluations on 20 other episodes; 0 for none"""
    eval_episodes: opt.Count = 200
    """episodes of the evaluations before and after training"""
    output: opt.WritableDirectory = "runs/trainer"
    """directory of the logs and the checkpoint"""
    seed: opt.Seed = 0
    """seed of the networks and of training"""
    threads: opt.Count = 1
    """CPU threads"""


Parts = tuple[Trainer, Any, dict[str, Any], list[Any]]  # policy, modules to save, functions of the environment steps


def shared(args: Args, collect: type[Collector], env: Any, policy: Any, act_horizon: int) -> dict[str, Any]:
    """Return the arguments common to all trainers."""
    frames = args.num_envs * args.rollout_steps
    total = -(-args.total_env_steps // (frames * act_horizon)) * frames
    options: Any = {"exploration_type": ExplorationType.RANDOM, "auto_register_policy_transforms": False}
    made = {"collector": collect(env, policy, frames_per_batch=frames, total_frames=total, **options)}
    made |= {"logger": CSVLogger("logs", log_dir=args.output), "log_interval": frames, "progress_bar": False}
    return {**made, "total_frames": total, "frame_skip": 1, "save_trainer_file": None}


def in_ppo_trainer(args: Args, common: dict[str, Any], loss_module: ClipPPOLoss, value: Any, policy: Any) -> PPOTrainer:
    """Build TorchRL's trainer of PPO; its buffer is the last rollout."""
    frames, size = common["log_interval"], args.minibatch_size
    buffer: Any = functools.partial(TensorDictReplayBuffer, sampler=SamplerWithoutReplacement(), batch_size=size)
    groups = [{"params": [*policy], "lr": args.lr}, {"params": value.head.parameters()}]
    common |= {"num_epochs": args.epochs, "log_actions": False, "clip_norm": 10.0}
    trainer = PPOTrainer(
        **common,
        loss_module=loss_module,
        optim_steps_per_batch=max(1, frames // size),
        optimizer=torch.optim.Adam(groups, args.critic_lr, eps=1e-5),
        replay_buffer=buffer(storage=LazyTensorStorage(frames)),
        gae=GAE(gamma=args.gamma, lmbda=0.95, value_network=value, vectorized=False, deactivate_vmap=True),
        # The trainer sets this key of its loss, to "action" by default.
        action_key=loss_module.tensor_keys.action,  # pyright: ignore[reportArgumentType]
    )
    return training.with_finite_steps(trainer)


def reinflow(args: Args, flow: nets.FlowActor, env: Any, start: TrainingCheckpoint) -> Parts:
    """Train the chain of a noisy flow with PPO; the noise bound decreases."""
    noisy = nets.NoisyFlowActor(flow, nets.make_noise_net(nets.NoiseNetConfig(), flow))
    value: Any = nets.make_state_value(nets.StateValueConfig(), flow)
    falls: dict[str, Any] = {"noise_schedule": "linear", "noise_decay_steps": args.total_env_steps}
    options: dict[str, Any] = {"clip_epsilon": 0.01, "entropy_coeff": 0.0, "normalize_advantage": True}
    loss_module = objectives.ReinFlowPPOLoss(noisy, value, **falls, **options)
    learns = [*flow.velocity_network.parameters(), *noisy.noise_net.parameters()]
    trainer = in_ppo_trainer(args, shared(args, Collector, env, noisy, flow.act_horizon), loss_module, value, learns)
    return trainer, flow, {"policy": flow}, [loss_module.set_env_steps]


def dsrl(args: Args, flow: nets.FlowActor, env: Any, start: TrainingCheckpoint) -> Parts:
    """Train a latent policy that steers the frozen flow, by PPO (with a mixture with the prior) or by SAC."""
    ppo, sizes = args.algorithm == "dsrl_ppo", (128, 128)
    policy = nets.make_latent_policy(nets.LatentPolicyConfig("tied", 2.0, sizes, prior_mixing=ppo), flow)
    steered, modules = nets.SteeredFlowActor(policy, flow), {"policy": flow, LATENT_POLICY: policy}
    common = shared(args, training.SteeredCollector, env, steered, flow.act_horizon)
    if ppo:
        value: Any = nets.make_state_value(nets.StateValueConfig(), flow)
        loss_module = ClipPPOLoss(policy, value, entropy_coeff=1e-3, normalize_advantage=True)
        loss_module.set_keys(action=policy.latent_key, sample_log_prob=policy.latent_log_prob_key)

        mix = lambda steps: policy.set_prior_fraction(0.3 * max(0.0, 1 - steps / args.total_env_steps))  # noqa: E731
        return in_ppo_trainer(args, common, loss_module, value, policy.parameters()), steered, modules, [mix]
    critics = nets.make_latent_critics(nets.CriticConfig(2, sizes), flow, policy)
    sac = objectives.LatentSACLoss(policy, critics, gamma=args.gamma, target_entropy=0.0, alpha_init=3e-3)
    learns: list[Any] = [*sac.actor_network_params.parameters(), sac.log_alpha]
    groups = [{"params": learns, "lr": args.lr}, {"params": sac.qvalue_network_params.parameters()}]
    trainer = SACTrainer(
        **common,
        loss_module=sac,
        optimizer=torch.optim.Adam(groups, args.critic_lr),
        optim_steps_per_batch=max(1, round(args.utd * common["log_interval"])),
        replay_buffer=training.macro_replay(200_000, batch_size=args.minibatch_size),
        target_net_updater=SoftUpdate(sac, tau=0.02),
        action_key=policy.latent_key,
        enable_logging=False,
    )
    return training.with_finite_steps(trainer), steered, modules, []


def awsc(args: Args, flow: nets.FlowActor, env: Any, start: TrainingCheckpoint) -> Parts:
    """Clone demonstrations and better online chunks, half of each per batch, with advantage weights."""
    critic = nets.QEnsemble.for_actor(flow, num_qs=2, hidden_sizes=(256, 256))
    loss_module = objectives.AWFlowLoss(flow, critic, gamma=args.gamma, filter_policy_data=True)
    target = objectives.NetworkSoftUpdate(loss_module, "critic_network", tau=0.01)
    values = torch.optim.Adam(loss_module.critic_parameters(), args.critic_lr)
    groups = [training.LossGroup("loss_qvalue", values, method="qvalue_loss", target_updater=target)]
    actor = torch.optim.AdamW(loss_module.actor_parameters(), args.lr)
    groups += [training.LossGroup("loss_actor", actor, method="actor_loss", every=2)]
    chunks: dict[str, Any] = {name: getattr(flow, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    chunks |= {"gamma": args.gamma, "padding": "hold", "mask_padding": False}
    demos = DemoSource.of_checkpoint(start, args.demos).load(start.task, **chunks)
    buffer = MixedReplayBuffer(demos, online=100_000, online_ratio=0.5, batch_size=args.minibatch_size)
    stepper = training.NamedLossStepper(loss_module, groups, utd_ratio=args.utd, pretrain_steps=500)
    options: dict[str, Any] = {"loss_module": loss_module, "optimization_stepper": stepper, "optim_steps_per_batch": 1}
    trainer = Trainer(**shared(args, Collector, env, flow, flow.act_horizon), **options, replay_buffer=buffer)
    ReplayBufferTrainer(buffer).register(trainer)
    return trainer, flow, {"policy": flow}, []


def main(args: Args) -> EvaluationResult:
    """Load the policy, evaluate, train, evaluate again, and save a checkpoint."""
    opt.check_options(args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    flow, start = load_policy(load_flow_checkpoint(args.policy, which=args.which))
    envs = make_training_envs(start, num_envs=args.num_envs, gamma=args.gamma, episodes=args.eval_episodes)
    score = functools.partial(evaluate, envs[1], progress=False)  # on other episodes, which are not stored in a buffer
    seeds = evaluation_seeds(args.eval_episodes)
    print("before:", score(flow, seeds).summary(), flush=True)
    build = {"reinflow": reinflow, "awsc": awsc, "dsrl_ppo": dsrl, "dsrl_sac": dsrl}[args.algorithm]
    trainer, policy, modules, schedules = build(args, flow, envs[0], start)
    others = lambda: score(policy, validation_seeds(20)).metrics()  # noqa: E731
    hooks = training.ChunkHooks(schedules, others, eval_every=args.eval_every)
    hooks.register(trainer)
    if args.algorithm == "dsrl_sac":  # keep the entries that the loss reads
        trainer.register_op("batch_process", training.macro_transitions)
    trainer.train()
    training.require_finite_modules(modules, doing="the policy is neither evaluated nor saved")
    result, path = score(policy, seeds), f"{args.output}/policy.torchrl"
    config = {**dataclasses.asdict(args), "demonstrations": start.config.get("demonstrations")}
    latent = {LATENT_POLICY: policy.policy.config.to_dict()} if LATENT_POLICY in modules else {}
    saved: dict[str, Any] = {"task": task_info(envs[1]), "modules": modules, "metadata": {"module_configs": latent}}
    counters = {"step": trainer.collected_frames, "env_steps": hooks.env_steps}
    save_checkpoint(path, config=config, actor_config=flow.config, counters=counters, **saved)
    print(f"after {hooks.env_steps} environment steps:", result.summary(), f"\n{path}")
    return result


if __name__ == "__main__":
    with opt.refusals_in_one_line():
        main(opt.parse_options(Args, description=__doc__))
