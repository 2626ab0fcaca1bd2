"""Offline tasks for baselines: logged transitions with actions in [-1, 1], with or without an environment."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_flow.data.logged.npz import NpzReplayBuffer
from torchrl_flow.data.logged.npz_file import open_npz, read_member
from torchrl_flow.evaluation.seeds import EVALUATION_SEED
from torchrl_flow.modules.actors.action_box import ActionBox
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["OfflineTask", "Policy", "SlateReturns", "episode_returns", "on_device"]

Policy = Callable[[TensorDictBase], TensorDictBase]
DIAGNOSTIC_ROWS = 2048
"""Number of transitions, spread over the data, for the diagnosis of a trained policy without an environment."""


@dataclasses.dataclass(frozen=True)
class SlateReturns:
    """Returns of evaluated episodes.

    Attributes:
        returns: one return per user.
    """

    returns: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return float(np.std(self.returns, ddof=1) / len(self.returns) ** 0.5) if len(self.returns) > 1 else 0.0

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """Return mean and standard error, named for a logger."""
        return {f"{prefix}return": self.mean, f"{prefix}return_standard_error": self.standard_error}

    def __str__(self) -> str:
        return f"{self.mean:.1f} +- {self.standard_error:.1f}"


class OfflineTask:
    """Logged transitions of any sizes without an environment: policies are assessed by their values.

    Actions are mapped to [-1, 1] by the smallest and largest value of each dimension, so that the ``tanh`` of a policy
    covers the data; ``box`` maps them back, and the recipes store it in their checkpoints (see
    :func:`~torchrl_flow.recsys.in_data_units`).

    Args:
        data: ``.npz`` file (see :func:`~torchrl_flow.data.read_npz`).

    Keyword Args:
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
        device: device of the transitions and of evaluations.

    Raises:
        DataError: if the data cannot be used.

    Attributes:
        data: the replay buffer.
        box: the bounds of the actions in the data's units.
        has_env: whether policies can be evaluated.
        state_bound: default bound on normalised observations, in standard deviations.
    """

    has_env = False
    state_bound = 5.0

    def __init__(
        self, data: str | Path, *, batch_size: int = 256, gamma: float = 0.8, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.data = NpzReplayBuffer(data, batch_size=batch_size, device=self.device)
        self.path, self.gamma = Path(data), gamma
        actions = self.data.transitions["action"]
        self.box = ActionBox.of(actions)
        actions.copy_(self.box.to_unit(actions))
        self.box.cpu()

    @property
    def name(self) -> str:
        """Name of the task, equal to that of the file."""
        return self.path.stem

    @property
    def info(self) -> TaskInfo:
        """Identity of the task, for checkpoints."""
        digest = hashlib.sha256(str(len(self.data)).encode())
        for part in (self.data.statistics()["observation"]["mean"], self.box.low, self.box.high):
            digest.update(part.cpu().numpy().tobytes())
        details = {"data": digest.hexdigest()[:16]}
        return TaskInfo(task=self.name, obs_mode="state", control_mode="data", details=details)

    @property
    def label(self) -> str | None:
        """Name of the policy that logged the data, if the file has it."""
        label = self.data.metadata.get("policy")
        return None if label is None else str(label)

    @property
    def state_dim(self) -> int:
        """D, length of an observation."""
        return self.data.transitions["observation"].shape[-1]

    @property
    def action_dim(self) -> int:
        """A, length of an action."""
        return self.data.transitions["action"].shape[-1]

    @property
    def value_bound(self) -> float:
        """The largest possible value if no reward exceeds the largest reward of the data."""
        highest = float(self.data.transitions["next", "reward"].max())
        if highest < 0 and self.data.transitions["next", "terminated"].any():
            return highest  # an episode can end after one step
        return highest / (1.0 - self.gamma) if self.gamma < 1 else float("inf")

    @property
    def module_configs(self) -> dict[str, Any]:
        """Configurations that a checkpoint stores in addition to networks: the bounds of the actions."""
        return {"action_box": {"low": self.box.low.tolist(), "high": self.box.high.tolist()}}

    def keep_best(self, eval_every: int) -> str | None:
        """Return the metric of a run's best checkpoint: the return if measured during training, otherwise None."""
        return "eval/return" if self.has_env and eval_every else None

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Return statistics of observations and of actions in [-1, 1]."""
        return self.data.statistics()

    def diagnostic_rows(self) -> TensorDict:
        """Return a fixed set of transitions spread evenly over the data."""
        number = len(self.data.transitions)
        index = torch.linspace(0, number - 1, min(number, DIAGNOSTIC_ROWS), dtype=torch.float64).long().unique()
        return self.data.transitions[index.to(self.device)]

    def evaluate(
        self, policy: Policy, *, episodes: int = 256, seed: int = EVALUATION_SEED, random: bool = False
    ) -> SlateReturns:
        """Play episodes in the environment.

        Args:
            policy: policy that reads ``observation`` and writes ``action`` in [-1, 1].
            episodes: number of episodes.
            seed: seed of the first episode.
            random: sample from distributions and flows. False uses the mode of a distribution and zero noise of a flow.

        Raises:
            ValueError: if there is no environment.
        """
        raise ValueError(f"{self.path} names no environment to evaluate in: give one (--env).")

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Return mean returns for comparison: ``behaviour``, that of the complete episodes in the data, if any."""
        found = episode_returns(self.path)
        return {"behaviour": float(np.mean(found))} if len(found) else {}


EPISODE_ARRAYS = ("rewards", "terminals", "timeouts", "observations", "next_observations")
"""Arrays of a file from which the returns of episodes are computed."""


def episode_returns(path: str | Path) -> list[float]:
    """Return the undiscounted returns of the complete episodes in an ``.npz`` file of transitions, in file order.

    An episode ends at a terminal or timeout, and where the next observation differs from the observation of the
    following row. Rows after the last end are not a complete episode. If the following row does not match for most
    rows, the rows are unordered, and the result is empty.
    """
    path = Path(path)
    with open_npz(path) as file:
        read = {name: read_member(path, file, name) for name in EPISODE_ARRAYS if name in file.files}
        rewards = read["rewards"].reshape(-1).astype(np.float64)
        ends = read["terminals"].reshape(-1) != 0 if "terminals" in read else np.zeros(len(rewards), dtype=bool)
        if "timeouts" in read:
            ends |= read["timeouts"].reshape(-1) != 0
        if "next_observations" in read:
            broken = (read["next_observations"][:-1] != read["observations"][1:]).any(-1) & ~ends[:-1]
            if broken.sum() > 0.5 * len(broken):
                return []
            ends[:-1] |= broken
    last = np.flatnonzero(ends)
    sums = np.concatenate([[0.0], np.cumsum(rewards)])[np.concatenate([[0], last + 1])]
    return np.diff(sums).tolist()


def on_device(policy: Policy, device: torch.device) -> Policy:
    """Wrap a policy on another device for an environment on the CPU."""
    if device.type == "cpu":
        return policy

    # TorchRL distinguishes functions of tensordicts from functions of tensors by the name of their argument.
    def act(tensordict: TensorDictBase) -> TensorDictBase:
        seen = TensorDict({"observation": tensordict["observation"].to(device)}, tensordict.batch_size)
        return tensordict.set("action", policy(seen)["action"].cpu())

    return act
