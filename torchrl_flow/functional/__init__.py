"""Pure functions of tensors: the equations that the classes call."""

from __future__ import annotations

from torchrl_flow.functional.activation import mish
from torchrl_flow.functional.advantage import (
    AdvantageNorm,
    Weighting,
    advantage_weights,
    batch_advantage,
    effective_sample_size,
)
from torchrl_flow.functional.chain import (
    LogProbReduction,
    NoiseSchedule,
    bounded_sigma,
    chain_entropy,
    chain_log_prob,
    chain_times,
    chunk_transport_cost,
    max_sigma_schedule,
)
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
from torchrl_flow.functional.observation import flatten_state, state_paths
from torchrl_flow.functional.slate import binary_auc, gaussian_kl, latent_sample, slate_vae_terms
from torchrl_flow.functional.statistics import wilson_interval

__all__ = [
    "AdvantageNorm",
    "ChunkAlignment",
    "EnsembleReduction",
    "LogProbReduction",
    "NoiseSchedule",
    "VelocityFn",
    "Weighting",
    "advantage_weights",
    "batch_advantage",
    "binary_auc",
    "bounded_sigma",
    "chain_entropy",
    "chain_log_prob",
    "chain_times",
    "chunk_return",
    "chunk_transport_cost",
    "consistency_rows",
    "dyadic_step_sizes",
    "effective_sample_size",
    "euler_step",
    "executed_mask",
    "executed_slice",
    "executed_steps",
    "flatten_state",
    "gaussian_kl",
    "integrate",
    "interpolate",
    "is_power_of_two",
    "latch",
    "latent_sample",
    "masked_mean_square",
    "max_sigma_schedule",
    "mish",
    "reduce_ensemble",
    "select_dyadic_steps",
    "shortcut_target",
    "slate_vae_terms",
    "state_paths",
    "subset_min",
    "take_best",
    "upper_confidence_bound",
    "velocity_target",
    "wilson_interval",
]
