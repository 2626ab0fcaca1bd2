"""Train TorchRL's SAC online on slate latents, as the paper's SAC+GeMS, and save its transitions as a data set.

    python -m torchrl_flow slate-models --env diffuse_topdown
    python examples/sac_slates.py --env diffuse_topdown
    python examples/td3_bc.py --data runs/sac_slates-diffuse_topdown-0/replay.npz

Observations are beliefs and actions are latents. An iteration plays one episode with each of many simulated users, and
then does gradient steps. The last lines compare the return with random latents, the short-term oracle and the oracle.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_flow.envs import TaskInfo
from torchrl_flow.evaluation import TRAINING_SEED, VALIDATION_SEED
from torchrl_flow.modules import ActionBox, StatePolicyConfig, make_state_policy, make_state_values
from torchrl_flow.offline import conclude_offline, offline_task
from torchrl_flow.options import (
    Count,
    ExistingFile,
    Fraction,
    NonNegativeInt,
    Positive,
    Rate,
    Sizes,
    TrainingArgs,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.recsys import (
    SlateEnv,
    SlateEnvName,
    SlateModels,
    play_latent_policy,
    q_diagnostics,
    write_latent_transitions,
)
from torchrl_flow.runs import Run
from torchrl_flow.training import ReplayState, gradient_step, require_finite_rollout


@dataclasses.dataclass(kw_only=True)
class Args(TrainingArgs):
    """Options of the recipe."""

    env: SlateEnvName = "diffuse_topdown"
    """environment; see torchrl_flow.recsys.SLATE_ENVS"""
    models: ExistingFile | None = None
    """belief encoder and ranker; by default runs/slate_models/ENV.torchrl"""
    num_envs: Count = 128
    """users of an iteration, one episode each"""
    iterations: Count = 20
    """iterations of collecting and updating"""
    updates: Count = 300
    """gradient steps of an iteration"""
    batch_size: Count = 256
    """transitions per gradient step"""
    warm_up: NonNegativeInt = 1
    """number of initial iterations with random latents"""
    gamma: Fraction = 0.8
    """discount"""
    tau: Rate = 0.01
    """rate (tau) at which the target critics follow the critics"""
    lr: Positive = 1e-3
    """learning rate"""
    alpha: Positive = 0.05
    """temperature at the start"""
    target_entropy: float | None = None
    """target entropy of the temperature; by default -1 per dimension of the latent"""
    hidden_sizes: Sizes = (256, 256)
    """hidden layers of policy and critics"""
    eval_episodes: Count = 256
    """users of an evaluation"""
    eval_every: NonNegativeInt = 5
    log_every: Count = 1
    save_every: Count = 5


def make_loss(args: Args, models: SlateModels) -> tuple[StatePolicyConfig, Any, SACLoss]:
    """Build the policy, and TorchRL's SAC loss with two critics."""
    state, action = models.encoder.belief_dim, models.ranker.config.latent_dim
    config = StatePolicyConfig(state, action, "gaussian", args.hidden_sizes, layer_norm=True)
    policy: Any = make_state_policy(config).to(args.device)
    loss = SACLoss(
        policy,
        [critic.to(args.device) for critic in make_state_values(config)],  # pyright: ignore[reportArgumentType]
        action_spec=Bounded(-1.0, 1.0, torch.Size([action]), device=args.device),
        loss_function="l2",
        alpha_init=args.alpha,
        target_entropy=-float(action) if args.target_entropy is None else args.target_entropy,
    )
    loss.make_value_estimator(gamma=args.gamma)
    return config, policy, loss


@torch.no_grad()
def collect(args: Args, models: SlateModels, policy: Any, iteration: int) -> TensorDictBase:
    """Play an episode with each new user (with random latents at first), and return the transitions ``[N]``."""
    env: Any = models.env(args.num_envs, seed=TRAINING_SEED * (args.seed + 1) + iteration * args.num_envs)
    with set_exploration_type(ExplorationType.RANDOM):
        data = env.rollout(env.base_env.max_episode_steps, policy if iteration > args.warm_up else None)
    require_finite_rollout(data, f"Iteration {iteration} of {args.env}")
    kept = ("observation", "action", ("next", "observation"), ("next", "reward"))
    return data.select(*kept, ("next", "done"), ("next", "terminated"), ("next", "truncated")).reshape(-1).clone()


def train(args: Args, run: Run, models: SlateModels, buffer: TensorDictReplayBuffer, policy: Any, loss: Any) -> None:
    """Run the training loop."""
    target = SoftUpdate(loss, tau=args.tau)
    # One optimiser equals three, since each term affects the parameters of only one network.
    optimizer = torch.optim.Adam(loss.parameters(), args.lr, fused=True)
    state = {"replay": ReplayState(buffer)}
    run.track(modules={"policy": policy, "loss": loss}, optimizers={"adam": optimizer}, state=state)
    compute = args.compiled(loss)
    for step in run.steps(args.iterations, save_every=args.save_every):
        data = collect(args, models, policy, step)
        buffer.extend(data.to(args.device))
        metrics: dict[str, Any] = {"return": data["next", "reward"].sum() / args.num_envs, "env_steps": len(buffer)}
        for _ in range(args.updates):
            batch = buffer.sample()
            losses = compute(batch)
            due = {name: losses[name] for name in ("loss_actor", "loss_qvalue", "loss_alpha")}
            norms = gradient_step(due, {"adam": optimizer}, step=step, batch=batch)
            target.step()
            metrics |= dict(losses.items()) | norms
        if run.due(args.log_every):
            run.log({f"train/{key}": value for key, value in metrics.items()} | q_diagnostics(loss, batch, policy))
        if run.due(args.eval_every):
            run.log(play_latent_policy(models, policy, episodes=args.eval_episodes, seed=VALIDATION_SEED).metrics())
            run.request_save()


def main(args: Args) -> None:
    """Load the models, train the policy, write the data set, and evaluate."""
    args.prepare()
    path = Path(args.models or Path("runs/slate_models") / f"{args.env}.torchrl")
    if not path.exists():
        raise SystemExit(
            f"There are no models in {path}: make them with `python -m torchrl_flow slate-models --env {args.env}`."
        )
    models = SlateModels.load(path)
    if models.env_name != args.env:
        raise SystemExit(
            f"--models belong to {models.env_name}, not to --env {args.env}: give the models of {args.env}."
        )
    config, policy, loss = make_loss(args, models)
    box = ActionBox(models.ranker.action_low, models.ranker.action_high)
    configs = {"state_policy": config, "action_box": {"low": box.low.tolist(), "high": box.high.tolist()}}
    length: int = SlateEnv(args.env, 1, catalogue=models.catalogue).max_episode_steps
    # One row more than needed: a full ring restarts at row 0, and --resume could not extend it.
    steps = args.iterations * args.num_envs * length + 1
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(steps, device=args.device), batch_size=args.batch_size)
    name = f"sac_slates-{args.env}-{args.seed}"
    best = "eval/return" if args.eval_every else None
    task = TaskInfo(task=args.env, obs_mode="belief", control_mode="latent", details=models.hashes)
    recipe = {"recipe": "sac"}
    with args.open_run(name, task=task, config=recipe, module_configs=configs, keep_best=best) as run:
        train(args, run, models.to(args.device), buffer, policy, loss)
        models.to("cpu")
        data = run.directory / "replay.npz"
        data.unlink(missing_ok=True)  # left by a shorter run
        write_latent_transitions(data, models, buffer[: len(buffer)].cpu(), policy="sac", seed=args.seed)
        replay = offline_task(data, models, gamma=args.gamma, device=args.device)
        print(conclude_offline(run, replay, policy, recipe="sac", loss=loss))


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
