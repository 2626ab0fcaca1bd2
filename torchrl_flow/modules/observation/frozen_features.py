"""Features of a frozen flow's encoder that replace observations: computed once per row, small to store."""

from __future__ import annotations

from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_flow.functional.chunk import ChunkAlignment
from torchrl_flow.modules.actors.flow import FlowActor
from torchrl_flow.modules.observation.encoders import ObservationEncoder

__all__ = ["FEATURES_KEY", "feature_encoder", "flow_on_features", "frozen_features", "write_features"]

FEATURES_KEY = "flow_features"
"""Key of a flow's features, ``[*B, 1, C]``."""


def feature_encoder(actor: FlowActor) -> ObservationEncoder:
    """Make an encoder without weights that returns the stored features of an actor's encoder."""
    return ObservationEncoder(state_shape=(1, actor.encoder.out_features), state_key=FEATURES_KEY)


def flow_on_features(actor: FlowActor) -> FlowActor:
    """Return an actor that reads stored features of a flow's encoder instead of observations.

    Velocity network and normaliser are shared with the flow, not copied; the features of an observation give the same
    samples as the observation.

    Args:
        actor: the flow.

    Examples:
        >>> from torchrl_flow.modules import FlowActorConfig, make_flow_actor
        >>> flow_on_features(make_flow_actor(FlowActorConfig(action_dim=3, pixels_size=(64, 64)))).in_keys
        ['flow_features']
    """
    reader = FlowActor(
        actor.velocity_network,
        feature_encoder(actor).to(next(actor.parameters()).device),
        act_horizon=actor.act_horizon,
        obs_horizon=actor.obs_horizon,
        action_normalizer=actor.action_normalizer,
        alignment=cast(ChunkAlignment, actor.alignment),
        num_steps=actor.num_steps,
        max_steps=actor.max_steps,
        action_low=actor.action_low,
        action_high=actor.action_high,
        noise_key=actor.noise_key,
        chunk_key=actor.chunk_key,
        action_key=actor.action_key,
    )
    reader.config = actor.config
    return reader.train(actor.training)


@torch.no_grad()
def frozen_features(actor: FlowActor, tensordict: TensorDictBase, *, block_size: int = 64) -> Tensor:
    """Encode the observations of a batch ``[*B]`` as features ``[B, C]``, in blocks of rows.

    Convolutions need about a hundred times the memory of their images: with blocks this does not grow with the batch.

    Args:
        actor: the flow.
        tensordict: batch with the observations of the encoder.
        block_size: number of rows per block.
    """
    encoder = actor.encoder
    # An exported program must accept any number of rows, and blocks would fix the number.
    if encoder.pixel_encoder is None or torch.compiler.is_exporting():
        return actor.features(tensordict)
    lead = len(encoder.batch_shape(tensordict))
    flat: dict[Any, Tensor] = {key: tensordict[key].flatten(0, lead - 1) if lead else tensordict[key][None]
                               for key in encoder.in_keys}  # fmt: skip
    rows = next(iter(flat.values())).shape[0]
    blocks = [
        actor.features(TensorDict({k: v[i : i + block_size] for k, v in flat.items()}, [min(block_size, rows - i)]))
        for i in range(0, rows, block_size)
    ]
    return torch.cat(blocks)


def write_features(actor: FlowActor, tensordict: TensorDictBase, *, block_size: int = 64) -> TensorDictBase:
    """Write the features ``[*B, 1, C]`` of a batch's observations; see :func:`frozen_features`."""
    features = frozen_features(actor, tensordict, block_size=block_size)
    return tensordict.set(FEATURES_KEY, features.reshape(*actor.encoder.batch_shape(tensordict), 1, features.shape[-1]))
