"""Options common to several recipes, one class for each purpose; a recipe's ``Args`` inherits from them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from torchrl_flow.envs.names import AfterSuccess
from torchrl_flow.options.collection import CollectorArgs
from torchrl_flow.options.compilation import CompileArgs
from torchrl_flow.options.names import (
    DemoPath,
    ExistingFile,
    Installed,
    LoggedData,
    RunSource,
    TaskName,
    WritableDirectory,
    WritableFile,
)
from torchrl_flow.options.types import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Rate,
    SamplingSteps,
    Seeds,
    Sizes,
)
from torchrl_flow.runs.names import Which

if TYPE_CHECKING:
    from tensordict import TensorDictBase

__all__ = [
    "DemonstrationArgs",
    "ImageArgs",
    "LatentCriticArgs",
    "OfflineArgs",
    "OnlineArgs",
    "OnlineSteeringArgs",
    "PolicyArgs",
    "PolicyOfTaskArgs",
    "SimulationArgs",
    "SteeringArgs",
    "SweepArgs",
    "TrainingArgs",
]


@dataclasses.dataclass(kw_only=True)
class TrainingArgs(CompileArgs):
    """Compilation of the loss, and intervals of evaluation, logging and saving in iterations of the training loop."""

    eval_episodes: Count = 100
    """episodes of the final evaluation, from seed 10000 on"""
    eval_every: NonNegativeInt = 500
    """iterations between evaluations on other episodes; 0 for none"""
    log_every: Count = 100
    """iterations between two lines of metrics"""
    save_every: Count = 500
    """iterations between checkpoints"""


@dataclasses.dataclass(kw_only=True)
class SimulationArgs:
    """Environments in which a policy is trained or evaluated."""

    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension; by default as many as suit the task"""
    sim_backend: str | None = None
    """ManiSkill's simulation; by default physx_cuda for several environments if there is a CUDA device, else
    physx_cpu"""
    max_episode_steps: Count | None = None
    """time limit of an episode; by default the time limit of the task, or of the policy that a run starts from"""
    num_videos: NonNegativeInt = 4
    """episodes to film; ManiSkill on a machine that cannot render is drawn from the poses of gripper and objects"""


@dataclasses.dataclass(kw_only=True)
class DemonstrationArgs:
    """Demonstrations to clone: their path, or how they are made."""

    demos: DemoPath | None = None
    """trajectory file (.h5) or demo store; by default demonstrations are made by the motion planner or the planar
    script"""
    num_demos: Count = 100
    """demonstrations to train on"""
    retime: bool | None = None
    """re-time the demonstrations that the recipe makes and add pushes, see docs/demonstrations.md; on by default
    for end-effector deltas"""
    quality: str | None = None
    """quality of demonstrations that are made: expert or mixed, and for the planar task also medium or poor; by default
    mixed for the planar task, else expert"""


@dataclasses.dataclass(kw_only=True)
class ImageArgs:
    """Images that a policy observes, and their encoder."""

    image_size: Count | None = None
    """height and width of ManiSkill's images, in pixels; by default those of --demos, or of the task's camera (128)"""
    pixel_channels: Sizes = (32, 64, 64)
    """channels of the image encoder's convolutions, each of which halves height and width; fewer channels are faster"""
    shift: NonNegativeInt = 4
    """largest random shift of images in training, in pixels; use a smaller one for small objects in small images"""


@dataclasses.dataclass(kw_only=True)
class OnlineArgs(TrainingArgs, CollectorArgs, SimulationArgs):
    """Environments for online training, and the discount of their rewards."""

    ray_workers: Annotated[Count | None, Installed("ray", "sweep")] = None
    """Ray workers that collect instead of --collectors, with --num-envs environments and one CPU each; a worker that
    dies is replaced. --resume starts new episodes"""
    ray_address: str | None = None
    """with --ray-workers, address of the Ray cluster (auto, HEAD:6379); by default only this machine"""
    after_success: AfterSuccess = "end"
    """end a training episode at its first success, or continue it to the time limit; in the second case sparse rewards
    are given at every step at the goal, and the policy learns to stay there"""
    gamma: Fraction = 0.99
    """discount of one environment step"""

    def check(self) -> None:
        """Refuse options of processes that contradict each other or have no effect."""
        super().check()
        if self.ray_workers is not None and self.collectors > 1:
            raise SystemExit(
                f"Give --collectors {self.collectors} or --ray-workers {self.ray_workers}, not both: the first are "
                "processes of this machine, the second are Ray's."
            )
        if self.ray_address is not None and self.ray_workers is None:
            raise SystemExit(f"--ray-address {self.ray_address} has no effect without --ray-workers: give both.")

    def env_options(self) -> dict[str, Any]:
        """Return the arguments of :func:`~torchrl_flow.policies.make_training_envs` that are given here."""
        names = ("num_envs", "sim_backend", "collectors", "ray_workers", "ray_address", "max_episode_steps")
        names += ("collector_sync", "after_success", "gamma")
        return {"episodes": self.eval_episodes, **{name: getattr(self, name) for name in names}}


@dataclasses.dataclass(kw_only=True)
class PolicyArgs:
    """The policy that a run starts from."""

    policy: RunSource
    """run directory or checkpoint of the flow policy to start from"""
    which: Which = "best"
    """checkpoint of the --policy run, and of --init: best (the last one, if the run keeps no best one) or last"""


@dataclasses.dataclass(kw_only=True)
class PolicyOfTaskArgs(PolicyArgs):
    """The policy that a run starts from, and its required task."""

    task: TaskName | None = None
    """require a policy of this task"""
    control_mode: str | None = None
    """require a policy of this control mode"""


@dataclasses.dataclass(kw_only=True)
class SteeringArgs(TrainingArgs, SimulationArgs, PolicyArgs):
    """Options of a latent policy that steers a frozen flow, the policy that the run starts from."""

    steer_mode: Literal["full", "act_horizon", "tied"] = "tied"
    """noise that the latent sets: of all steps, of the executed steps, or one vector for all steps"""
    latent_bound: Positive | None = 2.0
    """b of the bound b tanh(u / b) on the latent; None: no bound"""
    hidden_sizes: Sizes = (128, 128, 128)
    """widths of the hidden layers of the networks that this recipe trains"""
    num_steps: SamplingSteps | None = None
    """sampling steps K of the flow; by default those of --init, or else of the --policy run"""
    train_encoder: bool = False
    """train separate image encoders for policy and critics (a replay buffer then keeps images); otherwise they read
    features of the encoder of the frozen flow"""
    num_videos: NonNegativeInt = 0


@dataclasses.dataclass(kw_only=True)
class OnlineSteeringArgs(SteeringArgs, OnlineArgs):
    """Options of a latent policy that is trained online."""

    init: RunSource | None = None
    """run directory or checkpoint of stage 1, to start from its latent policy, critics and options; by default the
    latent policy starts as the prior"""
    rollout: Count = 13
    """chunks per environment and iteration"""
    iterations: Count
    """iterations of collecting and updating"""
    log_every: Count = 1


@dataclasses.dataclass(kw_only=True)
class LatentCriticArgs:
    """Critics of latents, their distillation from a critic of actions, and the latents of demonstrations."""

    cache: WritableDirectory = "demos"
    """directory in which the latents of demonstrations are cached"""
    num_qs: Count = 4
    """number of critics"""
    batch_size: Count = 256
    """chunks per gradient step"""
    gamma: Fraction = 0.99
    """discount of one environment step"""
    tau: Rate = 0.02
    """rate (tau) at which the target critics follow the critics"""
    alpha: Positive = 3e-3
    """temperature of SAC at the start"""
    target_entropy: float | None = 0.0
    """target entropy of the temperature; by default -0.5 per dimension of the latent"""
    distillation: Literal["forward", "aliased", "both"]
    """pairs for the distillation: latents of the prior, latents of the demonstrations or the replay buffer, or both"""
    distill_latents: Count = 8
    """latents of the prior for each state of a distillation step; the number of states is divided by this number"""
    within_state_weight: Positive = 30.0
    """weight of the differences between the latents of one state in the distillation; 1 is the plain squared error"""

    def sac_options(self) -> dict[str, Any]:
        """Return the arguments of :func:`~torchrl_flow.policies.make_latent_losses` that are given here."""
        entropy: Any = "auto" if self.target_entropy is None else self.target_entropy
        options = {"gamma": self.gamma, "alpha_init": self.alpha, "target_entropy": entropy}
        pairs: dict[str, Any] = {"mode": self.distillation}
        if self.distillation != "aliased" and self.distill_latents > 1:  # Otherwise each state has one pair.
            pairs |= {"num_latents": self.distill_latents, "within_state_weight": self.within_state_weight}
        return {**pairs, "tau": self.tau, **options}

    def distillation_rows(self, batch: TensorDictBase) -> TensorDictBase:
        """Return the number of rows for one distillation step, which makes --batch-size pairs from them."""
        return batch if self.distillation == "aliased" else batch[: max(1, len(batch) // self.distill_latents)]


@dataclasses.dataclass(kw_only=True)
class OfflineArgs(TrainingArgs):
    """Logged transitions, and the environment in which a policy trained on them is evaluated."""

    data: LoggedData = "data/diffuse_topdown-medium-300000.npz"
    """logged transitions: a file of collect-slates, or any .npz file with the arrays of D4RL"""
    env: str | None = None
    """environment to evaluate in: a slate env, sardine/NAME, gym/NAME or none; default: the one named in the data"""
    models: ExistingFile | None = None
    """belief encoder and ranker of the slate recommender; by default runs/slate_models/ENV.torchrl"""
    references: bool = True
    """also measure the returns of the reference policies"""
    iterations: Count = 20_000
    """gradient steps of the critics, or of a policy without critics"""
    batch_size: Count = 256
    """transitions per gradient step"""
    state_bound: Positive | None = None
    """bound on normalised observations, in standard deviations; by default 2 for the slate recommender, otherwise 5"""
    eval_episodes: Count = 256
    """episodes of an evaluation"""
    eval_every: NonNegativeInt = 5_000
    log_every: Count = 1_000
    save_every: Count = 2_000


@dataclasses.dataclass(kw_only=True)
class SweepArgs:
    """Many runs of recipes: seeds, directory, and number of runs at a time."""

    seeds: Seeds = (0,)
    """seeds of each configuration"""
    directory: WritableDirectory
    """directory of the runs"""
    results: WritableFile = "runs/results.csv"
    """table of results; the rows of a run replace the rows that the same run wrote before"""
    eval_episodes: Count = 100
    """episodes of each final evaluation"""
    device: str = "cpu"
    """device of the runs: cpu, cuda, or auto for cuda if there is a GPU"""
    workers: Count | None = None
    """runs at a time; by default the number of CPUs"""
    threads: Count = 1
    """CPU threads of a run"""
    gpus_per_run: NonNegative | None = None
    """GPUs of a run, or a fraction of a GPU; by default all workers share the GPUs, if --device uses them"""
    address: str | None = None
    """address of a Ray cluster"""
    dry_run: bool = False
    """only print the commands"""

    def sweep_options(self) -> dict[str, Any]:
        """Return the arguments of :func:`~torchrl_flow.sweeps.run_sweep` that are given here."""
        options = {"workers": self.workers, "cpus_per_run": self.threads, "gpus_per_run": self.gpus_per_run}
        return {**options, "device": self.device, "address": self.address}
