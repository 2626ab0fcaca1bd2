"""Pure functions of tensors: the equations that the classes call."""

from __future__ import annotations

from torchrl_flow.functional.advantage import (
    AdvantageNorm,
    Weighting,
    advantage_weights,
    batch_advantage,
    effective_sample_size,
)
from torchrl_flow.functional.aliasing import DecodeFn, alias_residual, best_alias, invert_noise, reverse_flow
from torchrl_flow.functional.chunk import (
    ChunkAlignment,
    chunk_return,
    executed_mask,
    executed_slice,
    executed_steps,
    latch,
)
from torchrl_flow.functional.ensemble import (
    EnsembleReduction,
    reduce_ensemble,
    subset_min,
    take_best,
    upper_confidence_bound,
)
from torchrl_flow.functional.flow import (
    VelocityFn,
    consistency_rows,
    dyadic_step_sizes,
    euler_step,
    integrate,
    interpolate,
    is_power_of_two,
    masked_mean_square,
    select_dyadic_steps,
    shortcut_target,
    velocity_target,
)
from torchrl_flow.functional.latent import (
    SteerMode,
    bound_latent,
    bound_log_det,
    candidate_weights,
    expand_latent,
    kl_to_prior,
    mixture_log_prob,
    normal_log_prob,
    unbound_latent,
)
from torchrl_flow.functional.observation import flatten_state, state_paths
from torchrl_flow.functional.statistics import wilson_interval

__all__ = [
    "AdvantageNorm",
    "ChunkAlignment",
    "DecodeFn",
    "EnsembleReduction",
    "SteerMode",
    "VelocityFn",
    "Weighting",
    "advantage_weights",
    "alias_residual",
    "batch_advantage",
    "best_alias",
    "bound_latent",
    "bound_log_det",
    "candidate_weights",
    "chunk_return",
    "consistency_rows",
    "dyadic_step_sizes",
    "effective_sample_size",
    "euler_step",
    "executed_mask",
    "executed_slice",
    "executed_steps",
    "expand_latent",
    "flatten_state",
    "integrate",
    "interpolate",
    "invert_noise",
    "is_power_of_two",
    "kl_to_prior",
    "latch",
    "masked_mean_square",
    "mixture_log_prob",
    "normal_log_prob",
    "reduce_ensemble",
    "reverse_flow",
    "select_dyadic_steps",
    "shortcut_target",
    "state_paths",
    "subset_min",
    "take_best",
    "unbound_latent",
    "upper_confidence_bound",
    "velocity_target",
    "wilson_interval",
]
