"""PushT of gym-pusht as a task of the recipes, with demonstrations of a planner that simulates pushes.

    pip install -e '.[outside]'
    python -m benchmarks.push_t --number 60 --output demos/push_t
    python examples/shortcut_flow_bc.py --task benchmarks.push_t:make_env --demos demos/push_t --name push_t
    TORCHRL_FLOW_TASKS=benchmarks.push_t:make_env python examples/reinflow.py --policy runs/push_t

The planner tries pushes of the block in copies of the simulation, and executes the push that brings the corners of the
block closest to those of the goal. Noise is added to its targets, and all episodes are kept, including failures.
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

STEPS = 300
TASK = {"task": "gym_pusht/PushT-v0", "control_mode": "position", "obs_mode": "state", "reward_mode": "coverage"}
SPEED = 25.0
"""Distance in pixels that the target of the agent moves in a step."""


class FlatPushT(gym.Wrapper):
    """Wrapper with float32 ``[20]`` observations (agent, corners, sine and cosine of the block's angle)."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-3.0, 3.0, (20,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, **options: Any) -> Any:
        """Start an episode."""
        self.env.reset(**options)
        return self._observe(), {"success": np.array([False])}

    def step(self, action: Any) -> Any:
        """Step the environment; an action is the agent's target position, scaled to the board."""
        _, reward, terminated, truncated, info = self.env.step(to_board(action))
        found = {"success": np.array([bool(info["is_success"])])}
        return self._observe(), float(reward), bool(terminated), truncated, found

    def _observe(self) -> np.ndarray:
        inner: Any = self.unwrapped
        angle = [np.sin(inner.block.angle), np.cos(inner.block.angle)]
        places = np.concatenate([[inner.agent.position], corners(inner.block)]).reshape(-1)
        return np.concatenate([places / 256 - 1, angle]).astype(np.float32)


def to_board(action: Any) -> np.ndarray:
    """Scale an action in [-1, 1] to the board of 512 pixels."""
    return (np.clip(np.asarray(action, np.float64), -1, 1) + 1) * 256


def corners(block: Any) -> np.ndarray:
    """Return the corners ``[8, 2]`` of the block's two boxes, in pixels."""
    return np.array([block.local_to_world(vertex) for shape in _shapes(block) for vertex in shape.get_vertices()])


def _shapes(block: Any) -> list[Any]:
    # The shapes are a set, whose order differs between copies.
    return sorted(block.shapes, key=lambda shape: sorted(map(tuple, shape.get_vertices())))


def make_gym(max_episode_steps: int = STEPS, render_mode: str | None = "rgb_array") -> FlatPushT:
    """Make the gymnasium environment."""
    import gym_pusht  # noqa: F401  # pyright: ignore[reportMissingImports]

    return FlatPushT(gym.make(TASK["task"], max_episode_steps=max_episode_steps, render_mode=render_mode))


def make_env(max_episode_steps: int = STEPS) -> EnvBase:
    """Make the task for the recipes."""
    env: Any = GymWrapper(make_gym(max_episode_steps), device="cpu")
    spec: Any = {"success": Binary(1, shape=torch.Size([1]), dtype=torch.bool)}
    env.set_info_dict_reader(default_info_dict_reader(["success"], spec=spec))
    env.task_info = {**TASK, "max_episode_steps": max_episode_steps}
    return env


def simulated(scratch: Any, inner: Any, targets: np.ndarray) -> np.ndarray:
    """Return the corners of the block after the agent moved to targets ``[N, 2]``, in another environment."""
    for name in ("agent", "block"):
        copied, body = getattr(scratch, name), getattr(inner, name)
        # A new angle turns the body about its centre of mass, which moves its position.
        for field in ("angle", "position", "velocity", "angular_velocity"):
            setattr(copied, field, getattr(body, field))
        scratch.space.reindex_shapes_for_body(copied)
    agent, gain, brake, dt = scratch.agent, scratch.k_p, scratch.k_v, scratch.dt
    for target in targets:
        for _ in range(10):
            pull = [gain * (t - p) - brake * v for t, p, v in zip(target, agent.position, agent.velocity)]
            agent.velocity = (agent.velocity[0] + pull[0] * dt, agent.velocity[1] + pull[1] * dt)
            scratch.space.step(dt)
    return corners(scratch.block)


def push(inner: Any, rng: np.random.Generator) -> np.ndarray:
    """Draw a push: targets ``[N, 2]`` around the block to its edge, then in a direction into the block."""
    shape = _shapes(inner.block)[rng.integers(2)]
    vertices = np.array([inner.block.local_to_world(vertex) for vertex in shape.get_vertices()])
    side = rng.integers(4)
    first, second = vertices[side], vertices[(side + 1) % 4]
    edge = first + rng.uniform(0.05, 0.95) * (second - first)
    inward = vertices.mean(0) - (first + second) / 2
    angle = np.arctan2(inward[1], inward[0]) + rng.normal(0, 0.2)
    direction = np.array([np.cos(angle), np.sin(angle)])
    start = edge - 24 * direction
    path, here, centre = [], np.array(inner.agent.position), corners(inner.block).mean(0)
    for _ in range(12):
        # Move on a circle around the block unless the direct path is free.
        if np.dot(start - here, start - here) < 40**2 or _free(here, start, centre):
            break
        now, wanted = (np.arctan2(*(place - centre)[::-1]) for place in (here, start))
        turn = np.clip((wanted - now + np.pi) % (2 * np.pi) - np.pi, -0.5, 0.5)
        here = centre + 115 * np.array([np.cos(now + turn), np.sin(now + turn)])
        path.append(here)
    end = start + (24 - 12 + rng.choice([6, 15, 30, 60, 100])) * direction
    return np.clip(
        np.concatenate([_line(np.array(inner.agent.position), [*path, start]), _line(start, [end])]), 12, 500
    )


def _free(here: np.ndarray, there: np.ndarray, centre: np.ndarray) -> bool:
    """Return whether a straight path avoids the block, except at its end."""
    along = np.clip(np.dot(centre - here, there - here) / max(np.dot(there - here, there - here), 1e-6), 0, 1)
    return bool(np.linalg.norm(here + along * (there - here) - centre) > min(90.0, np.linalg.norm(there - centre) - 1))


def _line(here: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    found = []
    for place in places:
        number = max(1, round(float(np.linalg.norm(place - here)) / SPEED))
        found += [here + (place - here) * (i + 1) / number for i in range(number)]
        here = place
    return np.array(found)


def plan(scratch: Any, inner: Any, goal: np.ndarray, rng: np.random.Generator, number: int) -> np.ndarray:
    """Return the targets of the best of several pushes; a step costs as much as half a pixel."""
    pushes = [push(inner, rng) for _ in range(number)]
    costs = [np.linalg.norm(simulated(scratch, inner, p) - goal, axis=-1).mean() + 0.1 * len(p) for p in pushes]
    return pushes[int(np.argmin(costs))]


def episodes(number: int, noise: float, pushes: int) -> Iterator[dict[str, Any]]:
    """Record the planner with Gaussian noise on its targets, from the seeds 0 on."""
    env, rng = make_gym(), np.random.default_rng(0)
    other = make_gym()
    other.reset(seed=0)
    scratch: Any = other.unwrapped
    for seed in tqdm(range(number)):
        observation = env.reset(seed=seed)[0]
        inner: Any = env.unwrapped
        body = inner.get_goal_pose_body(inner.goal_pose)
        goal = np.array([body.local_to_world(v) for shape in _shapes(inner.block) for v in shape.get_vertices()])
        rows: dict[str, list[Any]] = {"observation": [observation], "action": [], "reward": [], "success": []}
        done, targets = False, []
        while not done:
            targets = targets or list(plan(scratch, inner, goal, rng, pushes))
            target = targets.pop(0) + rng.normal(0, noise, 2)
            action = np.clip(target / 256 - 1, -1, 1).astype(np.float32)
            observation, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            for key, value in (("observation", observation), ("action", action), ("reward", reward)):
                rows[key].append(value)
            rows["success"].append(bool(info["success"][0]))
        yield {**{key: np.stack(value) for key, value in rows.items()}, "seed": seed}


def main(number: int = 60, noise: float = 2.0, pushes: int = 40, output: str = "demos/push_t") -> None:
    """Write the demonstrations.

    Args:
        number: number of episodes.
        noise: standard deviation of the noise on the targets, in pixels.
        pushes: number of pushes that the planner tries.
        output: directory of the demo store.
    """
    found = list(episodes(number, noise, pushes))
    DemoStore.from_episodes(found, output, task_info={**TASK, "max_episode_steps": STEPS}, overwrite=True)
    successes, steps = [episode["success"][-1] for episode in found], [len(episode["action"]) for episode in found]
    print(f"{output}: {number} episodes of {np.mean(steps):.0f} steps, success {np.mean(successes):.2f}")


if __name__ == "__main__":
    tyro.cli(main)
