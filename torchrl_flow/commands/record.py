"""The command ``record``: recording of a run's policy as demonstrations for behaviour cloning."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import tyro

from torchrl_flow.data import DemoStore, Episode
from torchrl_flow.envs import task_info
from torchrl_flow.evaluation.policy_episodes import record_episodes, successful_part
from torchrl_flow.options.names import RunSource, WritableDirectory
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.run_arguments import resolve_device
from torchrl_flow.options.types import Count, NonNegative, NonNegativeInt, check_options
from torchrl_flow.policies.acting import load_acting_policy, policy_kind
from torchrl_flow.policies.training_env import policy_evaluation_env
from torchrl_flow.runs.names import Which

__all__ = ["RecordArgs"]


@dataclasses.dataclass
class RecordArgs:
    """Record the episodes that the policy of a run plays, as demonstrations."""

    checkpoint: Annotated[RunSource, tyro.conf.Positional]
    """checkpoint file, or the directory of a run"""
    output: WritableDirectory
    """directory of the new demo store, which a recipe takes as --demos"""
    which: Which = "last"
    """checkpoint of a run to play: last or best"""
    episodes: Count = 1000
    """episodes to play, each from its own seed"""
    first_seed: NonNegativeInt = 1_000_000
    """seed of the first episode; evaluations play the seeds from 10000 on"""
    keep: Literal["success", "all"] = "success"
    """success: keep episodes that solve the task, up to the success; all: keep every episode whole"""
    hold: NonNegativeInt = 15
    """steps to keep after a success that lasts to the end of its episode, with --keep success"""
    noise_scale: NonNegative = 1.0
    """standard deviation of the flow's initial noise; below 1, actions are closer to their mode"""
    num_envs: NonNegativeInt | None = None
    """environments that run side by side; the episodes do not depend on it"""
    max_episode_steps: Count | None = None
    """time limit of an episode; by default the time limit of the run"""
    device: str = "cpu"
    """device of the policy: cpu, cuda (cuda:1, ...), or auto for cuda if there is a GPU"""
    threads: Count = 1
    """CPU threads"""

    def __call__(self) -> None:
        """Record the episodes, and print a summary."""
        with refusals_in_one_line():
            print(self.record())

    def record(self) -> str:
        """Record the episodes, write the store, and return the line to print.

        Raises:
            SystemExit: if the policy acts only on logged data, or no episode is kept.
            CheckpointError: if the checkpoint holds no known kind of policy.
            DataError: if the output exists already.
        """
        check_options(self)
        torch.set_num_threads(self.threads)
        policy, checkpoint = load_acting_policy(self.checkpoint, which=self.which, device=resolve_device(self.device))
        kind = policy_kind(checkpoint)
        if kind.on_logged_data:
            raise SystemExit(
                f"{self.checkpoint} holds a {kind.name}, which acts on logged data and plays no episodes: give the "
                "run of another recipe."
            )
        env = policy_evaluation_env(
            checkpoint,
            num_envs=self.num_envs,
            episodes=self.episodes,
            max_episode_steps=self.max_episode_steps,
            record_steps=True,
        )
        seeds = range(self.first_seed, self.first_seed + self.episodes)
        episodes = record_episodes(env, policy, seeds, noise_scale=self.noise_scale)
        kept = self._kept(episodes)
        first = next(kept, None)
        if first is None:
            raise SystemExit(
                f"none of {self.episodes} episodes of {self.checkpoint} solves the task: record more, or --keep all."
            )
        about = {"recorded_from": str(checkpoint.path.name), "first_seed": self.first_seed, "keep": self.keep}
        chain = itertools.chain([first], kept)
        store = DemoStore.from_episodes(chain, self.output, task_info=task_info(env), metadata=about)
        env.close()
        return (
            f"{store.num_episodes} of {self.episodes} episodes, {store.num_steps} steps, in {self.output}: "
            f"clone them with --demos {self.output} --num-demos {store.num_episodes}."
        )

    def _kept(self, episodes: Iterator[Episode]) -> Iterator[Episode]:
        for episode in episodes:
            part = episode if self.keep == "all" else successful_part(episode, self.hold)
            if part is not None:
                yield part
