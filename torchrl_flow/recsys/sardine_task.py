"""The offline baselines on SARDINE, a third-party simulator: data, evaluation and references."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.data.errors import DataError
from torchrl_flow.data.logged.npz import NpzReplayBuffer
from torchrl_flow.data.logged.npz_stream import NpzStream
from torchrl_flow.evaluation.offline_task import OfflineTask, Policy, SlateReturns, on_device
from torchrl_flow.evaluation.seeds import EVALUATION_SEED, TRAINING_SEED
from torchrl_flow.modules.actors.action_box import ActionBox
from torchrl_flow.options.names import WritableFile
from torchrl_flow.options.refusals import refusals_in_one_line
from torchrl_flow.options.types import Count, NonNegative, Seed, check_options
from torchrl_flow.recsys.sardine_env import make_sardine_env
from torchrl_flow.util.progress import Progress
from torchrl_flow.util.randomness import isolated_rng
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SARDINE_PREFIX", "CollectSardineArgs", "SardineTask", "collect_sardine"]

SARDINE_PREFIX = "sardine/"
"""Prefix of the names of its environments."""
_EXAMINED = 5.354
"""Mean number of examined slots in a slate of ten with SARDINE's default propensities."""


def interests_policy(noise: float) -> Policy:
    """Make a good but not optimal policy that ranks items by the user's current interests plus noise.

    Args:
        noise: scale of the normal noise on each interest.
    """

    def act(data: TensorDictBase) -> TensorDictBase:
        interests = data["observation"].chunk(3, -1)[0]
        return data.set("action", (interests + noise * torch.randn_like(interests)).clamp(-1.0, 1.0))

    return act


@dataclasses.dataclass
class CollectSardineArgs:
    """Log transitions of a SARDINE env (optional: pip install 'torchrl-flow[sardine]') to an .npz file."""

    env: str = "SlateTopK-Bored-v0"
    """name registered under sardine/"""
    episodes: Count = 500
    """episodes of 100 steps"""
    noise: NonNegative = 0.3
    """standard deviation of the noise on the interests by which the logging policy ranks items"""
    output: WritableFile | None = None
    """file to write; by default data/ENV-EPISODES.npz"""
    seed: Seed = 0
    """seed of users and policy"""

    @property
    def path(self) -> Path:
        """Path of the data."""
        return Path(self.output) if self.output else Path("data") / f"{self.env}-{self.episodes}.npz"

    def __call__(self) -> str:
        """Collect and return the path."""
        check_options(self)
        with refusals_in_one_line():
            path = collect_sardine(self)
        return str(path.resolve())


def collect_sardine(args: CollectSardineArgs, *, progress: bool = True) -> Path:
    """Log episodes of a SARDINE env with the blurred-interests policy, in D4RL's shape.

    Args:
        args: environment, number of episodes and output file.
        progress: show progress.

    Raises:
        ImportError: if SARDINE is not installed.
        DataError: if the file exists already.
    """
    env, policy = make_sardine_env(args.env), interests_policy(args.noise)
    state, action = env.observation_spec["observation"].shape, env.action_spec.shape
    flag, number = ("bool", ()), ("float32", ())
    columns = {"observations": ("float32", tuple(state)), "next_observations": ("float32", tuple(state))}
    columns |= {"actions": ("float32", tuple(action)), "rewards": number, "terminals": flag, "timeouts": flag}
    args.path.parent.mkdir(parents=True, exist_ok=True)
    stream = NpzStream(args.path, columns, {**dataclasses.asdict(args), "output": None})
    with Progress(args.episodes, initial=stream.position, unit="episode", enabled=progress) as bar:
        while stream.position < args.episodes:
            with isolated_rng(TRAINING_SEED * (args.seed + 1) + stream.position):
                rollout = _play(env, policy, TRAINING_SEED * (args.seed + 1) + stream.position)
            stream.append(_rows(rollout))
            stream.commit(stream.position + 1)
            bar.update()
    details = {"env": SARDINE_PREFIX + args.env, "policy": f"interests {args.noise:g}", "noise": args.noise}
    return stream.finish({**details, "length": 100, "hashes": {}, "seed": args.seed})


def _play(env: Any, policy: Policy, seed: int) -> TensorDictBase:
    env.set_seed(seed)
    # TorchRL recognises functions of tensordicts by the name of their argument.
    return env.rollout(1000, lambda tensordict: policy(tensordict))


def _rows(rollout: TensorDictBase) -> dict[str, torch.Tensor]:
    # SARDINE marks the end of its fixed-length episodes as terminated; it is a time limit.
    ends = torch.zeros(len(rollout), dtype=torch.bool)
    timeouts = ends.clone()
    timeouts[-1] = True
    return {
        "observations": rollout["observation"],
        "next_observations": rollout["next", "observation"],
        "actions": rollout["action"],
        "rewards": rollout["next", "reward"].squeeze(-1),
        "terminals": ends,
        "timeouts": timeouts,
    }


class SardineTask(OfflineTask):
    """Logged transitions of a SARDINE env, which takes actions in [-1, 1].

    Args:
        data: file written by :func:`collect_sardine`.

    Keyword Args:
        env: name of the environment, ``sardine/NAME``. Defaults to the environment of the file.
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
        device: device of the transitions; users are simulated on the CPU.

    Raises:
        ImportError: if SARDINE is not installed.
        DataError: if observations or actions have other sizes than the environment's.
    """

    has_env = True

    def __init__(
        self,
        data: str | Path,
        *,
        env: str | None = None,
        batch_size: int = 256,
        gamma: float = 0.8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.data = NpzReplayBuffer(data, batch_size=batch_size, device=self.device)
        self.path, self.gamma = Path(data), gamma
        self._name = env if env is not None else str(self.data.metadata["env"])
        ones = torch.ones(self.action_dim)
        self.box = ActionBox(-ones, ones)
        found = make_sardine_env(self._name.removeprefix(SARDINE_PREFIX))
        for name, size in (("observation", self.state_dim), ("action", self.action_dim)):
            shape = (found.action_spec if name == "action" else found.observation_spec["observation"]).shape
            if tuple(shape) != (size,):
                raise DataError(f"{name}s in {data} have shape [{size}], those of {self._name} {list(shape)}.")

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self._name

    @property
    def info(self) -> TaskInfo:
        """Identity of the task, for checkpoints."""
        return TaskInfo(task=self.name, obs_mode="ideal_state", control_mode="topk")

    @property
    def value_bound(self) -> float:
        """Upper bound of the value function."""
        return _EXAMINED / (1.0 - self.gamma) if self.gamma < 1 else float("inf")

    @torch.no_grad()
    def evaluate(
        self, policy: Policy, *, episodes: int = 256, seed: int = EVALUATION_SEED, random: bool = False
    ) -> SlateReturns:
        """Play the episodes one after the other, each with a new user."""
        exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
        env, returns = make_sardine_env(self.name.removeprefix(SARDINE_PREFIX)), []
        for i in range(episodes):
            with isolated_rng(seed + i), set_exploration_type(exploration):
                rollout = _play(env, on_device(policy, self.device), seed + i)
                returns.append(float(rollout["next", "reward"].sum()))
        return SlateReturns(tuple(returns))

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Mean returns of random actions, of ranking by the exact interests, and of the data."""
        size = self.action_dim

        def random_policy(data: TensorDictBase) -> TensorDictBase:
            return data.set("action", torch.rand(*data.batch_size, size) * 2 - 1)

        found = {
            "random_latent": self.evaluate(random_policy, episodes=episodes).mean,
            "sto": self.evaluate(interests_policy(0.0), episodes=episodes).mean,
        }
        noise = self.data.metadata.get("noise")
        if noise is None:
            return found | super().references(episodes=episodes)
        return found | {"behaviour": self.evaluate(interests_policy(noise), episodes=episodes).mean}
