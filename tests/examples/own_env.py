"""Environments of a user's own, and the functions that make them for ``--task tests.examples.own_env:make_reach``."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torchrl.data import Binary
from torchrl.envs import (
    CatTensors,
    Compose,
    DoubleToFloat,
    GymWrapper,
    ParallelEnv,
    TransformedEnv,
    default_info_dict_reader,
)


class Reach(gym.Env):
    """Move a point to a goal; float64, a Dict space, success in ``info``."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        box = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.observation_space = gym.spaces.Dict({"position": box, "goal": box})
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe()

    def step(self, action):
        self.position = np.clip(self.position + 0.1 * np.asarray(action, np.float64), -1, 1)
        observation, info = self._observe()
        success = bool(info["success"].item())
        return observation, float(success), success, False, info

    def _observe(self):
        success = np.linalg.norm(self.position - self.goal) < 0.1
        return {"position": self.position.copy(), "goal": self.goal.copy()}, {"success": np.array([success])}

    def render(self):
        return None if self.render_mode is None else np.full((32, 32, 3), 200, np.uint8)


def base(steps, render_mode=None):
    return GymWrapper(gym.wrappers.TimeLimit(Reach(render_mode), steps), device="cpu")


def transformed(env):
    to_float = DoubleToFloat(in_keys=["position", "goal"])
    join = CatTensors(in_keys=["goal", "position"], out_key="observation")
    return TransformedEnv(env, Compose(to_float, join))


def make_reach(max_episode_steps=20):
    """With success, without task_info; takes a time limit and no number of environments."""
    env = base(max_episode_steps)
    spec = {"success": Binary(1, shape=(1,), dtype=torch.bool)}
    env.set_info_dict_reader(default_info_dict_reader(["success"], spec=spec))
    return transformed(env)


def make_parallel(num_envs=2, max_episode_steps=20):
    """In worker processes, as a slow simulation would be."""
    return ParallelEnv(num_envs, make_reach, create_env_kwargs={"max_episode_steps": max_episode_steps})


def make_plain():
    """Without success and without arguments."""
    return transformed(base(15))


def make_named():
    """With a name of its own."""
    env = make_reach()
    env.base_env.task_info = {"task": "reach", "control_mode": "velocity", "obs_mode": "state"}
    return env


def make_filmed():
    return transformed(base(15, render_mode="rgb_array"))


def make_float64():
    return TransformedEnv(base(15), CatTensors(in_keys=["goal", "position"], out_key="observation"))


def make_unjoined():
    return TransformedEnv(base(15), DoubleToFloat(in_keys=["position", "goal"]))


def make_discrete():
    from torchrl.envs import GymEnv

    return GymEnv("CartPole-v1", device="cpu")


def make_gym():
    return Reach()


def demonstrate(seed):
    """An episode of a scripted controller, in the columns of ``transformed``."""
    env, rng = gym.wrappers.TimeLimit(Reach(), 20), np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    frames, actions, successes, done = [observation], [], [], False
    while not done:
        towards = 8 * (observation["goal"] - observation["position"])
        action = np.clip(towards + rng.normal(0, 0.3, 2), -1, 1).astype(np.float32)
        observation, _, terminated, truncated, info = env.step(action)
        frames.append(observation)
        actions.append(action)
        successes.append(info["success"].item())
        done = terminated or truncated
    joined = np.stack([np.concatenate([frame["goal"], frame["position"]]) for frame in frames])
    return {"observation": joined, "action": np.stack(actions), "success": np.array(successes), "seed": seed}
