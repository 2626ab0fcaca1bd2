"""Fine-tune a flow by ReinFlow in TorchRL's own PPOTrainer, with hooks for what is special to chunks.

    python examples/trainer.py --policy runs/bc

`reinflow.py` is the recipe: it resumes, warms up, anchors and reports. This script has the same policy, loss and
advantage, and leaves the loop to TorchRL: collector, replay buffer, epochs, weights and logging are the trainer's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.envs.utils import ExplorationType
from torchrl.objectives.value import GAE
from torchrl.record.loggers import CSVLogger
from torchrl.trainers.algorithms import PPOTrainer

from torchrl_flow.envs import task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate
from torchrl_flow.modules import NoiseNetConfig, NoisyFlowActor, StateValueConfig, make_noise_net, make_state_value
from torchrl_flow.objectives import ReinFlowPPOLoss, make_chunk_advantage
from torchrl_flow.options import (
    Count,
    Fraction,
    PolicyArgs,
    Positive,
    Seed,
    WritableDirectory,
    check_options,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import load_flow_checkpoint, load_policy, make_training_envs
from torchrl_flow.runs import save_checkpoint
from torchrl_flow.training import finished_success


@dataclasses.dataclass(kw_only=True)
class Args(PolicyArgs):
    """What the script can be told on the command line."""

    num_envs: Count = 64
    """environments that run side by side"""
    rollout_steps: Count = 13
    """chunks of each environment between updates"""
    total_env_steps: Count = 300_000
    """environment steps in all, if every chunk is executed to its end"""
    minibatch_size: Count = 208
    """chunks per gradient step"""
    epochs: Count = 2
    """passes over the chunks of a rollout"""
    lr: Positive = 2e-4
    """learning rate of the flow and its noise"""
    critic_lr: Positive = 1e-3
    """learning rate of the value"""
    gamma: Fraction = 0.99
    """discount of one environment step"""
    eval_episodes: Count = 200
    """episodes of the evaluation before and after"""
    output: WritableDirectory = "runs/trainer"
    """directory of the logs and the checkpoint"""
    seed: Seed = 0
    """seed of the networks and of training"""
    threads: Count = 1
    """CPU threads"""


class ChunkHooks:
    """What a trainer does not know of chunks: counts environment steps, and logs the success of finished episodes.

    Args:
        loss_module: whose schedules follow the environment steps.
    """

    def __init__(self, loss_module: ReinFlowPPOLoss) -> None:
        self.loss_module, self.env_steps = loss_module, 0

    def count(self, batch: TensorDictBase) -> TensorDictBase:
        """Count the executed steps of a rollout ``[N, T]``: a frame of the trainer is a chunk."""
        self.env_steps += int(batch["next", "steps_to_next_obs"].sum())
        return batch

    def log(self, batch: TensorDictBase) -> dict[str, Any]:
        """Return what is logged of a rollout."""
        success = finished_success(batch)
        return {"env_steps": self.env_steps, **{name: value.item() for name, value in success.items()}}

    def schedule(self) -> None:
        """Set the schedules of the loss before the next rollout."""
        self.loss_module.set_env_steps(self.env_steps)

    def register(self, trainer: PPOTrainer) -> None:
        """Add the hooks to a trainer."""
        trainer.register_op("batch_process", self.count)
        trainer.register_op("pre_steps_log", self.log)
        trainer.register_op("post_steps", self.schedule)


def make_loss(args: Args, actor: Any) -> tuple[NoisyFlowActor, ReinFlowPPOLoss, GAE]:
    """Build the noise around the flow, PPO on its chain, and the advantage estimate."""
    noisy = NoisyFlowActor(actor, make_noise_net(NoiseNetConfig(), actor))
    value = make_state_value(StateValueConfig(), actor)
    loss_module = ReinFlowPPOLoss(noisy, value, clip_epsilon=0.01, entropy_coeff=0.0, normalize_advantage=True)
    return noisy, loss_module, make_chunk_advantage(value, gamma=args.gamma, lmbda=0.95, deactivate_vmap=True)


def make_trainer(args: Args, env: Any, noisy: NoisyFlowActor, loss_module: ReinFlowPPOLoss, gae: GAE) -> PPOTrainer:
    """Build TorchRL's trainer; all of the loop is in there."""
    frames = args.num_envs * args.rollout_steps
    rollouts = -(-args.total_env_steps // (frames * noisy.flow_actor.act_horizon))
    flow = [*noisy.flow_actor.velocity_network.parameters(), *noisy.noise_net.parameters()]
    groups = [{"params": flow, "lr": args.lr}, {"params": loss_module.critic_network.head.parameters()}]
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames), sampler=SamplerWithoutReplacement(), batch_size=args.minibatch_size
    )
    explore: Any = ExplorationType.RANDOM
    return PPOTrainer(
        collector=Collector(
            env,
            noisy,
            frames_per_batch=frames,
            total_frames=rollouts * frames,
            exploration_type=explore,
            auto_register_policy_transforms=False,
        ),
        total_frames=rollouts * frames,
        frame_skip=1,
        optim_steps_per_batch=max(1, frames // args.minibatch_size),
        num_epochs=args.epochs,
        loss_module=loss_module,
        optimizer=torch.optim.Adam(groups, args.critic_lr, eps=1e-5),
        replay_buffer=buffer,
        gae=gae,
        # The loss scores the steps of the chain; the trainer would set its key to "action".
        action_key=("flow", "x_next"),
        log_actions=False,
        clip_norm=10.0,
        logger=CSVLogger("logs", log_dir=args.output),
        log_interval=frames,
        progress_bar=False,
        save_trainer_file=None,
    )


def main(args: Args) -> EvaluationResult:
    """Policy, evaluation, training, evaluation, checkpoint."""
    check_options(args)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    actor, checkpoint = load_policy(load_flow_checkpoint(args.policy, which=args.which))
    envs = make_training_envs(checkpoint, num_envs=args.num_envs, gamma=args.gamma, episodes=args.eval_episodes)
    env: Any = envs[0]
    seeds = range(10_000, 10_000 + args.eval_episodes)
    print("before:", evaluate(envs[1], actor, seeds, progress=False).summary(), flush=True)
    noisy, loss_module, gae = make_loss(args, actor)
    trainer = make_trainer(args, env, noisy, loss_module, gae)
    hooks = ChunkHooks(loss_module)
    hooks.register(trainer)
    trainer.train()
    result = evaluate(envs[1], actor, seeds, progress=False)
    path = save_checkpoint(
        f"{args.output}/policy.torchrl",
        config=dataclasses.asdict(args),
        task=task_info(envs[1]),
        actor_config=actor.config,
        counters={"step": trainer.collected_frames, "env_steps": hooks.env_steps},
        modules={"policy": actor},
    )
    print(f"after {hooks.env_steps} environment steps:", result.summary())
    print(path)
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
