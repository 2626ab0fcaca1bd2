"""Descriptions of networks: plain values there and back, unknown fields, limits on sizes."""

from __future__ import annotations

import json
import time

import pytest
import torch
from tensordict import TensorDict

from torchrl_flow.modules import (
    AliasConfig,
    CriticConfig,
    FlowActorConfig,
    LatentPolicyConfig,
    NoiseNetConfig,
    StatePolicyConfig,
    StateValueConfig,
)
from torchrl_flow.modules.config import MAX_DEPTH, MAX_SIZE, MAX_WEIGHTS, Config
from torchrl_flow.recsys.belief_encoder import BeliefEncoderConfig
from torchrl_flow.recsys.slate_ranker import SlateRankerConfig

CONFIGS = [
    FlowActorConfig(action_dim=3, state_dim=5, pixels_size=(64, 48)),
    CriticConfig(hidden_sizes=(8, 7)),
    StateValueConfig((7,)),
    NoiseNetConfig((7, 5)),
    LatentPolicyConfig(hidden_sizes=(4,), log_std_range=(-2.0, 0.5)),
    AliasConfig(starts=2),
    StatePolicyConfig(5, 3, obs_horizon=2),
    BeliefEncoderConfig(num_items=50),
    SlateRankerConfig(hidden_sizes=(6,)),
]
ABSURD = [
    (FlowActorConfig, {"action_dim": 3, "state_dim": 5, "depth": 10**6}, "depth=1000000", MAX_DEPTH),
    (FlowActorConfig, {"action_dim": 3, "state_dim": 5, "width": 10**6}, "width=1000000", MAX_SIZE),
    (FlowActorConfig, {"action_dim": 3, "pixels_size": (10**9, 64)}, "pixels_size=1000000000", MAX_SIZE),
    (FlowActorConfig, {"action_dim": 3, "state_dim": 5, "width": 10**5}, "width=100000", MAX_WEIGHTS),
    (FlowActorConfig, {"action_dim": 3, "state_dim": 5, "network": "unet", "depth": 999}, "depth=999", MAX_WEIGHTS),
    (FlowActorConfig, {"action_dim": 10**5, "state_dim": 5, "pred_horizon": 10**5}, "pred_horizon", MAX_WEIGHTS),
    (CriticConfig, {"num_qs": 10**6}, "num_qs=1000000", MAX_DEPTH),
    (CriticConfig, {"hidden_sizes": [10**5, 10**5]}, "hidden_sizes", MAX_WEIGHTS),
    (CriticConfig, {"hidden_sizes": [1] * 10**5}, "hidden_sizes", MAX_DEPTH),
    (StateValueConfig, {"hidden_sizes": [10**6]}, "hidden_sizes=1000000", MAX_SIZE),
    (NoiseNetConfig, {"hidden_sizes": [10**6]}, "hidden_sizes=1000000", MAX_SIZE),
    (LatentPolicyConfig, {"hidden_sizes": [10**5] * 3}, "hidden_sizes", MAX_WEIGHTS),
    (AliasConfig, {"candidates": 10**9}, "candidates=1000000000", MAX_SIZE),
    (StatePolicyConfig, {"state_dim": 10**5, "action_dim": 1, "obs_horizon": 10**5}, "state_dim", MAX_WEIGHTS),
    (BeliefEncoderConfig, {"num_items": 10**7, "item_dim": 10**4}, "num_items", MAX_WEIGHTS),
    (BeliefEncoderConfig, {"num_items": 10**9}, "num_items=1000000000", 10**7),
    (SlateRankerConfig, {"latent_dim": 10**6}, "latent_dim=1000000", MAX_SIZE),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_config_comes_back_from_json(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_an_unknown_field_is_named_with_the_known_and_the_meant_one(config):
    known = sorted(config.to_dict())
    meant = known[-1]
    with pytest.raises(ValueError, match=r"unknown fields \[") as error:
        type(config).from_dict({**config.to_dict(), f"{meant}x": 1})
    message = str(error.value)
    assert type(config).__name__ in message
    assert f"['{meant}x']" in message
    assert str(known) in message
    assert f"Did you mean {meant}" in message


@pytest.mark.parametrize(("kind", "fields", "named", "limit"), ABSURD)
def test_absurd_sizes_are_refused_at_once_with_field_value_and_limit(kind, fields, named, limit):
    before = time.monotonic()
    with pytest.raises(ValueError, match=r"above (its|the) limit of") as error:
        kind.from_dict(fields)
    assert time.monotonic() - before < 1
    assert named in str(error.value)
    assert str(limit) in str(error.value)


def test_a_missing_field_is_refused_where_all_are_asked_for():
    assert SlateRankerConfig.from_dict({}) == SlateRankerConfig()
    with pytest.raises(ValueError, match=r"a SlateRankerConfig lacks the fields .*'encode_clicks', 'hidden_sizes'\]"):
        SlateRankerConfig.from_dict({"num_items": 5, "slate_size": 2, "item_dim": 3, "latent_dim": 4}, complete=True)


def test_every_config_of_a_network_is_a_config():
    assert all(isinstance(config, Config) for config in CONFIGS)


def test_the_largest_sizes_in_use_are_allowed():
    FlowActorConfig(action_dim=100, state_dim=5000, width=4096, depth=100, pred_horizon=256)
    FlowActorConfig(action_dim=8, state_dim=50, network="unet", width=512, depth=5)
    SlateRankerConfig(num_items=1_000_000, hidden_sizes=(4096, 4096))


def test_an_actor_is_described_for_the_sizes_of_a_batch():
    sizes = {"observation": torch.zeros(1, 2, 5), "action_chunk": torch.zeros(1, 16, 3)}
    states = TensorDict(sizes, batch_size=[1])
    found = FlowActorConfig.of_batch(states, width=8)
    assert found == FlowActorConfig(action_dim=3, state_dim=5, width=8)
    images = states.set("pixels", torch.zeros(1, 2, 3, 24, 32))
    assert FlowActorConfig.of_batch(images).pixels_size == (24, 32)
