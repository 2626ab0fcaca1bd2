"""Evaluation of a policy: one episode per fixed seed, success with intervals, return, length and latency."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_flow.envs.own import own_identity
from torchrl_flow.envs.transforms.frames import FrameRecorder, find_recorder
from torchrl_flow.evaluation.group_rollout import GroupRollout, Policy
from torchrl_flow.evaluation.result import EvaluationResult
from torchrl_flow.util.progress import Progress
from torchrl_flow.util.randomness import isolated_rng

__all__ = ["compare_num_steps", "evaluate", "success_metrics", "warm_up"]


def evaluate(
    env: EnvBase,
    policy: Policy,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    exploration_type: ExplorationType = ExplorationType.RANDOM,  # pyright: ignore[reportArgumentType]
    noise_scale: float = 1.0,
    policy_kwargs: Mapping[str, Any] | None = None,
    success_key: NestedKey | None = "success",
    num_videos: int = 0,
    progress: bool = True,
) -> EvaluationResult:
    """Run one episode from every seed and report success, return, length and latency.

    The result depends only on the weights and the seeds. Every episode starts from ``env.reset(seed=...)``. A flow
    policy (one with ``noise_key`` and ``noise_shape``) gets noise from a separate generator per episode, independent of
    concurrent episodes; other policies draw from the global generators, which are seeded for each group of episodes.
    Their state is restored afterwards, so that an evaluation does not affect training. A batched env runs one episode
    per sub-environment at a time; a smaller last group is padded and the padding dropped. Use a separate env for
    evaluation, because it is left in mid-episode.

    With ManiSkill's protocol (``ignore_terminations=True``) every episode runs to the time limit: ``success_once`` is
    whether any env step succeeded, ``success_at_end`` whether the last one did.

    :class:`torchrl.collectors.Evaluator` takes the first N trajectories that end, which favours short ones. It has no
    seed per episode and does not record success at a step inside a chunk. It is suitable for a learning curve in the
    background of a training run: pass it the env of :func:`make_chunk_env` and ``metrics_fn=success_metrics``.

    Args:
        env: chunk env (see :func:`make_chunk_env`) or env of single actions, batched or not.
        policy: policy that maps the observation TensorDict to one with the action.
        seeds: seeds, one per episode, in the order of the result.
        max_steps: number of env steps after which an episode ends (at the end of the chunk). Defaults to None: an
            episode ends when it is done.
        exploration_type: RANDOM samples a flow policy; DETERMINISTIC starts its flow at zero noise.
        noise_scale: standard deviation of a flow policy's initial noise. A value below 1 keeps actions closer to their
            mode, which improves policies that were cloned from noisy demonstrations or trained to explore.
        policy_kwargs: more arguments for each call of the policy, such as ``num_steps``.
        success_key: key of the success flag; None for a task without success. A user-defined environment
            (``my_package:make_env``) may lack the key.
        num_videos: number of episodes, from the first on, whose frames are kept. Rendering is included in the measured
            times; use a separate evaluation for videos if times are compared.
        progress: show progress.

    Raises:
        ValueError: if the seeds are empty or repeat, the policy is a loss, the env lacks a required key, which the
            error names, or ``noise_scale`` is negative or given for a policy without noise.
        NonFiniteError: if an observation or a return is not finite or above 1e9 in absolute value.

    Examples:
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_flow.evaluation import evaluate
        >>> env = GymEnv("CartPole-v1", device="cpu")
        >>> result = evaluate(env, env.rand_action, seeds=[1, 2], success_key=None, progress=False)
        >>> result.episodes, bool(result.returns[0] == result.lengths[0])
        (2, True)
    """
    if not isinstance(seeds, Iterable):
        raise ValueError(f"seeds must be a sequence of whole numbers, got {seeds!r}: give range({seeds}).")
    seeds = [int(seed) for seed in seeds]
    _check_request(policy, seeds, noise_scale)
    _check_chunks(env, policy)
    recorder = _recorder_for(env, num_videos)
    group_size = env.batch_size.numel()
    own = own_identity(env)
    if own is not None and success_key == "success" and success_key not in env.full_observation_spec.keys(True, True):
        success_key = None
    groups = []
    start = time.perf_counter()
    with (
        _as_in_use(policy),
        torch.no_grad(),
        set_exploration_type(exploration_type),
        isolated_rng(0),
        Progress(len(seeds), description="evaluate", unit="ep", enabled=progress) as bar,
    ):
        for first in range(0, len(seeds), group_size):
            group = seeds[first : first + group_size]
            padded = group + [group[-1]] * (group_size - len(group))
            rollout = GroupRollout(env, policy, policy_kwargs or {}, success_key, max_steps, noise_scale)
            rollout.run(padded, recorder, rows=min(len(group), max(0, num_videos - first)))
            groups.append(rollout.finish(len(group)))
            bar.update(len(group), **_running_success(groups))
    return EvaluationResult.from_groups(seeds, groups, wall_s=time.perf_counter() - start)


def _check_request(policy: Policy, seeds: Sequence[int], noise_scale: float) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must hold at least one seed and none twice, got {seeds}.")
    if isinstance(policy, LossModule):
        raise ValueError(
            f"policy must map observations to actions, got the loss {type(policy).__name__}: give the network that it "
            "trains, or the average of a flow loss, loss.ema_actor()."
        )
    if not noise_scale >= 0:
        raise ValueError(f"noise_scale must be at least 0, got {noise_scale}.")
    if noise_scale != 1 and not hasattr(policy, "noise_shape"):
        raise ValueError(f"noise_scale={noise_scale} needs a policy that starts from noise, such as a FlowActor.")


def _check_chunks(env: EnvBase, policy: Policy) -> None:
    """Refuse an environment whose actions are not the chunks of the policy."""
    chunk = [getattr(policy, name, None) for name in ("act_horizon", "action_dim")]
    key = getattr(policy, "action_key", None)
    if None in chunk or key not in env.action_keys:
        return
    shape = list(env.full_action_spec[key].shape[env.ndim :])
    if shape != chunk:
        raise ValueError(
            f"the policy executes chunks [act_horizon, action_dim] = {chunk} and the environment takes actions "
            f"{shape}: make it by make_chunk_env(..., act_horizon={chunk[0]})."
        )


def compare_num_steps(
    env: EnvBase, policy: Policy, seeds: Sequence[int], num_steps: Sequence[int] = (1, 2, 4, 8), **kwargs: Any
) -> dict[int, EvaluationResult]:
    """Evaluate a flow policy at several numbers of sampling steps K, over the same seeds.

    Each K is warmed up before its timing (:func:`warm_up`), so that no time includes the set-up of the first call.

    Args:
        env: see :func:`evaluate`.
        policy: flow policy whose call takes ``num_steps``.
        seeds: seeds, one per episode, the same for every K.
        num_steps: the numbers of sampling steps.
        **kwargs: passed to :func:`evaluate`.

    Returns:
        The result of each K, in the given order.

    Raises:
        ValueError: if ``num_steps`` is empty or contains a number below 1.
    """
    if not num_steps or min(num_steps) < 1:
        raise ValueError(f"num_steps must hold numbers of at least 1, got {list(num_steps)}.")
    extra = dict(kwargs.pop("policy_kwargs", None) or {})
    found = {}
    for k in num_steps:
        own = {**extra, "num_steps": k}
        warm_up(env, policy, seeds, policy_kwargs=own, success_key=kwargs.get("success_key", "success"))
        found[k] = evaluate(env, policy, seeds, policy_kwargs=own, **kwargs)
    return found


def warm_up(
    env: EnvBase,
    policy: Policy,
    seeds: Sequence[int],
    *,
    policy_kwargs: Mapping[str, Any] | None = None,
    success_key: NestedKey | None = "success",
) -> None:
    """Take one step of an episode, so that the time of an evaluation does not include the set-up of kernels.

    The result of :func:`evaluate` is not affected, since it depends only on weights and seeds.

    Args:
        env: see :func:`evaluate`.
        policy: see :func:`evaluate`.
        seeds: seeds of the evaluation; the first one is used.
        policy_kwargs: see :func:`evaluate`.
        success_key: see :func:`evaluate`.
    """
    first = list(seeds)[:1]
    evaluate(env, policy, first, max_steps=1, policy_kwargs=policy_kwargs, success_key=success_key, progress=False)


def success_metrics(trajectories: TensorDictBase, success_key: NestedKey = ("next", "success")) -> dict[str, float]:
    """Return the rate of ``success_once``, as ``metrics_fn`` of :class:`torchrl.collectors.Evaluator`.

    Args:
        trajectories: batch of the evaluator, in either of its layouts: padded ``[n, t]`` with the mask of valid steps
            under ``("collector", "mask")``, or flat ``[t]`` with ``("collector", "traj_ids")``.
        success_key: key of the success of each step.
    """
    success = trajectories.get(success_key).reshape(trajectories.shape)
    mask = trajectories.get(("collector", "mask"), None)
    if mask is not None:
        once = (success & mask.reshape(success.shape)).any(-1)
    else:
        ids = trajectories.get(("collector", "traj_ids")).reshape(-1)
        once = torch.stack([success.reshape(-1)[ids == i].any() for i in ids.unique()])
    return {"success_once": once.float().mean().item()}


def _running_success(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    flags = [group["success_once"] for group in groups]
    return {} if flags[0] is None else {"success_once": torch.cat(flags).float().mean().item()}


def _recorder_for(env: EnvBase, num_videos: int) -> FrameRecorder | None:
    if num_videos < 1:
        return None
    recorder = find_recorder(env)
    if recorder is None:
        raise ValueError(
            f"num_videos={num_videos} needs a FrameRecorder among the transforms of the environment, before "
            "the chunk transform: make the env with make_chunk_env, or append FrameRecorder() to an env of "
            "single actions."
        )
    return recorder


@contextmanager
def _as_in_use(policy: Policy) -> Iterator[None]:
    """Put every module of the policy in evaluation mode, and restore its mode afterwards."""
    modes = [(m, m.training) for m in policy.modules()] if isinstance(policy, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
