"""Simulation of several motions in a batch, each from its own seed, with the recordings of single simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from torchrl_flow.demos.recording import RecordedEpisode, recorded_episode
from torchrl_flow.envs.maniskill.batched import make_batched
from torchrl_flow.envs.maniskill.renewal import SceneRenewal
from torchrl_flow.envs.maniskill.resets import EpisodeResets

__all__ = ["EnvRow", "SideBySide"]


class EnvRow(gymnasium.Wrapper):
    """The interface of one simulation for its controller."""

    def __init__(self, rows: SideBySide, number: int) -> None:
        super().__init__(rows.env)
        self._rows, self.number = rows, number

    @property
    def ee_pose(self) -> np.ndarray:
        """``[7]`` current position and quaternion of the end effector."""
        return self._rows.ee_poses[self.number]

    @property
    def solved(self) -> bool:
        """Whether the task is currently solved."""
        return bool(self._rows.success[self.number])


class SideBySide:
    """N simulations of a task in one process, in a batch on the CPU (``make_batched``).

    Each equals, bit for bit, the simulation of its seed in a newly built single environment.

    Args:
        task: ManiSkill id of the task.
        number: N, number of simulations.
        control_mode: control mode that moves the end effector.
        obs_mode: observation mode, ``"state"``.
        reward_mode: mode of the recorded rewards.
        max_episode_steps: time limit; no motion may reach it.

    Raises:
        BatchUnsupportedError: if the task runs in a single environment, but not in a batch.

    Note:
        Not for tasks that rebuild their scene for each episode (``reconfiguration_of_one``): a batch keeps its scenes.
    """

    def __init__(
        self, task: str, number: int, *, control_mode: str, obs_mode: str, reward_mode: str, max_episode_steps: int
    ) -> None:
        options: dict[str, Any] = {"control_mode": control_mode, "obs_mode": obs_mode, "reward_mode": reward_mode}
        options |= {"sim_backend": "physx_cpu", "render_mode": None, "render_backend": "none"}
        self.number = number
        self.env: gymnasium.Env = make_batched(task, number, 1, max_episode_steps, **options)
        self.base: Any = self.env.unwrapped
        self._arm = self.base.agent.controller.controllers["arm"]
        self._resets = EpisodeResets(self.env, number, torch.device("cpu"), SceneRenewal(self.base))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def reset(self, seeds: Sequence[int], *, record: bool) -> list[EnvRow]:
        """Begin the episodes of up to N seeds; return the simulations for their controllers."""
        filled = [*seeds, *[seeds[-1]] * (self.number - len(seeds))]
        with torch.inference_mode():
            observation, info = self._resets(None, filled, None, None)
        self._seeds, self._record = list(seeds), record
        self._frames: list[Any] = []
        self._states: list[Any] = []
        self._outcomes: list[list[np.ndarray]] = []
        self.actions: list[list[np.ndarray]] = [[] for _ in seeds]
        self._look(observation, info)
        return [EnvRow(self, number) for number in range(len(seeds))]

    def run(self, controllers: Sequence[Callable[[Any], np.ndarray | None]], rows: Sequence[EnvRow]) -> None:
        """Step until every controller has returned None; finished simulations continue and are ignored."""
        going = list(range(len(rows)))
        actions = np.zeros((self.number, sum(self.base.single_action_space.shape)), dtype=np.float32)
        while True:
            given = {number: controllers[number](rows[number]) for number in going}
            going = [number for number, action in given.items() if action is not None]
            if not going:
                return
            actions[:] = 0
            for number in going:
                actions[number] = np.asarray(given[number], dtype=np.float32).reshape(-1)
                self.actions[number].append(actions[number].copy())
            with torch.inference_mode():
                observation, reward, terminated, truncated, info = self.env.step(torch.from_numpy(actions.copy()))
            if self._record:
                outcome = [info["success"], terminated, truncated, reward, *([info["fail"]] if "fail" in info else [])]
                self._outcomes.append([np.array(value).reshape(self.number) for value in outcome])
            self._look(observation, info)

    def _look(self, observation: Any, info: Mapping[str, Any]) -> None:
        with torch.inference_mode():
            self.ee_poses = np.array(self._arm.ee_link.pose.raw_pose)
            self.success = np.array(info["success"]).reshape(-1) if "success" in info else np.zeros(self.number, bool)
            if self._record:
                self._frames.append(_copy(observation))
                self._states.append(_copy(self.base.get_state_dict()))

    def qpos(self, number: int) -> np.ndarray:
        """Joint positions ``[J]`` of one simulation."""
        return self.base.agent.robot.get_qpos()[number].numpy().copy()

    def episode(self, number: int, with_rewards: bool, perturbed: np.ndarray | None = None) -> RecordedEpisode:
        """Return the episode of one simulation; ``perturbed`` marks the steps that are not to be imitated."""
        steps = len(self.actions[number])
        return recorded_episode(
            self._seeds[number],
            [_row(frame, number) for frame in self._frames[: steps + 1]],
            [_row(state, number) for state in self._states[: steps + 1]],
            self.actions[number],
            [[value[number] for value in outcome] for outcome in self._outcomes[:steps]],
            with_rewards,
            perturbed,
        )


def _copy(tree: Any) -> Any:
    """Return a copy of all rows, as numpy."""
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return np.array(tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else tree)


def _row(tree: Any, number: int) -> Any:
    if isinstance(tree, Mapping):
        return {key: _row(value, number) for key, value in tree.items()}
    return tree[number]
