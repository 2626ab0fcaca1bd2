"""Functions for the recipes that steer a frozen flow: loading of policies, demonstrations and their latents."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.checkpoint import CheckpointError

from torchrl_flow.data import DemoReplayBuffer, NoiseCache, data_digest, module_digest
from torchrl_flow.data.demos.task_match import SIZES
from torchrl_flow.demos.source import DemoSource
from torchrl_flow.modules import (
    AliasConfig,
    AliasMode,
    FlowActor,
    LatentGaussianPolicy,
    LatentPolicyConfig,
    NoiseAliaser,
    SteeredFlowActor,
    make_latent_policy,
)
from torchrl_flow.modules.actors.config import check_within_bounds
from torchrl_flow.policies.rebuild import LATENT_POLICY, flow_config, rebuild_flow
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.runs.restore import open_checkpoint, restore_module
from torchrl_flow.util.progress import Progress
from torchrl_flow.util.task_info import TaskInfo

__all__ = [
    "LATENT_POLICY",
    "alias_demonstrations",
    "aliased_demonstrations",
    "frozen_flow",
    "latent_value_gap",
    "load_latent_policy",
    "load_steered",
    "policy_demonstrations",
    "start_latent_policy",
    "steering_flow",
]

VALUE_BLOCK = 128
"""Number of rows per evaluated block."""


@contextlib.contextmanager
def frozen_flow(flow: FlowActor, resumed_from: TrainingCheckpoint | None) -> Iterator[None]:
    """Check before and after a block of training that the flow of a run has not changed.

    Args:
        flow: the steered flow.
        resumed_from: the checkpoint that the run resumes, whose role ``policy`` is the flow (``run.resumed_from``).

    Raises:
        CheckpointError: before the training, if the resumed run steers another flow than ``flow``.
        RuntimeError: if the training changed the flow.
    """
    digest = module_digest(flow)
    if resumed_from is not None:
        steered = copy.deepcopy(flow)
        resumed_from.restore(modules={"policy": steered})
        if module_digest(steered) != digest:
            raise CheckpointError(
                f"{resumed_from.path} steers another flow than --policy has now: the run of --policy was made longer, "
                "or written anew. Resume with the policy that the run started from, or start a run of another name."
            )
    yield
    if module_digest(flow) != digest:
        raise RuntimeError("training changed the weights of the frozen flow: remove its parameters from the optimiser.")


def load_latent_policy(
    source: str | Path | TrainingCheckpoint, actor: FlowActor, *, which: Which = "last", **changes: Any
) -> tuple[LatentGaussianPolicy, TrainingCheckpoint]:
    """Rebuild the latent policy of a checkpoint.

    Args:
        source: checkpoint, its file, or the directory of a run.
        actor: flow that the policy steers (:func:`load_policy` of the same checkpoint).
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
        **changes: fields of :class:`LatentPolicyConfig` that do not change the weights, such as ``prior_mixing=True``
            for a second stage on policy.

    Raises:
        CheckpointError: if the checkpoint holds no latent policy.
    """
    checkpoint = open_checkpoint(source, which)
    policy = restore_module(
        checkpoint,
        LATENT_POLICY,
        LatentPolicyConfig.from_dict,
        lambda config: make_latent_policy(dataclasses.replace(config, **changes), actor),
        absent="{path} holds no latent policy, only {roles}: it was written by a stage that steers nothing. Name a run "
        "of examples/dsrl_*.py.",
    )
    return policy, checkpoint


def load_steered(
    source: str | Path | TrainingCheckpoint, *, which: Which = "last"
) -> tuple[SteeredFlowActor, TrainingCheckpoint]:
    """Rebuild flow and latent policy of a checkpoint as one actor, with the sampling steps of the training.

    Errors are those of :func:`load_latent_policy`.
    """
    checkpoint = open_checkpoint(source, which)
    flow = rebuild_flow(checkpoint)
    policy, _ = load_latent_policy(checkpoint, flow)
    return SteeredFlowActor(policy, flow), checkpoint


def steering_flow(
    source: str | Path | TrainingCheckpoint,
    *,
    which: Which = "best",
    num_steps: int | None = None,
    init: TrainingCheckpoint | None = None,
    device: torch.device | str = "cpu",
) -> tuple[FlowActor, TrainingCheckpoint]:
    """Load the steered flow of a run, and set its number of sampling steps.

    Args:
        source: checkpoint, its file, or the directory of a run.
        which: which checkpoint of a run to use, ``"last"`` or ``"best"``.
        num_steps: sampling steps K, stored in the flow's configuration. Defaults to those of ``init`` if given,
            otherwise to the flow's own.
        init: checkpoint or run of an earlier stage, which must steer the same flow.
        device: device of the flow.

    Raises:
        SystemExit: if ``init`` steers another flow.
    """
    checkpoint = open_checkpoint(source, which)
    flow = rebuild_flow(checkpoint, device=device)
    if init is not None and module_digest(rebuild_flow(init, device=device)) != module_digest(flow):
        raise SystemExit(f"{init.path} steers another flow than that of {checkpoint.path}: the weights differ.")
    if num_steps is None and init is not None:
        num_steps = flow_config(init).num_steps
    if num_steps is not None:
        flow.config = dataclasses.replace(flow_config(checkpoint), num_steps=num_steps)
        flow.num_steps = num_steps
    return flow, checkpoint


def start_latent_policy(
    flow: FlowActor,
    config: LatentPolicyConfig,
    init: TrainingCheckpoint | None = None,
    *,
    defaults: LatentPolicyConfig | None = None,
    train_encoder: bool = False,
    **changes: Any,
) -> LatentGaussianPolicy:
    """Make a new latent policy, or load that of an earlier stage.

    A policy of images reads the features of the frozen flow, unless ``train_encoder`` is set.

    Args:
        flow: the flow to steer.
        config: configuration of a new policy.
        init: checkpoint of the earlier stage.
        defaults: default of ``config``. Fields of ``config`` that differ from it are explicit, and must equal those of
            the earlier stage.
        train_encoder: give a new policy that observes images a separate encoder.
        **changes: fields that this stage sets regardless of the earlier stage, such as ``prior_mixing``.

    Raises:
        SystemExit: if there is no encoder to train, or the earlier stage's policy differs from an explicit field of
            ``config``.
    """
    sees_images = flow.encoder.pixel_encoder is not None
    if train_encoder and not sees_images:
        raise SystemExit("--train-encoder: this flow sees no images, so that there is no encoder to train.")
    if init is None:
        return make_latent_policy(
            dataclasses.replace(config, on_features=sees_images and not train_encoder, **changes), flow
        )
    policy, _ = load_latent_policy(init, flow, **changes)
    for name in ("steer_mode", "latent_bound") if defaults is not None else ():
        asked, there = getattr(config, name), getattr(policy, name)
        if asked not in (getattr(defaults, name), there):
            option = f"--{name.replace('_', '-')}"
            raise SystemExit(f"{option} {asked}: the policy of {init.path} has {there}; leave the option out.")
    if train_encoder and policy.config is not None and policy.config.on_features:
        raise SystemExit(f"--train-encoder: the policy of {init.path} reads the frozen flow's features.")
    return policy


def policy_demonstrations(
    checkpoint: TrainingCheckpoint,
    source: DemoSource | None = None,
    *,
    gamma: float,
    batch_size: int = 256,
    device: str = "cpu",
) -> DemoReplayBuffer:
    """Return the demonstrations of a policy as SMDP transitions, in chunks with the policy's horizons.

    Args:
        checkpoint: checkpoint of the policy.
        source: source of the demonstrations. Defaults to the policy's training demonstrations.
        gamma: discount of one
            environment step.
        batch_size: rows of a sample.
        device: device of the batches.

    Raises:
        CheckpointError: if no source is given and the checkpoint records none.
        ValueError: if the demonstrations are of another task, or their actions in another unit than the bounds of the
            policy's actions, which are those of its environment.

    Warns:
        UserWarning: if more than 1 % of the demonstrated actions lie outside these bounds.
    """
    source = DemoSource.of_checkpoint(checkpoint) if source is None else source
    actor = flow_config(checkpoint)
    horizons: dict[str, Any] = {name: getattr(actor, name) for name in ("pred_horizon", "act_horizon", "obs_horizon")}
    options: dict[str, Any] = {"gamma": gamma, "batch_size": batch_size, "device": device}
    # Older checkpoints, whose tasks do not include the sizes, have them in the policy's configuration.
    sizes = {name: getattr(actor, name) for name in SIZES if getattr(actor, name) is not None}
    task = TaskInfo.of_file({**sizes, **checkpoint.task})
    data = source.load(task, padding="hold", mask_padding=False, **horizons, **options)
    role = next((role for role in ("ema_policy", "policy") if role in checkpoint.roles), None)
    state = {} if role is None else checkpoint.state_dict(role)
    low, high = state.get("action_low"), state.get("action_high")
    if low is not None and high is not None and bool((low.isfinite() & high.isfinite()).all()):
        check_within_bounds(data.statistics()["action"], low.cpu(), high.cpu())
    return data


def alias_demonstrations(
    data: DemoReplayBuffer, aliaser: NoiseAliaser, root: str | Path, *, block_size: int = 512, progress: bool = True
) -> NoiseCache:
    """Find a latent for every row of the demonstrations; latents from an earlier call are read from the cache.

    Args:
        data: the demonstrations.
        aliaser: search for latents.
        root: directory of the caches. The cache of these latents is a subdirectory whose name is a hash of data, flow
            and search.
        block_size: number of rows per block.
        progress: show progress.

    Raises:
        DataError: if the cache is damaged.
    """
    identity = {"data": data_digest(data), "flow": module_digest(aliaser.flow), "search": aliaser.identity()}
    shape = tuple(aliaser.latent_shape)
    text = json.dumps([identity, len(data), block_size], sort_keys=True)
    name = f"latents-{aliaser.config.mode}-{aliaser.steer_mode}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    cache = NoiseCache(
        Path(root) / name, num_rows=len(data), latent_shape=shape, identity=identity, block_size=block_size
    )

    def compute(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        found = aliaser(data[rows], generator=generator)
        return found[aliaser.latent_key], found[aliaser.residual_key].squeeze(-1)

    with Progress(len(data), description="alias", unit="row", enabled=progress) as bar:
        done = 0
        for now in cache.fill(compute):
            bar.update(now - done)
            done = now
    return cache


def aliased_demonstrations(
    checkpoint: TrainingCheckpoint,
    actor: SteeredFlowActor,
    root: str | Path,
    *,
    mode: AliasMode,
    gamma: float,
    source: DemoSource | None = None,
) -> tuple[DemoReplayBuffer, Tensor, str]:
    """Return the demonstrations of a policy, and for each row a latent from which the flow approximates its action.

    Args:
        checkpoint: checkpoint of the policy.
        actor: the steered flow.
        root: directory of the caches of latents (:func:`alias_demonstrations`).
        mode: method of the search for latents.
        gamma: discount of one environment step.
        source: source of the demonstrations. Defaults to the policy's training demonstrations.

    Returns:
        the demonstrations, their latents ``[N, S, A]``, and a text with the number and residual of the latents.
    """
    data = policy_demonstrations(checkpoint, source, gamma=gamma)
    aliaser = NoiseAliaser(actor.flow, actor.policy, config=AliasConfig(mode=mode), num_steps=actor.num_steps)
    cache = alias_demonstrations(data, aliaser, root)
    note = f"{len(data)} demonstrated chunks, latents by {mode}, residual {cache.residual.mean():.3f}."
    return data, cache.latent, note


@torch.no_grad()
def latent_value_gap(
    value: Callable[[TensorDictBase, Tensor], Tensor], policy: LatentGaussianPolicy, observations: TensorDictBase
) -> dict[str, float]:
    """Return ``E[Q(s, w)]`` with ``w`` from the prior and from the policy, on fixed observations and fixed draws.

    Args:
        value: function ``(observations, latents [B, S, A]) -> [B]``.
        policy: the latent policy.
        observations: fixed rows ``[B]``.

    Returns:
        ``q_prior``, ``q_policy`` and their difference ``q_gap``.
    """
    generator = torch.Generator().manual_seed(0)
    rows = observations.shape[0]
    noise = torch.randn(rows, *policy.latent_shape, generator=generator)
    of_prior, of_policy = [], []
    # In blocks: the image encoders of policy and critics need far more memory than the rows.
    for block in torch.arange(rows).split(VALUE_BLOCK):
        seen: Any = observations[block.to(observations.device)]
        dist = policy.normal(seen)
        drawn = noise[block].to(dist.loc)
        of_prior.append(value(seen, policy.prior_latent(drawn)))
        of_policy.append(value(seen, dist.transport(drawn)))
    prior, steered = torch.cat(of_prior).mean().item(), torch.cat(of_policy).mean().item()
    return {"q_prior": prior, "q_policy": steered, "q_gap": steered - prior}
