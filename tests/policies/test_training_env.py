"""The environment to train in, and whether success ends its episodes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policies.test_rebuild import saved
from torchrl_flow.envs import PlanarPickPlaceEnv, base_env
from torchrl_flow.policies import make_training_envs
from torchrl_flow.runs import load_checkpoint


@pytest.mark.parametrize(("after_success", "ignores"), [("end", False), ("continue", True)])
def test_success_ends_training_episodes_or_not_and_never_those_of_an_evaluation(tmp_path, after_success: Any, ignores):
    saved(tmp_path / "a.torchrl")
    checkpoint = load_checkpoint(tmp_path / "a.torchrl")
    train_env, eval_env = make_training_envs(checkpoint, num_envs=3, episodes=10, after_success=after_success)
    inner = base_env(train_env), base_env(eval_env)
    assert all(isinstance(env, PlanarPickPlaceEnv) for env in inner)
    assert [env.ignore_terminations for env in inner] == [ignores, True]
    assert [env.batch_size.numel() for env in inner] == [3, 10]
