"""MLPs of TorchRL in place of layers in a row: state dicts and initial weights are those of the layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from torchrl_flow.modules import ObservationEncoder, StatePolicyConfig, StateValue, make_state_policy, make_state_values
from torchrl_flow.modules.activation import Mish
from torchrl_flow.recsys import BeliefEncoder, BeliefEncoderConfig, SlateRanker, SlateRankerConfig


def in_a_row(sizes, activation, *, norm=False):
    layers = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


STATE = StatePolicyConfig(5, 3, hidden_sizes=(8, 7))
BELIEF = BeliefEncoderConfig(num_items=6, slate_size=2, item_dim=3, belief_dim=4, head_width=8)
RANKER = SlateRankerConfig(num_items=6, slate_size=2, item_dim=3, latent_dim=4, hidden_sizes=(8, 7))
NETWORKS = {
    "state value": (
        lambda: StateValue(ObservationEncoder(state_shape=(2, 3)), hidden_sizes=(8, 7)).head,
        lambda: in_a_row([6, 8, 7, 1], Mish),
    ),
    "state policy": (lambda: make_state_policy(STATE).module[0].layers, lambda: in_a_row([5, 8, 7, 3], nn.ReLU)),
    "critic of states": (
        lambda: make_state_values(STATE, number=1)[0].module.layers,
        lambda: in_a_row([8, 8, 7, 1], nn.ReLU, norm=True),
    ),
    "click model": (lambda: BeliefEncoder(BELIEF).query, lambda: in_a_row([4, 8, 4], nn.ReLU)),
    "slate encoder": (lambda: SlateRanker(RANKER).encoder, lambda: in_a_row([8, 8, 7, 8], nn.ReLU)),
    "slate decoder": (lambda: SlateRanker(RANKER).decoder, lambda: in_a_row([4, 7, 8, 8], nn.ReLU)),
}
#: Made first in their module, so that a seed gives their weights.
FIRST = ("state value", "state policy", "critic of states")


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_shapes_and_outputs_are_those_of_layers_in_a_row(name):
    make, by_hand = NETWORKS[name]
    torch.manual_seed(0)
    made = make()
    torch.manual_seed(0)
    expected = by_hand()
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in made.state_dict().items()} == shapes
    if name in FIRST:
        assert all(torch.equal(value, made.state_dict()[key]) for key, value in expected.state_dict().items())
    made.load_state_dict(expected.state_dict())
    inputs = torch.rand(4, next(iter(shapes.values()))[1])
    assert torch.equal(made(inputs), expected(inputs))
