"""Observations and actions of float64 are named where an environment of chunks is made."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from torchrl.envs import DoubleToFloat, GymWrapper, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_flow.envs import make_chunk_env


class Point(gym.Env):
    def __init__(self, observations, actions):
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), observations)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2).astype(self.observation_space.dtype)
        return self.position.copy(), {}

    def step(self, action):
        assert action.dtype == self.action_space.dtype
        self.position = np.clip(self.position + 0.1 * action, -1, 1).astype(self.observation_space.dtype)
        return self.position.copy(), 1.0, False, False, {}


def chunks(env):
    return make_chunk_env(env, obs_horizon=2, act_horizon=3, gamma=0.9)


@pytest.mark.parametrize(
    ("observations", "actions", "named"),
    [
        (np.float64, np.float32, r"'observation' of GymWrapper is float64.*DoubleToFloat\(in_keys=\['observation'\]\)"),
        (np.float32, np.float64, r"'action' of GymWrapper is float64.*DoubleToFloat\(in_keys_inv=\['action'\]\)"),
    ],
)
def test_float64_is_refused_and_the_remedy_works(observations, actions, named):
    env = GymWrapper(Point(observations, actions))
    with pytest.raises(ValueError, match=named):
        chunks(env)
    keys = {"in_keys": ["observation"]} if observations is np.float64 else {"in_keys_inv": ["action"]}
    env = chunks(TransformedEnv(env, DoubleToFloat(**keys)))
    check_env_specs(env)
    data = env.rollout(2)
    assert data["action"].dtype == data["observation"].dtype
    assert str(data["action"].dtype) == "torch.float32"
