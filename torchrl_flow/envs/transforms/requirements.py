"""Requirements of a chunk transform on its environment, and the spec of the summed rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.data.tensor_specs import ContinuousBox
from torchrl.envs import EnvBase, StepCounter, Transform
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.envs import unwrap
from torchrl_flow.util.torchrl_compat import resets_itself

__all__ = [
    "check_can_skip_rendering",
    "check_no_autoreset",
    "float_dtype",
    "single_reward",
    "sum_spec",
]


def check_no_autoreset(base_env: EnvBase) -> None:
    """Raise RuntimeError if ``base_env`` resets itself."""
    if resets_itself(base_env):
        raise RuntimeError(
            "the base env resets itself when an episode ends, which would mix two episodes in a chunk: "
            "switch its native auto-reset off."
        )


def check_can_skip_rendering(base_env: EnvBase, transforms: Sequence[Transform]) -> None:
    """Raise ValueError if the last image of an episode could be skipped."""
    env = unwrap.base_env(base_env)
    if isinstance(env, BatchedEnvBase):
        raise ValueError("render_last needs the transform inside of the workers of a batched env.")
    if not hasattr(env, "set_render_enabled"):
        raise ValueError(
            f"render_last needs a base env with `set_render_enabled`, which {type(env).__name__} lacks: "
            "leave render_last out."
        )
    if any(isinstance(t, StepCounter) and t.max_steps is not None for t in transforms):
        raise ValueError(
            "render_last cannot be combined with a StepCounter(max_steps=...) before SMDPChunk, which ends "
            "episodes without the env's knowledge: place it after, or set the env's own time limit."
        )


def single_reward(reward_spec: Composite) -> TensorSpec:
    """Return the spec of an env's single reward ``[*B, 1]``; raise ValueError for another shape or several rewards."""
    specs = {key: reward_spec[key] for key in reward_spec.keys(True, True)}
    if [spec.shape for spec in specs.values()] != [(*reward_spec.shape, 1)]:
        shapes = {key: tuple(spec.shape) for key, spec in specs.items()}
        raise ValueError(f"return_step_rewards needs an env with one reward of shape [*B, 1], got {shapes}.")
    return next(iter(specs.values()))


def sum_spec(spec: TensorSpec, total: float) -> TensorSpec:
    """Return the spec of a weighted sum of rewards; the first weight is 1, the sum of weights at most ``total``."""
    dtype = float_dtype(spec.dtype)
    if isinstance(spec, Bounded):
        box = cast(ContinuousBox, spec.space)
        low, high = box.low.to(dtype), box.high.to(dtype)
        return Bounded(
            low=torch.minimum(low, low * total),
            high=torch.maximum(high, high * total),
            shape=spec.shape,
            dtype=dtype,
            device=spec.device,
        )
    if dtype is spec.dtype:
        return spec
    return Unbounded(shape=spec.shape, dtype=dtype, device=spec.device)


def float_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, or the default dtype in place of an integer type."""
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
