"""FetchPickAndPlace of gymnasium-robotics as a task of the recipes, with demonstrations of a scripted expert.

    pip install -e '.[outside]'
    python -m benchmarks.fetch --number 200 --output demos/fetch
    python examples/shortcut_flow_bc.py --task benchmarks.fetch:make_env --demos demos/fetch --name fetch
    TORCHRL_FLOW_TASKS=benchmarks.fetch:make_env python examples/reinflow.py --policy runs/fetch

The expert opens the gripper above the cube, descends, closes it, and carries the cube to the goal. Noise is added to
its actions, and all episodes are kept, including failures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torchrl.data import Binary
from torchrl.envs import EnvBase, GymWrapper, default_info_dict_reader
from tqdm import tqdm

from torchrl_flow.data import DemoStore

STEPS = 50
TASK = {"task": "FetchPickAndPlace-v4", "control_mode": "mocap", "obs_mode": "state", "reward_mode": "sparse"}
GAIN = 8.0
"""Action per metre of distance; an action of 1 moves the gripper by at most 5 cm."""


class FlatFetch(gym.Wrapper):
    """Wrapper with state and goal as float32 ``[28]``, reward 1 at the goal, otherwise 0, and success in ``info``."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (28,), np.float32)
        low, high = np.float32(env.action_space.low), np.float32(env.action_space.high)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def reset(self, **options: Any) -> Any:
        """Start an episode."""
        observation, _ = self.env.reset(**options)
        return self._flat(observation), {"success": np.array([False])}

    def step(self, action: Any) -> Any:
        """Step the environment."""
        observation, _, terminated, truncated, info = self.env.step(action)
        success = bool(info["is_success"])
        return self._flat(observation), float(success), terminated, truncated, {"success": np.array([success])}

    @staticmethod
    def _flat(observation: dict[str, Any]) -> np.ndarray:
        return np.concatenate([observation["observation"], observation["desired_goal"]]).astype(np.float32)


def make_gym(max_episode_steps: int = STEPS, render_mode: str | None = None) -> FlatFetch:
    """Make the gymnasium environment."""
    import gymnasium_robotics  # pyright: ignore[reportMissingImports]

    gym.register_envs(gymnasium_robotics)
    return FlatFetch(gym.make(TASK["task"], max_episode_steps=max_episode_steps, render_mode=render_mode))


def make_env(max_episode_steps: int = STEPS) -> EnvBase:
    """Make the task for the recipes."""
    env: Any = GymWrapper(make_gym(max_episode_steps), device="cpu")
    spec: Any = {"success": Binary(1, shape=torch.Size([1]), dtype=torch.bool)}
    env.set_info_dict_reader(default_info_dict_reader(["success"], spec=spec))
    env.task_info = {**TASK, "max_episode_steps": max_episode_steps}
    return env


def expert(observation: np.ndarray, holding: bool) -> tuple[np.ndarray, bool]:
    """Return the expert's action and whether it now holds the cube.

    Args:
        observation: observation of :class:`FlatFetch`.
        holding: value returned at the previous step.
    """
    gripper, cube, fingers, goal = observation[:3], observation[3:6], observation[9:11], observation[25:28]
    above = cube + np.array([0.0, 0.0, 0.08])
    aside = np.linalg.norm(gripper[:2] - cube[:2])
    around = aside < 0.015 and abs(gripper[2] - cube[2]) < 0.015
    holding = bool((holding or around) and np.linalg.norm(gripper - cube) < 0.05)
    if holding:
        closed = fingers.sum() < 0.055
        return np.append(GAIN * (goal - cube) if closed else np.zeros(3), -1.0), True
    target = cube if aside < 0.02 else above
    return np.append(GAIN * (target - gripper), 1.0), False


def episodes(number: int, noise: float) -> Iterator[dict[str, Any]]:
    """Record the expert with Gaussian noise on its actions, from the seeds 0 on."""
    env, rng = make_gym(), np.random.default_rng(0)
    for seed in tqdm(range(number)):
        observation, holding = env.reset(seed=seed)[0], False
        rows: dict[str, list[Any]] = {"observation": [observation], "action": [], "reward": [], "success": []}
        for _ in range(STEPS):
            action, holding = expert(observation, holding)
            action = np.clip(action + rng.normal(0, noise, 4) * np.array([1, 1, 1, 0]), -1, 1).astype(np.float32)
            observation, reward, _, _, info = env.step(action)
            for key, value in (("observation", observation), ("action", action), ("reward", reward)):
                rows[key].append(value)
            rows["success"].append(bool(info["success"][0]))
        yield {**{key: np.stack(value) for key, value in rows.items()}, "seed": seed}


def main(number: int = 200, noise: float = 0.1, output: str = "demos/fetch") -> None:
    """Write the demonstrations.

    Args:
        number: number of episodes.
        noise: standard deviation of the noise on the expert's actions.
        output: directory of the demo store.
    """
    info = {**TASK, "max_episode_steps": STEPS}
    store = DemoStore.from_episodes(episodes(number, noise), output, task_info=info, overwrite=True)
    success = store.steps["success"].reshape(-1, STEPS)
    print(f"{output}: {len(success)} episodes, success at the end {success[:, -1].float().mean():.2f}")


if __name__ == "__main__":
    tyro.cli(main)
