"""The command ``check-batch``: a comparison of batched ManiSkill tasks on the CPU with single environments."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
import torch
import tyro
from torch import Tensor

from torchrl_flow.data.checks.json import read_object
from torchrl_flow.data.errors import DataError
from torchrl_flow.envs import BatchUnsupportedError, ManiSkillEnv
from torchrl_flow.util.files import write_text
from torchrl_flow.util.torchrl_compat import wrapped_env

__all__ = ["CheckBatchArgs"]

_MARKS = ("<!-- begin batched tasks -->", "<!-- end batched tasks -->")
_HEADER = "| task | with its default controller, and pd_ee_delta_pose where it has it |\n|---|---|"


@dataclasses.dataclass
class CheckBatchArgs:
    """Compare many ManiSkill environments in one CPU process with single ones, bit for bit."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """ManiSkill ids; by default all registered tasks"""
    num_envs: int = 4
    """sub-environments"""
    steps: int = 30
    """number of steps with random actions; with --demos, the actions of the demonstrations instead"""
    control_mode: tuple[str, ...] = ()
    """controllers; by default the default controller of the task, and pd_ee_delta_pose if the task has it"""
    reward_mode: Literal["sparse", "dense", "normalized_dense", "none"] | None = None
    """reward mode; by default sparse, or a mode that the task has"""
    demos: str | None = None
    """.h5 file of demonstrations of the task, which are replayed from their first states"""
    reset_probability: float = 0.03
    """probability that a sub-environment is reset after a step"""
    fresh: int = 2
    """number of episodes that are each compared with a new environment"""
    table: str | None = None
    """Markdown file in which the table between its begin and end marks is replaced"""
    threads: int = 1
    """CPU threads"""

    def __call__(self) -> None:
        """Compare, print one line per task, and write the table.

        Raises:
            SystemExit: with status 1 if a batch differs, or if the demonstrations are not of a single task.
        """
        torch.set_num_threads(self.threads)
        if self.demos is not None and len(self.tasks) != 1:
            raise SystemExit("--demos needs exactly one task, that of the demonstrations: name it.")
        rows, equal = [], True
        for task in self.tasks or _registered():
            outcome, same = self._check(task)
            equal &= same
            rows.append(f"| {task} | {outcome} |")
            print(f"{task}: {outcome}", flush=True)
            if self.table is not None:
                _write_table(Path(self.table), [_HEADER, *rows])
        if not equal:
            raise SystemExit(1)

    def _check(self, task: str) -> tuple[str, bool]:
        """Return the outcome in words, and whether all bits were equal."""
        from torchrl_flow.envs.maniskill.build import reconfiguration_of_one
        from torchrl_flow.envs.maniskill.comparison import compare_with_single

        try:
            modes, kwargs = self._options(task)
            together = self.demos is not None or reconfiguration_of_one(task) > 0
        except (Exception, SystemExit) as error:
            missing = isinstance(error, EOFError)  # ManiSkill asked on the terminal whether to download the assets
            reason = "the assets of its robot are not here" if missing else _sentence(error)
            return f"ManiSkill cannot simulate it alone here: {reason}", True
        outcomes, same = [], True
        for mode in modes:
            count = self.num_envs * 4
            try:
                starts, act, steps = self._plan(task, mode, kwargs)
                result = compare_with_single(
                    task,
                    act,
                    starts[:count],
                    num_envs=min(self.num_envs, len(starts)),
                    steps=steps,
                    reset_probability=0.0 if together else self.reset_probability,
                    fresh=self.fresh,
                    control_mode=mode,
                    **kwargs,
                )
            except BatchUnsupportedError as error:
                return f"refused: {_sentence(error)}", True
            except RuntimeError as error:  # the other tasks are still compared
                return f"fails: {_sentence(error)}", False
            same &= result.equal
            outcomes.append(result.summary().split(": ", 1)[1])
        return "; ".join(dict.fromkeys(outcomes)), same

    def _options(self, task: str) -> tuple[list[str], dict[str, Any]]:
        """Return control modes and arguments with which the single environment makes a step."""
        from mani_skill.utils.registration import REGISTERED_ENVS

        known = REGISTERED_ENVS[task].cls.SUPPORTED_REWARD_MODES if task in REGISTERED_ENVS else ("sparse",)
        # Some tasks declare a reward mode without implementing it.
        rewards = [mode for mode in ("sparse", "normalized_dense", "none") if mode in known]
        rewards = rewards if self.reward_mode is None else [self.reward_mode]
        for reward in rewards:
            # Environments that end together may be rebuilt together.
            kwargs: dict[str, Any] = {"reward_mode": reward, "visuals": False, "ignore_terminations": True}
            try:
                return self._modes(task, kwargs), kwargs
            except (RuntimeError, NotImplementedError):
                if reward == rewards[-1]:
                    raise
        raise ValueError(f"{task} has none of the rewards sparse, normalized_dense and none, only {', '.join(known)}.")

    def _modes(self, task: str, kwargs: Mapping[str, Any]) -> list[str]:
        default: Any = None
        with _nobody_at_the_terminal():
            env = ManiSkillEnv(task, control_mode=default, seed=0, **kwargs)
        simulator = wrapped_env(env).unwrapped
        default_mode, supported = simulator.control_mode, simulator.agent.supported_control_modes
        try:
            env.step(env.rand_action(env.reset()))
        finally:
            env.close()
        if self.demos is not None:
            return [_metadata(self.demos)["env_info"]["env_kwargs"]["control_mode"]]
        modes = list(dict.fromkeys([default_mode, "pd_ee_delta_pose"]))
        return list(self.control_mode) or [mode for mode in modes if mode in supported]

    def _plan(self, task: str, mode: str, kwargs: Mapping[str, Any]) -> tuple[list[Any], Callable[..., Tensor], int]:
        from torchrl_flow.envs.maniskill.comparison import Start

        if self.demos is not None:
            played = list(_demonstrations(self.demos, self.num_envs))
            steps = min(len(actions) for _, _, actions in played)
            table = torch.stack([actions[:steps] for _, _, actions in played], 1)
            return [Start(seed, state) for seed, state, _ in played], lambda step, _: table[step], steps
        env = ManiSkillEnv(task, control_mode=mode, seed=0, **kwargs)
        space: Any = env.action_spec.space
        low, high = space.low.clamp(min=-3), space.high.clamp(max=3)
        env.close()
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(self.steps, self.num_envs, low.shape[-1], generator=generator)
        actions = low + (high - low) * noise
        return [Start(seed) for seed in range(4 * self.num_envs)], lambda step, _: actions[step], self.steps


@contextlib.contextmanager
def _nobody_at_the_terminal() -> Iterator[None]:
    """Make ManiSkill's download prompt for a robot fail instead of waiting for an answer."""
    with open(os.devnull, encoding="utf-8") as nothing:
        stdin, sys.stdin = sys.stdin, nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _registered() -> list[str]:
    from torchrl_flow.envs.maniskill.requirements import require_maniskill

    require_maniskill()
    from mani_skill.utils.registration import REGISTERED_ENVS

    return sorted(REGISTERED_ENVS)


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("|", "/").replace(str(Path.home()), "~")[:300]


def _metadata(path: str) -> dict[str, Any]:
    file = Path(path).with_suffix(".json")
    if not file.is_file():
        raise DataError(
            f"{file} is missing, which lists the seeds of the demonstrations in {path}: put it next to that file."
        )
    return read_object(file)


def _demonstrations(path: str, count: int) -> Iterator[tuple[int, dict[str, Any], Tensor]]:
    """Yield seed, first state and actions of the first demonstrations of a file."""
    episodes = _metadata(path)["episodes"][:count]
    with h5py.File(path, "r") as file:
        for episode in episodes:
            group: Any = file[f"traj_{episode['episode_id']}"]
            if "env_states" not in group:
                raise DataError(
                    f"{path} has no env_states, from which the episodes start: record the demonstrations with them."
                )
            yield int(episode["episode_seed"]), _first_state(group["env_states"]), torch.tensor(group["actions"][:])


def _first_state(group: Any) -> dict[str, Any]:
    return {
        key: _first_state(value) if isinstance(value, h5py.Group) else torch.from_numpy(np.asarray(value[0]))
        for key, value in group.items()
    }


def _write_table(path: Path, lines: list[str]) -> None:
    text = path.read_text(encoding="utf-8")
    begin, end = _MARKS
    if begin not in text or end not in text:
        raise SystemExit(f"{path} has no marks {begin} and {end}, between which the table is written: add them.")
    before, after = text.split(begin, 1)[0], text.split(end, 1)[1]
    write_text(path, before + begin + "\n" + "\n".join(lines) + "\n" + end + after)
