"""One way from a checkpoint to a module: description, building, weights, and what each error names."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrl.checkpoint import CheckpointError

from torchrl_flow.modules.config import Config
from torchrl_flow.runs import save_checkpoint
from torchrl_flow.runs.restore import ACTOR_CONFIG, module_config, open_checkpoint, restore_module

PACKAGE = Path(__file__).parents[2] / "torchrl_flow"


@dataclasses.dataclass(frozen=True)
class Size(Config):
    width: int = 3


def make(config):
    return nn.Linear(config.width, 1)


@pytest.fixture
def checkpoint(tmp_path):
    nets = {"net": make(Size()), "average": make(Size())}
    configs = {"net": {"width": 3}, "wide": {"width": 10**6}, "average": {"width": 4}}
    path = save_checkpoint(
        tmp_path / "a.torchrl", modules=nets, actor_config={"width": 2}, metadata={"module_configs": configs}
    )
    return open_checkpoint(path), nets


def test_a_module_is_built_as_described_with_the_weights_of_the_first_role_there(checkpoint):
    checkpoint, nets = checkpoint
    for roles, role in ((None, "net"), (("average", "net"), "average"), (("target", "net"), "net")):
        module = restore_module(checkpoint, "net", Size.from_dict, make, roles=roles)
        assert torch.equal(module.weight, nets[role].weight)
    assert open_checkpoint(checkpoint) is checkpoint
    assert module_config(checkpoint, ACTOR_CONFIG, Size.from_dict) == Size(2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("critic", {}, r"holds no critic, only average, net\."),
        (
            "critic",
            {"absent": "{path} holds no judge, only {roles}: train one."},
            "holds no judge, only average, net: train one.",
        ),
        ("wide", {}, r"'module_configs\.wide' \(width=1000000 in a Size is above its limit of 100000\.\)"),
        ("average", {}, "size mismatch"),
        ("net", {"roles": ("target",)}, "holds no role 'target'; it holds: average, net"),
    ],
)
def test_what_cannot_be_restored_is_named_with_file_and_field(checkpoint, name, options, message):
    with pytest.raises(CheckpointError, match=message) as error:
        restore_module(checkpoint[0], name, Size.from_dict, make, **options)
    assert str(checkpoint[0].path) in str(error.value)


def test_no_other_file_builds_a_module_from_a_checkpoint():
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "building"
    }
    assert users == {"runs/restore.py"}
