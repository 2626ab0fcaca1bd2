"""Collection and replay of a steered flow's executed chunks for losses over latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_flow.data import DemoReplayBuffer
from torchrl_flow.envs import CollectorEnvs
from torchrl_flow.modules import FEATURES_KEY, FlowActor, SteeredFlowActor, write_features
from torchrl_flow.training.collectors import CollectorRollouts, make_rollouts
from torchrl_flow.training.ray_rollouts import RayRollouts
from torchrl_flow.training.rollouts import ChunkRollouts

__all__ = ["ReplayState", "macro_replay", "macro_transitions", "replay_demonstrations", "steered_rollouts"]

ROOT = ("action", "latent")
STEPS = "steps_to_next_obs"
OUTCOME = ("reward", "done", "terminated", "truncated", STEPS)
IS_DEMO = "is_demo"
NO_OBSERVATIONS = (*OUTCOME, IS_DEMO, "success", "episode_reward", "step_rewards")
"""Entries at the root and below ``"next"`` other than observations."""


def steered_rollouts(
    env: EnvBase | CollectorEnvs,
    actor: SteeredFlowActor,
    num_steps: int,
    *,
    seed: int | None = None,
    policy_device: torch.device | str | None = None,
) -> ChunkRollouts | CollectorRollouts | RayRollouts:
    """Make rollouts of a steered flow that keep only the inputs of losses over latents.

    If the policy reads the features of the frozen flow, they are stored in place of the observations.

    Args:
        env: chunk env, or :class:`~torchrl_flow.envs.CollectorEnvs` for several processes.
        actor: steered flow actor.
        num_steps: chunks per sub-environment and rollout.
        seed: seed of the first episodes.
        policy_device: device of the actor, if it is not that of the environment.
    """
    seen: Any = (FEATURES_KEY,) if actor.reads_features else tuple(actor.in_keys)

    def encode(step: TensorDictBase) -> TensorDictBase:
        following: Any = step["next"]
        device = next(actor.flow.parameters()).device
        encoded = write_features(actor.flow, following.select(*actor.flow.in_keys).to(device))
        following.set(FEATURES_KEY, encoded[FEATURES_KEY].to(following.device or "cpu"))
        return step

    return make_rollouts(
        env,
        actor,
        num_steps,
        keep=(*seen, *ROOT, actor.policy.latent_log_prob_key),
        keep_next=(*seen, *OUTCOME, "success"),
        prepare=encode if actor.reads_features else None,
        seed=seed,
        policy_device=policy_device,
    )


def macro_transitions(
    data: TensorDictBase, *, flow: FlowActor | None = None, observation_keys: Sequence[NestedKey] | None = None
) -> TensorDictBase:
    """Return the entries of executed chunks that off-policy losses read, one row per chunk.

    Args:
        data: chunks of any shape ``[*B]``, executed or demonstrated, each with a ``latent``.
        flow: keep the features of this frozen flow instead of the observations, for networks that read features.
        observation_keys: observations to keep, such as ``in_keys`` of the actor. Defaults to all floating-point and
            uint8 entries that exist both at the root and below ``"next"``, except rewards.

    Raises:
        ValueError: if an entry is missing. The error names it and lists the existing entries.
    """
    data = data.reshape(-1)
    following: Any = data.get("next")
    if flow is not None:
        data, following = (
            part if FEATURES_KEY in part else write_features(flow, part.copy()) for part in (data, following)
        )
    seen = [FEATURES_KEY] if flow is not None else observation_keys or _observations(data, following)
    rows = TensorDict(batch_size=data.batch_size, device=data.device).update(_entries(data, (*seen, *ROOT)))
    # A key missing in some rows would be uninitialised memory in the ring: therefore every row has the flag.
    is_demo = data.get(IS_DEMO, None)
    if is_demo is None:
        is_demo = torch.zeros(*data.batch_size, 1, dtype=torch.bool, device=rows[ROOT[0]].device)
    rows.set(IS_DEMO, is_demo)
    outcome = TensorDict(batch_size=data.batch_size, device=data.device).update(_entries(following, (*seen, *OUTCOME)))
    # As in the transitions of SMDPChunk, also at the root.
    return rows.set("next", outcome).set(STEPS, outcome[STEPS])


def _observations(data: TensorDictBase, following: TensorDictBase) -> list[NestedKey]:
    shared = set(following.keys(True, True)) - set(NO_OBSERVATIONS)
    found = [key for key in data.keys(True, True) if key in shared]
    return [key for key in found if (value := data[key]).is_floating_point() or value.dtype == torch.uint8]


def _entries(data: TensorDictBase, keys: Sequence[NestedKey]) -> dict[NestedKey, Tensor]:
    keys = [unravel_key(key) for key in keys]
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(
            f"chunks lack {missing}, which every row of a replay has; they have {sorted(map(str, data.keys()))}."
        )
    return {key: data[key] for key in keys}


def macro_replay(capacity: int, *, batch_size: int, device: str = "cpu") -> TensorDictReplayBuffer:
    """Make a replay buffer of chunk transitions that samples in O(1): a preallocated ring, uniform indices.

    Latent and decoded action are stored as executed, so that no update runs the flow on old rows.

    Args:
        capacity: capacity in transitions; the oldest ones are overwritten first.
        batch_size: rows of a sample.
        device: device of the buffer.
    """
    storage = LazyTensorStorage(capacity, device=device)
    return TensorDictReplayBuffer(storage=storage, batch_size=batch_size)


def replay_demonstrations(
    buffer: TensorDictReplayBuffer,
    data: DemoReplayBuffer,
    latent: Tensor,
    actor: SteeredFlowActor,
    *,
    block_size: int = 256,
) -> None:
    """Add demonstrations to a replay buffer, each with a latent from which the flow approximates its action.

    Args:
        buffer: buffer of :func:`macro_replay`.
        data: the demonstrations.
        latent: latent of each demonstrated chunk (:func:`~torchrl_flow.policies.alias_demonstrations`).
        actor: steered flow, whose policy determines whether observations or features are stored.
        block_size: number of rows per block.

    Raises:
        ValueError: if the demonstrations exceed the free capacity of the buffer.
    """
    capacity = buffer.storage.max_size - len(buffer)
    if len(data) > capacity:
        raise ValueError(f"{len(data)} demonstrated chunks do not fit into a replay buffer with room for {capacity}.")
    device = next(actor.flow.parameters()).device
    flow = actor.flow if actor.reads_features else None
    for rows in torch.arange(len(data)).split(block_size):
        block = data[rows].to(device).set("latent", latent[rows].to(device))
        buffer.extend(macro_transitions(block, flow=flow, observation_keys=actor.in_keys))


class ReplayState:
    """State of the filled rows of a replay buffer, without its unused capacity.

    TorchRL saves a buffer's whole preallocated storage, most of which may be unused.

    Args:
        buffer: buffer of :func:`macro_replay`. It is shared, not copied.

    Examples:
        >>> from tensordict import TensorDict
        >>> buffers = [macro_replay(100, batch_size=2) for _ in range(2)]
        >>> _ = buffers[0].extend(TensorDict(x=torch.arange(3), batch_size=[3]))
        >>> ReplayState(buffers[1]).load_state_dict(ReplayState(buffers[0]).state_dict())
        >>> buffers[1][:]["x"]
        tensor([0, 1, 2])
    """

    def __init__(self, buffer: TensorDictReplayBuffer) -> None:
        self.buffer = buffer

    def state_dict(self) -> dict[str, Any]:
        """Return the rows in the order of the ring, and the next write position."""
        rows: Any = self.buffer[: len(self.buffer)] if len(self.buffer) else TensorDict(batch_size=[0])
        # Cloned, since saving a view saves its whole underlying storage.
        rows = rows.exclude("index").flatten_keys(".").clone()
        return {"rows": dict(rows.items()), "writer": self.buffer.writer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the rows.

        Raises:
            ValueError: if the number of rows exceeds the buffer's capacity.
        """
        rows = dict(state["rows"])
        if f"next.{STEPS}" in rows:
            rows.setdefault(STEPS, rows[f"next.{STEPS}"])  # older states have it only there
        self.buffer.empty()
        if rows:
            count = next(iter(rows.values())).shape[0]
            capacity = self.buffer.storage.max_size
            if count > capacity:
                raise ValueError(f"{count} rows were saved, and the replay buffer has room for {capacity}.")
            self.buffer.extend(TensorDict(rows, batch_size=[count]).unflatten_keys("."))
        self.buffer.writer.load_state_dict(state["writer"])
