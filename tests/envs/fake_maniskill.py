"""A small batched environment with ManiSkill's interface and ManiSkill's habits, good and bad."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import torch


class FakeManiSkill:
    """A point on a plane that must get past x = 1.

    As in ManiSkill: outputs alias live buffers, success is not latched, a reset returns the whole batch,
    torch is seeded once a call with the first seed, NumPy once a sub-environment, and without seeds torch's
    global generator is drawn from.

    The observation is (x, y, w): x, y drawn with torch, w with NumPy; y grows by one half of the action.
    """

    def __init__(self, num_envs: int = 3, max_episode_steps: int | None = 6, rgb: bool = False, freq: int = 0):
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.obs_mode = "rgb" if rgb else "state"
        self.control_mode = "fake_control"
        self.reward_mode = "sparse"
        self.reconfiguration_freq = freq
        self.renders = 0
        self.reset_calls: list[tuple] = []
        self._max_episode_steps = max_episode_steps
        self._state = torch.zeros(num_envs, 3)
        self._elapsed_steps = torch.zeros(num_envs, dtype=torch.int32)
        self._success = torch.zeros(num_envs, dtype=torch.bool)
        self._numpy = [np.random.RandomState(i) for i in range(num_envs)]
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        box = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        image = gymnasium.spaces.Box(0, 255, (4, 5, 3), np.uint8)
        self.single_observation_space = box
        if rgb:
            spaces = gymnasium.spaces.Dict
            self.single_observation_space = spaces(
                agent=spaces(xy=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)),
                extra=spaces(w=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)),
                sensor_data=spaces(base_camera=spaces(rgb=image)),
            )

    unwrapped = property(lambda self: self)
    elapsed_steps = property(lambda self: self._elapsed_steps)
    spec = property(lambda self: SimpleNamespace(id="Fake-v1"))

    def reset(self, seed=None, options=None):
        ids = options.get("env_idx", torch.arange(self.num_envs))
        self.reset_calls.append((seed, ids.tolist()))
        if seed is not None:
            assert len(seed) == self.num_envs
            self._numpy = [np.random.RandomState(s) for s in seed]
            with torch.random.fork_rng():
                torch.manual_seed(seed[0])
                xy = torch.rand(len(ids), 2)
        else:
            xy = torch.rand(len(ids), 2)
        self._state[ids, :2] = xy
        self._state[ids, 2] = torch.tensor([self._numpy[i].uniform() for i in ids.tolist()], dtype=torch.float32)
        if "reset_to_env_states" in options:
            self._state[ids] = options["reset_to_env_states"]["env_states"]["actors"]["point"]
        self._elapsed_steps[ids] = 0
        self._success[:] = self._state[:, 0] > 1
        return self._observe(), self._info()

    def step(self, action):
        assert action.shape == (self.num_envs, 2)
        self._state[:, 0] += action[:, 0]
        self._state[:, 1] += action[:, 1] / 2
        self._elapsed_steps += 1
        self._success[:] = self._state[:, 0] > 1
        limit = self._max_episode_steps or 10**9
        return self._observe(), self._success, self._success, self._elapsed_steps >= limit, self._info()

    def _info(self):
        return {"elapsed_steps": self._elapsed_steps, "success": self._success}

    def _observe(self):
        if self.obs_mode == "state":
            return self._state
        agent, extra = {"xy": self._state[:, :2]}, {"w": self._state[:, 2]}
        return {"agent": agent, "extra": extra, "sensor_data": self._get_obs_sensor_data()}

    def _get_obs_sensor_data(self):
        self.renders += 1
        image = self._elapsed_steps.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 5, 3)
        return {"base_camera": {"rgb": image}}

    def get_state_dict(self):
        return {"actors": {"point": self._state}}

    def close(self):
        self.closed = True


class FailingManiSkill(FakeManiSkill):
    """The same point, which is lost where it gets past x = -1: as in ManiSkill, ``fail`` ends the episode too."""

    def _fail(self):
        return self._state[:, 0] < -1

    def step(self, action):
        observation, _, _, truncated, info = super().step(action)
        fail = info["fail"]
        return observation, self._success.float() - fail.float(), self._success | fail, truncated, info

    def _info(self):
        return {**super()._info(), "fail": self._fail()}
