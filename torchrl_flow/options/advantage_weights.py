"""The options of advantage-weighted cloning, which its offline and its online recipe have in common."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torchrl_flow.options.run_arguments import RunArgs
from torchrl_flow.options.types import Count, Fraction, NonNegative, Positive

__all__ = ["AdvantageWeightArgs"]

_PRESETS: dict[str, dict[str, Any]] = {
    "recommended": {"gamma": 0.99, "beta": 20.0, "weight_clip": 20.0, "baseline": "policy"},
    "published": {"gamma": 0.9, "beta": 100.0, "weight_clip": 200.0, "baseline": "batch"},
}


@dataclasses.dataclass(kw_only=True)
class AdvantageWeightArgs(RunArgs):
    """Options of :class:`~torchrl_flow.objectives.AWFlowLoss`, with its recommended and its published values."""

    preset: Literal["recommended", "published"] = "recommended"
    """values of --gamma, --beta, --weight-clip, --baseline and --advantage if not given: those of AWFlowLoss, or
    those of AWFlowLoss.published"""
    extraction: Literal["weights", "q_gradient"] = "weights"
    """how the policy learns from the critic: it clones rows by their advantage weights, or it follows the gradient of Q
    through its own one-step map and then acts by one step"""
    anchor: Literal["start", "average"] = "start"
    """with --extraction q_gradient, what keeps the policy near: the policy of --policy, or its own average, which --ema
    moves"""
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
    """what advantages are relative to: the mean value of the batch (with --preset published), or the value of the
    policy in the same state (by default)"""
    advantage: Literal["critic", "td"] | None = None
    """advantage of a chunk: Q advantage (critic) or TD advantage (td); td needs --baseline policy, and is then
    the default"""
    num_baseline_samples: Count = 1
    """chunks that are drawn from the policy in a state to estimate the value of the state"""
    advantage_norm: Literal["none", "std", "mad"] = "none"
    """how advantages are scaled before the weights: none, std or mad"""
    weighting: Literal["exp", "softmax", "binary"] = "exp"
    """how advantages become weights"""

    def __post_init__(self) -> None:
        """Take the preset's values for what was not given."""
        for name, value in _PRESETS[self.preset].items():
            setattr(self, name, value if getattr(self, name) is None else getattr(self, name))
        if self.advantage is None:
            self.advantage = "td" if self.baseline == "policy" and self.preset == "recommended" else "critic"

    def check(self) -> None:
        """Refuse options without an effect."""
        if self.baseline == "batch" and (self.advantage == "td" or self.num_baseline_samples != 1):
            raise SystemExit(
                "--advantage td and --num-baseline-samples have no effect with --baseline batch: leave them out."
            )
