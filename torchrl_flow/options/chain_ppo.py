"""The options of PPO on the denoising chain (ReinFlow)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from torchrl_flow.options.recipe_arguments import OnlineArgs
from torchrl_flow.options.types import Count, Fraction, NonNegative, NonNegativeInt, NotAbove, Positive

__all__ = ["ChainPPOArgs"]


@dataclasses.dataclass(kw_only=True)
class ChainPPOArgs(OnlineArgs):
    """Options of :class:`~torchrl_flow.objectives.ReinFlowPPOLoss`, of the flow's noise and of the advantage."""

    on_policy = True

    epochs: Count = 4
    """passes over an iteration's chunks"""
    minibatch_size: Count = 256
    """chunks per gradient step"""
    lr: Positive = 1e-4
    """learning rate of the flow and of the noise network"""
    critic_lr: Positive = 1e-3
    """learning rate of the value network"""
    max_grad_norm: Positive = 1.0
    """bound on the norm of the gradient, for the flow and for the value network"""
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
    target_kl: Positive | None = None
    """estimated KL divergence at which the epochs of an iteration stop; None: no limit"""
    critic_warmup_steps: NonNegativeInt = 20_000
    """environment steps in which only the value network is trained"""
    log_prob_reduction: Literal["mean", "sum"] = "mean"
    """whether the log-probability of the chain is the mean or the sum over steps, chunk and action dimensions"""
    mean_bound: Positive | None = None
    """clamp of the chain's means, in normalised units; for policies with min-max normalised actions"""
    sigma_min: Annotated[Positive, NotAbove("sigma_max")] = 0.05
    """lower bound of the noise, in units of normalised actions"""
    sigma_max: Positive = 0.3
    """upper bound of the noise at the start of training, in units of normalised actions"""
    noise_schedule: Literal["constant", "linear", "exponential"] = "linear"
    """schedule of the upper bound of the noise"""
    noise_decay_steps: Count = 6_000_000
    """environment steps over which the upper bound of the noise decreases"""
    train_encoder: bool = False
    """train the encoder too"""

    def loss_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`~torchrl_flow.objectives.ReinFlowPPOLoss` that are given here."""
        options = {"clip_epsilon": self.clip, "entropy_coeff": self.entropy_coef, "critic_coeff": self.value_coef}
        options |= {"anchor_coeff": self.anchor_coef, "warmup_steps": self.critic_warmup_steps}
        names = ("noise_schedule", "noise_decay_steps", "target_kl")
        return {**options, **{name: getattr(self, name) for name in names}}

    def chain_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`~torchrl_flow.modules.NoisyFlowActor` that are given here."""
        return {name: getattr(self, name) for name in ("log_prob_reduction", "mean_bound", "train_encoder")}
