"""What recipes that steer a frozen flow share: loading policies, demonstrations and their latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.checkpoint import CheckpointError
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_flow.data import DemoReplayBuffer, NoiseCache, data_digest, module_digest
from torchrl_flow.modules import (
    FlowActor,
    FlowActorConfig,
    LatentGaussianPolicy,
    LatentPolicyConfig,
    NoiseAliaser,
    SteeredFlowActor,
    make_latent_policy,
)
from torchrl_flow.training.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.training.demo_source import DemoSource
from torchrl_flow.training.progress import Progress
from torchrl_flow.training.task_identity import SIZES
from torchrl_flow.training.tasks import load_policy

__all__ = [
    "LATENT_POLICY",
    "alias_demonstrations",
    "latent_value_gap",
    "load_latent_policy",
    "load_steered",
    "macro_replay",
    "macro_transitions",
    "policy_demonstrations",
]

LATENT_POLICY = "latent_policy"
"""Role of the latent policy in checkpoints."""

MACRO_KEYS = ("observation", "pixels", "action", "latent", "is_demo")
NEXT_KEYS = ("observation", "pixels", "reward", "done", "terminated", "truncated", "steps_to_next_obs")


def load_latent_policy(
    source: str | Path | TrainingCheckpoint, actor: FlowActor, **changes: Any
) -> tuple[LatentGaussianPolicy, TrainingCheckpoint]:
    """Rebuild the latent policy of a checkpoint.

    Args:
        source: checkpoint, its file, or the directory of a run.
        actor: the flow that it steers (:func:`load_policy` of the same checkpoint).
        **changes: fields of :class:`LatentPolicyConfig` that leave the weights as they are, such as
            ``prior_mixing=True`` for a second stage on policy.

    Raises:
        CheckpointError: if the checkpoint holds no latent policy.
    """
    checkpoint = source if isinstance(source, TrainingCheckpoint) else load_checkpoint(source)
    if LATENT_POLICY not in checkpoint.module_configs:
        raise CheckpointError(
            f"{checkpoint.path} holds no latent policy, only {', '.join(checkpoint.roles) or 'nothing'}: it was "
            "written by a stage that steers nothing. Name a run of examples/dsrl_*.py."
        )
    config = LatentPolicyConfig.from_dict(checkpoint.module_configs[LATENT_POLICY])
    policy = make_latent_policy(dataclasses.replace(config, **changes), actor)
    checkpoint.restore(modules={LATENT_POLICY: policy})
    return policy, checkpoint


def load_steered(source: str | Path | TrainingCheckpoint) -> tuple[SteeredFlowActor, TrainingCheckpoint]:
    """Rebuild flow and latent policy of a checkpoint as one actor; raises as :func:`load_latent_policy` does."""
    flow, checkpoint = load_policy(source)
    policy, _ = load_latent_policy(checkpoint, flow)
    return SteeredFlowActor(policy, flow), checkpoint


def policy_demonstrations(
    checkpoint: TrainingCheckpoint,
    source: DemoSource | None = None,
    *,
    gamma: float,
    batch_size: int = 256,
    device: str = "cpu",
) -> DemoReplayBuffer:
    """Return the demonstrations of a policy as SMDP transitions, in chunks of its horizons.

    Args:
        checkpoint: of the policy.
        source: where they are; those that the policy was trained on where ``None``.
        gamma: discount of one environment step.
        batch_size: of the buffer.
        device: of its batches.

    Raises:
        CheckpointError: if no source is given and the checkpoint does not tell.
        ValueError: if they are of another task.
    """
    source = DemoSource.of_checkpoint(checkpoint) if source is None else source
    actor = FlowActorConfig.from_dict(checkpoint.actor_config)
    horizons: dict[str, Any] = {name: getattr(actor, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    options: dict[str, Any] = {"gamma": gamma, "batch_size": batch_size, "device": device}
    # Checkpoints made before tasks told them have the sizes in the policy's configuration.
    sizes = {name: getattr(actor, name) for name in SIZES if getattr(actor, name) is not None}
    task = {**sizes, **checkpoint.task}
    return source.load(task, padding="hold", mask_padding=False, **horizons, **options)


def alias_demonstrations(
    data: DemoReplayBuffer, aliaser: NoiseAliaser, root: str | Path, *, block_size: int = 512, progress: bool = True
) -> NoiseCache:
    """Find a latent for every row of the demonstrations, or take what an earlier call, also one cut short, has found.

    Args:
        data: the demonstrations.
        aliaser: the search.
        root: directory of the cache.
        block_size: rows at a time.
        progress: show progress.

    Raises:
        DataError: if the directory holds the latents of other data, of another flow or of another search.
    """
    identity = {"data": data_digest(data), "flow": module_digest(aliaser.flow), "search": aliaser.identity()}
    shape = tuple(aliaser.latent_shape)
    cache = NoiseCache(root, num_rows=len(data), latent_shape=shape, identity=identity, block_size=block_size)

    def compute(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        found = aliaser(data[rows], generator=generator)
        return found[aliaser.latent_key], found[aliaser.residual_key].squeeze(-1)

    with Progress(len(data), description="alias", unit="row", enabled=progress) as bar:
        done = 0
        for now in cache.fill(compute):
            bar.update(now - done)
            done = now
    return cache


def macro_transitions(data: TensorDictBase) -> TensorDictBase:
    """Return what off-policy losses read of collected chunks, one row for each: no copy of what they do not."""
    data = data.reshape(-1)
    following = data.get("next").select(*NEXT_KEYS, strict=False)
    return data.select(*MACRO_KEYS, strict=False).set("next", following)


def macro_replay(capacity: int, *, batch_size: int, device: str = "cpu") -> TensorDictReplayBuffer:
    """Make a replay buffer of chunk transitions that samples in O(1): a preallocated ring, uniform indices.

    Latent and decoded action are stored as they were executed, so that no update runs the flow on old rows.

    Args:
        capacity: transitions; the oldest go first.
        batch_size: rows of a sample.
        device: where it lies.
    """
    storage = LazyTensorStorage(capacity, device=device)
    return TensorDictReplayBuffer(storage=storage, batch_size=batch_size)


@torch.no_grad()
def latent_value_gap(
    value: Callable[[TensorDictBase, Tensor], Tensor], policy: LatentGaussianPolicy, observations: TensorDictBase
) -> dict[str, float]:
    """Return ``E[Q(s, w)]`` with ``w`` from the prior and from the policy, on fixed observations and fixed draws.

    Args:
        value: ``(observations, latents [B, S, A]) -> [B]``.
        policy: the latent policy.
        observations: fixed rows ``[B]``.

    Returns:
        ``q_prior``, ``q_policy`` and their difference ``q_gap``.
    """
    generator = torch.Generator().manual_seed(0)
    dist = policy.normal(observations)
    noise = torch.randn(dist.loc.shape, generator=generator).to(dist.loc)
    prior = value(observations, policy.prior_latent(noise)).mean().item()
    steered = value(observations, dist.transport(noise)).mean().item()
    return {"q_prior": prior, "q_policy": steered, "q_gap": steered - prior}
