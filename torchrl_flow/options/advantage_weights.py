"""The options common to the offline and online recipes of advantage-weighted cloning."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torchrl_flow.options.names import DemoPath
from torchrl_flow.options.recipe_arguments import PolicyOfTaskArgs, SimulationArgs, TrainingArgs
from torchrl_flow.options.types import Count, Decay, Fraction, NonNegative, NonNegativeInt, Positive, Rate, Sizes

__all__ = ["AdvantageWeightArgs", "OnlineAdvantageWeightArgs"]

_PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {"gamma": 0.99, "beta": 20.0, "weight_clip": 20.0, "baseline": "policy"},
    "published": {"gamma": 0.9, "beta": 100.0, "weight_clip": 200.0, "baseline": "batch"},
}


@dataclasses.dataclass(kw_only=True)
class AdvantageWeightArgs(TrainingArgs, SimulationArgs, PolicyOfTaskArgs):
    """Options of :class:`~torchrl_flow.objectives.AWFlowLoss`, with its recommended and its published values."""

    demos: DemoPath | None = None
    """trajectory file (.h5) or demo store; by default the demonstrations that the policy was trained on"""
    obs_horizon: Count | None = None
    """require a policy with this number of frames"""
    pred_horizon: Count | None = None
    """require a policy with this chunk length"""
    act_horizon: Count | None = None
    """require a policy that executes this number of steps"""
    batch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 3e-4
    """learning rate of the actor"""
    critic_lr: Positive = 1e-3
    """learning rate of the critic"""
    tau: Rate = 0.01
    """rate (tau) at which the target critic follows the critic"""
    ema: Decay = 0.995
    """decay of the averaged policy"""
    num_qs: Count = 10
    """members of a new critic"""
    num_min_qs: Count = 2
    """members in the minimum of the target"""
    critic_hidden: Sizes = (256, 256)
    """widths of the hidden layers of a new critic"""
    num_action_samples: Count = 1
    """number of candidates for the next action; the target uses the best one"""
    best_of: tuple[Count, ...] = ()
    """also evaluate the policy with the best of this many samples, chosen by the critic"""
    noise_scales: tuple[NonNegative, ...] = ()
    """also evaluate with the flow noise multiplied by these factors; below 1, actions are closer to their mode"""

    preset: Literal["recommended", "published"] = "recommended"
    """defaults of --gamma, --beta, --weight-clip, --baseline and --advantage: those of AWFlowLoss or of
    AWFlowLoss.published"""
    extraction: Literal["weights", "q_gradient"] = "weights"
    """how the policy learns from the critic: by cloning with advantage weights, or by the gradient of Q through its
    one-step map; in the second case it acts with one step"""
    anchor: Literal["start", "average"] = "start"
    """with --extraction q_gradient, the anchor of the policy: the policy of --policy, or the average of the trained
    policy (see --ema)"""
    anchor_coeff: NonNegative = 1.0
    """with --extraction q_gradient, weight of the distance to the chunks of the anchor"""
    clone_coeff: NonNegative = 1.0
    """with --extraction q_gradient, weight of the cloning of demonstrations"""
    gamma: Fraction | None = None
    """discount of one environment step; by default 0.99, with --preset published 0.9"""
    beta: NonNegative | None = None
    """inverse temperature of the advantage weights; by default 20, with --preset published 100"""
    weight_clip: Positive | None = None
    """upper bound on the advantage weight of a row; by default 20, with --preset published 200"""
    baseline: Literal["batch", "policy"] | None = None
    """baseline of the advantages: the mean value of the batch (with --preset published), or the value of the policy in
    the same state (by default)"""
    advantage: Literal["critic", "td"] | None = None
    """advantage of a chunk: Q advantage (critic) or TD advantage (td); td needs --baseline policy, and is then
    the default"""
    num_baseline_samples: Count = 1
    """number of chunks drawn from the policy to estimate the value of a state"""
    advantage_norm: Literal["none", "std", "mad"] = "none"
    """how advantages are scaled before the weights: none, std or mad"""
    weighting: Literal["exp", "softmax", "binary"] = "exp"
    """how advantages become weights"""

    def __post_init__(self) -> None:
        """Set options that were not given to the values of the preset."""
        for name, value in _PRESETS[self.preset].items():
            setattr(self, name, value if getattr(self, name) is None else getattr(self, name))
        if self.advantage is None:
            self.advantage = "td" if self.baseline == "policy" and self.preset == "recommended" else "critic"

    def loss_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`~torchrl_flow.objectives.AWFlowLoss` that are given here."""
        names = ("extraction", "anchor", "anchor_coeff", "clone_coeff", "beta", "weight_clip", "baseline", "advantage")
        names += ("num_baseline_samples", "weighting", "advantage_norm", "gamma", "num_min_qs", "num_action_samples")
        return {name: getattr(self, name) for name in names}

    def stepper_options(self) -> dict[str, Any]:
        """Return the arguments of :func:`~torchrl_flow.policies.make_aw_flow_stepper` that are given here."""
        return {name: getattr(self, name) for name in ("lr", "critic_lr", "tau", "ema")}

    def wanted_horizons(self) -> dict[str, int | None]:
        """Return the horizons that the policy of ``--policy`` must have; ``None`` accepts any."""
        return {name: getattr(self, name) for name in ("obs_horizon", "pred_horizon", "act_horizon")}

    def check(self) -> None:
        """Refuse options without an effect."""
        super().check()
        if self.baseline == "batch" and (self.advantage == "td" or self.num_baseline_samples != 1):
            raise SystemExit(
                "--advantage td and --num-baseline-samples have no effect with --baseline batch: leave them out."
            )


@dataclasses.dataclass(kw_only=True)
class OnlineAdvantageWeightArgs(AdvantageWeightArgs):
    """Options of stage 3 of AWSC, which trains online with demonstrations in every batch."""

    recipe: str = "awsc"
    """name of the recipe in the table of results"""
    load_critic: bool = True
    """start with the critic of the checkpoint, not with a new critic"""
    chunks: Count = 4000
    """chunks to execute online"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side, 0 for one without batch dimension; by default 64 of the planar task and one
    of ManiSkill"""
    chunks_per_batch: Count | None = None
    """chunks that each environment executes between updates; by default 8 of one environment, one of several"""
    return_chunks: Count = 1
    """number of executed chunks whose rewards a TD target sums before it bootstraps; at most --chunks-per-batch"""
    utd_ratio: Positive = 1.0
    """updates of the critic per executed chunk"""
    actor_every: Count = 2
    """updates of the critic per update of the policy"""
    critic_warmup: NonNegativeInt = 0
    """updates of the critic before the first update of the policy; a new critic needs a few hundred"""
    online_ratio: Fraction = 0.5
    """share of online chunks in a batch"""
    filter_policy_data: bool = True
    """train the policy only on demonstrations and on online chunks with a positive advantage"""
    buffer_size: Count = 100_000
    """capacity for online chunks"""
    act_best_of: Count = 1
    """number of candidate chunks during collection; the one with the highest value is executed"""
    act_noise_scale: NonNegative = 1.0
    """standard deviation of the flow noise during collection; below 1, the policy explores less"""
    eval_every: NonNegativeInt = 50
    log_every: Count = 1
    save_every: Count = 50

    def check(self) -> None:
        """Refuse options that contradict each other or have no effect."""
        super().check()
        if self.act_best_of > 1 and self.act_noise_scale != 1:
            raise SystemExit("Give --act-best-of or --act-noise-scale, not both: a policy collects in one way.")
        if self.return_chunks > (self.chunks_per_batch or 1):
            raise SystemExit(
                f"--return-chunks {self.return_chunks} needs rollouts of as many chunks: give --chunks-per-batch "
                f"{self.return_chunks} or more."
            )
        if self.utd_ratio * self.chunks < 1:
            raise SystemExit(f"--utd-ratio {self.utd_ratio} of --chunks {self.chunks} makes no update: raise one.")

    def update_options(self) -> dict[str, Any]:
        """Return the update schedule for :func:`~torchrl_flow.policies.make_aw_flow_stepper`."""
        return {name: getattr(self, name) for name in ("actor_every", "critic_warmup", "utd_ratio")}
