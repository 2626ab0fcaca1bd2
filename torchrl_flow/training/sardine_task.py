"""The offline baselines on SARDINE, a third-party simulator: data, evaluation and references."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.data.npz import NpzReplayBuffer, read_npz_metadata
from torchrl_flow.data.npz_stream import NpzStream
from torchrl_flow.envs.sardine import make_sardine_env
from torchrl_flow.training.progress import Progress
from torchrl_flow.training.randomness import isolated_rng
from torchrl_flow.training.slate_offline import EVALUATION_SEED, Policy, SlateReturns, SlateTask

__all__ = ["SARDINE_PREFIX", "CollectSardineArgs", "SardineTask", "collect_sardine", "offline_task"]

SARDINE_PREFIX = "sardine/"
"""What the names of its environments start with."""
_EXAMINED = 5.354
"""Slots of a slate of ten that are looked at, on average, with SARDINE's default propensities."""


def interests_policy(noise: float) -> Policy:
    """Make the policy that ranks by the user's present interests, blurred: good, and improvable.

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
    episodes: int = 500
    """episodes of 100 steps"""
    noise: float = 0.3
    """blur of the interests that the logging policy ranks by"""
    output: str | None = None
    """file to write; data/ENV-EPISODES.npz where none is given"""
    seed: int = 0
    """seed of users and policy"""

    @property
    def path(self) -> Path:
        """Where the data go."""
        return Path(self.output) if self.output else Path("data") / f"{self.env}-{self.episodes}.npz"

    def __call__(self) -> None:
        """Collect and print the path."""
        print(collect_sardine(self).resolve())


def collect_sardine(args: CollectSardineArgs, *, progress: bool = True) -> Path:
    """Log episodes of a SARDINE env with the blurred-interests policy, in D4RL's shape.

    Args:
        args: what to collect.
        progress: show progress.

    Raises:
        ImportError: if SARDINE is not installed.
        DataError: if the file is there already.
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
            with isolated_rng(1_000_000 * (args.seed + 1) + stream.position):
                rollout = _play(env, policy, 1_000_000 * (args.seed + 1) + stream.position)
            stream.append(_rows(rollout))
            stream.commit(stream.position + 1)
            bar.update()
    details = {"env": SARDINE_PREFIX + args.env, "policy": f"interests {args.noise:g}", "noise": args.noise}
    return stream.finish({**details, "length": 100, "hashes": {}, "seed": args.seed})


def _play(env: Any, policy: Policy, seed: int) -> TensorDictBase:
    env.set_seed(seed)
    # TorchRL tells functions of tensordicts from those of tensors by the name of their argument.
    return env.rollout(1000, lambda tensordict: policy(tensordict))


def _rows(rollout: TensorDictBase) -> dict[str, torch.Tensor]:
    # SARDINE ends its episodes of fixed length as terminated; they are cut off by the clock.
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


class SardineTask(SlateTask):
    """Logged transitions of a SARDINE env, with the interface of :class:`SlateTask`.

    Args:
        data: file of :func:`collect_sardine`.

    Keyword Args:
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
    """

    def __init__(self, data: str | Path, *, batch_size: int = 256, gamma: float = 0.8) -> None:
        self.data = NpzReplayBuffer(data, batch_size=batch_size)
        self.path, self.gamma = Path(data), gamma

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.data.metadata["env"]

    @property
    def info(self) -> dict[str, Any]:
        """Identity of the task, for checkpoints."""
        return {"task": self.name, "obs_mode": "ideal_state", "control_mode": "topk"}

    @property
    def value_bound(self) -> float:
        """The largest value that there can be."""
        return _EXAMINED / (1.0 - self.gamma)

    @torch.no_grad()
    def evaluate(
        self, policy: Policy, *, episodes: int = 256, seed: int = EVALUATION_SEED, random: bool = False
    ) -> SlateReturns:
        """Play one episode after the other, each with a user of its own."""
        exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
        env, returns = make_sardine_env(self.name.removeprefix(SARDINE_PREFIX)), []
        for i in range(episodes):
            with isolated_rng(seed + i), set_exploration_type(exploration):
                returns.append(float(_play(env, policy, seed + i)["next", "reward"].sum()))
        return SlateReturns(tuple(returns))

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Mean returns of random actions, the exact interests, and the data's own."""
        size = self.action_dim

        def random_policy(data: TensorDictBase) -> TensorDictBase:
            return data.set("action", torch.rand(*data.batch_size, size) * 2 - 1)

        return {
            "random_latent": self.evaluate(random_policy, episodes=episodes).mean,
            "sto": self.evaluate(interests_policy(0.0), episodes=episodes).mean,
            "behaviour": self.evaluate(interests_policy(self.data.metadata["noise"]), episodes=episodes).mean,
        }


def offline_task(
    data: str | Path, models: str | Path | None = None, *, batch_size: int = 256, gamma: float = 0.8
) -> SlateTask:
    """Open logged transitions with the environment that they came from: our slate recommender, or SARDINE.

    Args:
        data: ``.npz`` file.
        models: belief encoder and ranker of the former.
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
    """
    if str(read_npz_metadata(data).get("env", "")).startswith(SARDINE_PREFIX):
        return SardineTask(data, batch_size=batch_size, gamma=gamma)
    return SlateTask(data, models, batch_size=batch_size, gamma=gamma)
