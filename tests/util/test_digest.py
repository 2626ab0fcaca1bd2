"""Hashes of networks; files of slates carry them, so they never change."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from torchrl_flow.util.digest import module_digest


def test_without_layout_the_hash_is_that_of_names_and_bits():
    layer = nn.Linear(2, 1)
    by_hand = hashlib.sha256()
    for name in ("bias", "weight"):
        by_hand.update(name.encode())
        by_hand.update(layer.state_dict()[name].numpy().tobytes())
    assert module_digest(layer, layout=False) == by_hand.hexdigest()


def test_with_layout_shapes_and_types_count():
    a, b = nn.Module(), nn.Module()
    a.register_buffer("x", torch.zeros(2, 3))
    b.register_buffer("x", torch.zeros(3, 2))
    assert module_digest(a) != module_digest(b)
    assert module_digest(a, layout=False) == module_digest(b, layout=False)
