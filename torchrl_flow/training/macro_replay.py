"""Chunks that a steered flow executes, as losses over latents read them: their collection and their replay."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase

from torchrl_flow.modules import FEATURES_KEY, FlowActor, SteeredFlowActor, write_features
from torchrl_flow.training.rollouts import ChunkRollouts

__all__ = ["macro_replay", "macro_transitions", "steered_rollouts"]

OBSERVATIONS = ("observation", "pixels", FEATURES_KEY)
ROOT = ("action", "latent")
OUTCOME = ("reward", "done", "terminated", "truncated", "steps_to_next_obs")
IS_DEMO = "is_demo"


def steered_rollouts(
    env: EnvBase, actor: SteeredFlowActor, num_steps: int, *, seed: int | None = None
) -> ChunkRollouts:
    """Collect with a steered flow what losses over latents read, and nothing else.

    Where the policy reads the features of the frozen flow, those are kept in place of the observations.

    Args:
        env: chunk env.
        actor: the steered flow.
        num_steps: chunks per sub-environment and rollout.
        seed: of the first episodes.
    """
    seen = (FEATURES_KEY,) if actor.reads_features else tuple(actor.in_keys)

    def encode(step: TensorDictBase) -> TensorDictBase:
        return step.set("next", write_features(actor.flow, step["next"]))  # pyright: ignore[reportArgumentType]

    return ChunkRollouts(
        env,
        actor,
        num_steps,
        keep=(*seen, *ROOT, actor.policy.latent_log_prob_key),
        keep_next=(*seen, *OUTCOME, "success"),
        prepare=encode if actor.reads_features else None,
        seed=seed,
    )


def macro_transitions(data: TensorDictBase, *, flow: FlowActor | None = None) -> TensorDictBase:
    """Return what off-policy losses read of executed chunks, one row for each, with the same entries in all rows.

    Args:
        data: chunks of any shape ``[*B]``, executed or demonstrated, with a ``latent`` each.
        flow: keep the features of this frozen flow in place of observations, for networks that read features.

    Raises:
        ValueError: if an entry is missing, naming it and those that are there.
    """
    data = data.reshape(-1)
    following: Any = data.get("next")
    if flow is not None:
        data, following = (
            part if FEATURES_KEY in part else write_features(flow, part.copy()) for part in (data, following)
        )
    seen = [FEATURES_KEY] if flow is not None else [key for key in OBSERVATIONS if key in data]
    rows = TensorDict(_entries(data, (*seen, *ROOT)), batch_size=data.batch_size, device=data.device)
    # A key that some rows lack is uninitialised memory in a ring: each row says whether it is a demonstration.
    is_demo = data.get(IS_DEMO, None)
    if is_demo is None:
        is_demo = torch.zeros(*data.batch_size, 1, dtype=torch.bool, device=rows[ROOT[0]].device)
    rows.set(IS_DEMO, is_demo)
    outcome = TensorDict(_entries(following, (*seen, *OUTCOME)), batch_size=data.batch_size, device=data.device)
    return rows.set("next", outcome)


def _entries(data: TensorDictBase, keys: tuple[str, ...]) -> dict[str, Tensor]:
    missing = [key for key in keys if key not in data]
    if missing:
        raise ValueError(
            f"chunks lack {missing}, which every row of a replay has; they have {sorted(map(str, data.keys()))}."
        )
    return {key: data[key] for key in keys}


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
