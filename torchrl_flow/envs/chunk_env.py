"""Construction of chunk environments, and resets to fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase
from torchrl.envs import Compose, EnvBase, RenameTransform, RewardSum, Transform, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase

from torchrl_flow.envs.own import require_float32
from torchrl_flow.envs.transforms import SMDPChunk, history_transforms
from torchrl_flow.envs.transforms.frames import FrameRecorder
from torchrl_flow.envs.transforms.steps import StepRecorder
from torchrl_flow.envs.unwrap import base_env

__all__ = ["ChunkEnv", "base_env", "make_chunk_env", "reset_with_seeds"]

STEP_SUCCESS = "step_success"
"""Key of the success of the last executed env step; ``success`` is latched over the chunk."""

EPISODE_REWARD = "episode_reward"
"""Key of the undiscounted sum of env-step rewards, the default ``out_key`` of ``RewardSum``."""


class ChunkEnv(TransformedEnv):
    """A :class:`~torchrl.envs.TransformedEnv` whose ``step`` also writes the number of executed steps at the root.

    The value estimators of TorchRL's losses read it there. In a plain ``TransformedEnv``,
    :class:`~torchrl_flow.envs.SMDPChunk` writes it in rollouts and collectors, but not in a single call of ``step``.
    """

    def step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Execute a chunk for each sub-environment, see :class:`~torchrl_flow.envs.SMDPChunk`."""
        result = super().step(tensordict)
        transform = self.transform
        for part in transform if isinstance(transform, Compose) else (transform,):
            if isinstance(part, SMDPChunk):
                part.write_root(result)
        return result

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Draw chunks of actions; the base environment may have its own transforms."""
        return EnvBase.rand_action(self, tensordict)


def make_chunk_env(
    base_env: EnvBase,
    *,
    obs_horizon: int,
    act_horizon: int,
    gamma: float,
    obs_keys: Sequence[NestedKey] = ("observation",),
    success_key: NestedKey = "success",
    record_steps: bool = False,
    **chunk: Any,
) -> ChunkEnv:
    """Build the environment in which one step executes a chunk of actions.

    Transforms from inside to outside, where all except the last run once per env step: ``RewardSum`` (the undiscounted
    return, key ``episode_reward``); a copy of ``success`` under ``step_success`` (``success`` is latched over the
    chunk, and the copy holds the success of the *last* step); a
    :class:`~torchrl_flow.envs.transforms.frames.FrameRecorder`, which is off until an evaluation starts it; the
    observation history; and :class:`~torchrl_flow.envs.SMDPChunk`.

    Args:
        base_env: env of single actions ``[*B, A]``; batched or not.
        obs_horizon: number of observations in the history, at least 1.
        act_horizon: number of actions executed per step, at least 1.
        gamma: discount of the rewards inside a chunk, in [0, 1].
        obs_keys: observations that get a dimension of history.
        success_key: key of the success flag. If the env has no such key, nothing is copied.
        record_steps: add a ``StepRecorder``, which is off until it is started.
        **chunk: further arguments of :class:`~torchrl_flow.envs.SMDPChunk`.

    Returns:
        An env with actions ``[*B, act_horizon, A]`` and observations ``[*B, obs_horizon, ...]``.

    Raises:
        ValueError: if the env is none or has chunks already, an observation key is missing, or observations or actions
            are float64. The transforms check the horizons.
    """
    if not isinstance(base_env, EnvBase) or isinstance(base_env, ChunkEnv):
        given = "a chunk environment already" if isinstance(base_env, ChunkEnv) else f"a {type(base_env).__name__}"
        raise ValueError(f"base_env must be an EnvBase with one action per step, got {given}.")
    known = set(base_env.full_observation_spec.keys(True, True))
    missing = [key for key in obs_keys if key not in known]
    if missing:
        raise ValueError(
            f"obs_keys names {missing}, which the environment does not give; it gives {sorted(map(str, known))}."
        )
    for key in obs_keys:
        require_float32(base_env.full_observation_spec[key].dtype, key, type(base_env).__name__)
    for key in base_env.action_keys:
        require_float32(base_env.full_action_spec[key].dtype, key, type(base_env).__name__, actions=True)
    per_step: list[Transform] = [RewardSum(in_keys=[base_env.reward_key], out_keys=[EPISODE_REWARD])]
    if success_key in known:
        per_step.append(RenameTransform(in_keys=[success_key], out_keys=[STEP_SUCCESS], create_copy=True))
    per_step.append(FrameRecorder())
    if record_steps:
        outcome = [base_env.reward_key, "terminated", "done", *([success_key] if success_key in known else [])]
        per_step.append(StepRecorder(obs_keys, outcome, action_key=base_env.action_key))
    history = history_transforms(obs_horizon, in_keys=tuple(obs_keys))
    transforms = Compose([*per_step, *history, SMDPChunk(act_horizon, gamma=gamma, **chunk)])
    return ChunkEnv(base_env, transforms)


def reset_with_seeds(env: EnvBase, seeds: Sequence[int]) -> TensorDictBase:
    """Reset every sub-environment to the initial state of its own seed.

    An unbatched env gets ``reset(seed=int)``, a batched one ``reset(seed=[int, ...])``; ``SerialEnv`` and
    ``ParallelEnv`` pass each worker its share. ``EnvBase.set_seed`` is not usable here: it derives the seeds of the
    sub-environments from the first one.

    Args:
        env: env whose ``reset`` takes ``seed``, below any transforms.
        seeds: one seed per sub-environment, ``env.batch_size.numel()`` of them.

    Raises:
        ValueError: if the number of seeds is wrong.
        RuntimeError: if the env's reset takes no seed.
    """
    num_envs = env.batch_size.numel()
    if len(seeds) != num_envs:
        raise ValueError(f"seeds must hold one seed per sub-environment, {num_envs}, got {len(seeds)}.")
    seeds = [int(seed) for seed in seeds]
    base = base_env(env)
    if isinstance(base, BatchedEnvBase):
        share = num_envs // base.num_workers
        shares = [seeds[i : i + share] for i in range(0, num_envs, share)]
        nested = len(base.batch_size) > 1
        kwargs = {"list_of_kwargs": [{"seed": part if nested else part[0]} for part in shares]}
    else:
        kwargs = {"seed": seeds if len(env.batch_size) else seeds[0]}
    try:
        return env.reset(**kwargs)
    except TypeError as error:
        if "seed" not in str(error):
            raise
        raise RuntimeError(
            f"{type(base).__name__}.reset does not take a seed ({error}). Evaluation starts every episode "
            "from its own seed: let `_reset(self, tensordict, seed=None, **kwargs)` accept an int, or one "
            "int per sub-environment."
        ) from error
