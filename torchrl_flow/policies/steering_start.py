"""Start of a stage of DSRL: the frozen flow, the previous stage, and the demonstrations with their latents."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torchrl.data import TensorDictReplayBuffer

from torchrl_flow.demos.source import DemoSource
from torchrl_flow.modules import AliasMode, FlowActor, SteeredFlowActor
from torchrl_flow.policies.acting import load_flow_checkpoint
from torchrl_flow.policies.steering import aliased_demonstrations, steering_flow
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.training import macro_replay, replay_demonstrations

__all__ = ["latent_replay", "load_steering_start"]


def load_steering_start(
    policy: str | Path,
    *,
    which: Which = "best",
    init: str | Path | None = None,
    num_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[FlowActor, TrainingCheckpoint, TrainingCheckpoint | None]:
    """Load the steered flow of a run, and the checkpoint of the previous stage.

    Args:
        policy: run directory or checkpoint of the flow.
        which: which checkpoint of both runs to use, ``"last"`` or ``"best"``.
        init: run directory or checkpoint of the previous stage, which must steer the same flow. Defaults to None, for
            no previous stage.
        num_steps: sampling steps K. Defaults to those of ``init`` if given, otherwise to the flow's own.
        device: device of the flow.

    Returns:
        the flow, its checkpoint, and that of the previous stage.

    Raises:
        SystemExit: if ``policy`` is a steered flow, or ``init`` steers another flow.
    """
    start = load_flow_checkpoint(policy, which=which)
    before = None if init is None else load_checkpoint(init, which=which)
    flow, checkpoint = steering_flow(start, num_steps=num_steps, init=before, device=device)
    return flow, checkpoint, before


def latent_replay(
    checkpoint: TrainingCheckpoint,
    actor: SteeredFlowActor,
    mode: AliasMode | Literal["none"],
    *,
    batch_size: int,
    gamma: float,
    capacity: int | None = None,
    cache: str | Path = "demos",
    source: DemoSource | None = None,
    device: str = "cpu",
) -> tuple[TensorDictReplayBuffer, str]:
    """Make a replay buffer of chunks with latents that contains the policy's demonstrations.

    Args:
        checkpoint: checkpoint of the policy.
        actor: the steered flow.
        mode: method of the search for latents of the demonstrations; ``"none"`` for an initially empty buffer.
        batch_size: rows of a sample.
        gamma: discount of one environment step.
        capacity: capacity in rows; ``None`` for the number of demonstrated chunks.
        cache: directory of the caches of latents.
        source: source of the demonstrations. Defaults to the policy's training demonstrations.
        device: device of the buffer.

    Returns:
        the buffer, and a sentence that describes its content.

    Raises:
        ValueError: if ``mode`` is ``"none"`` and no capacity is given, or the demonstrations exceed the capacity.
    """
    if mode == "none":
        if capacity is None:
            raise ValueError("capacity must be given with mode='none': there are no demonstrations to count.")
        buffer = macro_replay(capacity, batch_size=batch_size, device=device)
        return buffer, "No demonstrations in the replay buffer."
    data, latents, note = aliased_demonstrations(checkpoint, actor, cache, mode=mode, gamma=gamma, source=source)
    buffer = macro_replay(len(data) if capacity is None else capacity, batch_size=batch_size, device=device)
    replay_demonstrations(buffer, data, latents, actor)
    return buffer, note
