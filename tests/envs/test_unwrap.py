"""The environments below transforms."""

from __future__ import annotations

import ast
from pathlib import Path

from torchrl.envs import PendulumEnv, RewardSum, StepCounter, TransformedEnv

from torchrl_flow.envs.unwrap import base_env, layers

PACKAGE = Path(__file__).parents[2] / "torchrl_flow"


def test_layers_go_from_the_outermost_to_the_innermost():
    inner = PendulumEnv()
    middle = TransformedEnv(inner, StepCounter())
    # TorchRL joins nested environments unless they are told apart.
    outer = TransformedEnv(middle, RewardSum(), auto_unwrap=False)
    assert [id(env) for env in layers(outer)] == [id(outer), id(middle), id(inner)]
    assert base_env(outer) is inner
    assert base_env(inner) is inner


def test_no_other_file_unwraps_in_a_loop():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        loops = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.While)]
        if path.name != "unwrap.py" and any("TransformedEnv" in ast.unparse(loop.test) for loop in loops):
            wrong.append(str(path))
    assert wrong == []
