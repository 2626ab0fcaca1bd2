"""Clone a ShortCut flow policy from demonstrations and evaluate it: stage 1 of all recipes with flows.

    python examples/shortcut_flow_bc.py --task PushCube-v1

Takes about 5 minutes on one CPU core for PushCube-v1 with --iterations 2500, success_once about 0.98; for other tasks
see docs/results.md. Without --demos, ManiSkill's motion planner makes demonstrations. The policy is trained and
evaluated over fixed seeds at several numbers of sampling steps, and the path of the report is printed last. --resume
continues a stopped run.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from torchrl.envs import EnvBase

from torchrl_flow.data import DemoReplayBuffer
from torchrl_flow.demos import DemoSource
from torchrl_flow.envs import ObsMode, TaskInfo, action_bounds, make_evaluation_env, task_info
from torchrl_flow.evaluation import EvaluationResult, evaluate, validation_seeds
from torchrl_flow.modules import FlowActor, FlowActorConfig, make_flow_actor
from torchrl_flow.objectives import DirectSoftUpdate, ShortCutFlowLoss
from torchrl_flow.options import (
    Count,
    Decay,
    DemonstrationArgs,
    ImageArgs,
    NonNegative,
    NonNegativeInt,
    NotAbove,
    Positive,
    SamplingSteps,
    SimulationArgs,
    TaskName,
    TrainingArgs,
    check_demonstrations,
    check_images,
    check_network,
    check_task,
    parse_options,
    refusals_in_one_line,
)
from torchrl_flow.policies import evaluation_env_options
from torchrl_flow.reports import conclude_run
from torchrl_flow.runs import Run
from torchrl_flow.training import gradient_step, warmup_cosine


@dataclasses.dataclass(kw_only=True)
class Args(TrainingArgs, SimulationArgs, DemonstrationArgs, ImageArgs):
    """Options of the recipe."""

    task: TaskName = "PushCube-v1"
    """ManiSkill id of the task, planar, or a function that makes your own environment, such as my_package:make_env"""
    obs_mode: ObsMode = "state"
    """observations of the policy"""
    control_mode: str | None = None
    """ManiSkill's controller; default: the controller of --demos, or pd_ee_delta_pose if --demos is not given"""
    network: Literal["mlp", "concat_mlp", "unet", "dit"] = "mlp"
    """velocity network; concat_mlp takes half the time of mlp"""
    width: Count = 256
    """width of the velocity network: hidden units (both MLPs), token size (dit), channels of the finest level (unet)"""
    depth: Count = 3
    """blocks (both MLPs, dit) or levels (unet) of the velocity network"""
    obs_horizon: Count = 1
    """frames of observation history; with 2 frames and planner demonstrations the policy copies its own velocity"""
    pred_horizon: Count = 16
    """steps of a predicted chunk"""
    act_horizon: Annotated[Count, NotAbove("pred_horizon")] = 8
    """steps of a chunk that are executed"""
    num_steps: SamplingSteps = 4
    """sampling steps K: a power of two up to 16"""
    iterations: Count = 5000
    """gradient steps"""
    batch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 1e-3
    """learning rate at its peak; warm-up of 200 steps, then a cosine"""
    weight_decay: NonNegative = 1e-4
    """weight decay of AdamW"""
    ema: Decay = 0.999
    """decay of the averaged policy"""
    state_noise: NonNegative = 0.03
    """scale of the noise added to normalised states in training"""
    noise_scales: tuple[NonNegative, ...] = ()
    """also evaluate with the flow noise multiplied by these factors; below 1, actions are closer to their mode"""
    eval_episodes: Count = 50
    eval_every: NonNegativeInt = 1000
    compare_steps: tuple[SamplingSteps, ...] = (1, 2, 4, 8)
    """numbers of sampling steps to evaluate at the end"""
    save_every: Count = 1000

    def check(self) -> None:
        """Refuse options that contradict each other or define an invalid environment or network."""
        super().check()
        check_task(self.task, self.obs_mode, self.control_mode)
        check_demonstrations(self.task, self.demos, quality=self.quality, retime=self.retime)
        check_images(self.task, self.obs_mode, self.demos, self.image_size, self.pixel_channels)
        simulation_of(self)
        horizons = {"obs_horizon": self.obs_horizon, "pred_horizon": self.pred_horizon, "act_horizon": self.act_horizon}
        check_network(network=self.network, width=self.width, depth=self.depth, **horizons)


def simulation_of(args: Args) -> dict[str, Any]:
    """Return the number of environments and the simulation, if given."""
    asked: dict[str, Any] = {"num_envs": args.num_envs, "sim_backend": args.sim_backend}
    return evaluation_env_options(args.task, obs_mode=args.obs_mode, **asked)


def make_data(args: Args, source: DemoSource, task: TaskInfo) -> DemoReplayBuffer:
    """Make or read the demonstrations, as a replay buffer of action chunks."""
    chunks = {name: getattr(args, name) for name in ("pred_horizon", "act_horizon", "obs_horizon", "batch_size")}
    # Padding is a target too, so that the policy holds still after the last step of a demonstration.
    options: dict[str, Any] = {"next_obs": False, "device": args.device, "uses_rewards": False, **chunks}
    return source.load(task, padding="hold", mask_padding=False, **options)


def make_actor(args: Args, data: DemoReplayBuffer, env: EnvBase) -> FlowActor:
    """Build the policy for the data's shapes, with its statistics and the environment's bounds inside."""
    names = ("obs_horizon", "pred_horizon", "act_horizon", "network", "width", "depth", "num_steps", "state_noise")
    fields = {name: getattr(args, name) for name in (*names, "pixel_channels", "shift")}
    config = FlowActorConfig.of_batch(data[[0]], **fields)
    low, high = action_bounds(env)
    actor = make_flow_actor(config, statistics=data.statistics(), action_low=low, action_high=high)
    return actor.to(args.device)


def make_env(args: Args, source: DemoSource) -> EnvBase:
    """Make the evaluation environment, whose episodes run to the time limit."""
    return make_evaluation_env(
        args.task,
        episodes=args.eval_episodes,
        obs_mode=args.obs_mode,
        control_mode=args.control_mode or source.control_mode,
        max_episode_steps=args.max_episode_steps,
        obs_horizon=args.obs_horizon,
        act_horizon=args.act_horizon,
        gamma=0.99,
        image_size=source.recorded_size,
        **simulation_of(args),
    )


def train(args: Args, run: Run, data: DemoReplayBuffer, loss_module: ShortCutFlowLoss, env: EnvBase) -> None:
    """Run the training loop."""
    ema = DirectSoftUpdate(loss_module, eps=args.ema)
    optimizer = torch.optim.AdamW(
        loss_module.parameters(), args.lr, (0.9, 0.99), weight_decay=args.weight_decay, fused=True
    )
    modules = {"policy": loss_module.actor_network, "ema_policy": loss_module.ema_actor}
    run.track(modules=modules, optimizers={"adamw": optimizer})
    compute = args.compiled(loss_module)
    for step in run.steps(args.iterations, save_every=args.save_every):
        optimizer.param_groups[0]["lr"] = warmup_cosine(args.lr, step, args.iterations)
        batch = data.sample()
        losses = compute(batch)
        total = {"loss_flow": losses["loss_flow"]}
        norms = gradient_step(total, {"adamw": optimizer}, step=step, batch=batch, max_grad_norm=1.0)
        ema.eps = min(args.ema, (1 + step) / (10 + step))
        ema.step()
        if run.due(args.log_every):
            metrics = {**losses, "gradient_norm": norms["gradient_norm_adamw"]}
            run.log({f"train/{key}": value for key, value in metrics.items()})
        if args.eval_every and step % args.eval_every == 0:
            result = evaluate(env, loss_module.ema_actor(), validation_seeds(50), progress=False)
            run.log_evaluation(result.metrics())


def main(args: Args) -> EvaluationResult:
    """Load the data, build and train the policy, evaluate, and write the report."""
    args.prepare()
    source = DemoSource(args.demos, args.num_demos, args.quality, args.retime, args.seed, image_size=args.image_size)
    env = make_env(args, source)
    task = task_info(env)
    data = make_data(args, source, task)
    actor = make_actor(args, data, env)
    with args.open_run(
        f"shortcut_flow_bc-{args.task}-{args.obs_mode}-{args.seed}",
        task=task,
        config={"demonstrations": dataclasses.asdict(source)},
        actor_config=actor.config,
        keep_best="eval/success_once",
    ) as run:
        loss_module = ShortCutFlowLoss(actor)
        train(args, run, data, loss_module, env)
        notes = [f"{data.store.num_episodes} demonstrations, {len(data)} steps."]
        options: dict[str, Any] = {"num_steps": args.compare_steps, "notes": notes}
        result, report = conclude_run(run, loss_module.ema_actor(), env, recipe="shortcut_flow", **options)
    print(result.summary(), report.resolve(), sep="\n")
    return result


if __name__ == "__main__":
    with refusals_in_one_line():
        main(parse_options(Args, description=__doc__))
