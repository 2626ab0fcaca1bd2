"""What the offline baselines of the slate recommender share: data, environment, evaluation, references, diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_flow.data.npz import NpzReplayBuffer, read_npz_metadata
from torchrl_flow.envs.slate import SlateEnv, SlatePolicyName
from torchrl_flow.modules.state_policy import StatePolicyConfig, make_state_policy
from torchrl_flow.training.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.training.files import write_json
from torchrl_flow.training.randomness import isolated_rng
from torchrl_flow.training.results import append_result
from torchrl_flow.training.slate_model_training import round_trip_return
from torchrl_flow.training.slate_models import SlateModels

__all__ = ["SlateReturns", "SlateTask", "load_state_policy", "q_diagnostics"]

Policy = Callable[[TensorDictBase], TensorDictBase]
EVALUATION_SEED = 10_000
"""Seed of the first user of every evaluation: all policies meet the same users."""


@dataclasses.dataclass(frozen=True)
class SlateReturns:
    """Returns of evaluated episodes.

    Attributes:
        returns: one per user.
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
        """Mean and standard error, named for a logger."""
        return {f"{prefix}return": self.mean, f"{prefix}return_standard_error": self.standard_error}

    def __str__(self) -> str:
        return f"{self.mean:.1f} +- {self.standard_error:.1f}"


class SlateTask:
    """Logged transitions with the environment and the models that they belong to.

    Actions of policies and data lie in [-1, 1]: the ranker's box is taken out of the data here and put back by the
    environment.

    Args:
        data: file of ``collect-slates``.
        models: belief encoder and ranker; data made with others are refused. ``runs/slate_models/ENV.torchrl`` where
            ``None``.

    Keyword Args:
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.

    Raises:
        DataError: if the data cannot be used with the models.

    Attributes:
        models: belief encoder and ranker.
        data: the replay buffer.
    """

    def __init__(
        self,
        data: str | Path,
        models: SlateModels | str | Path | None = None,
        *,
        batch_size: int = 256,
        gamma: float = 0.8,
    ) -> None:
        if models is None:
            models = Path("runs/slate_models") / f"{read_npz_metadata(data).get('env')}.torchrl"
        self.models = models if isinstance(models, SlateModels) else SlateModels.load(models)
        box = self.models.ranker
        self.data = NpzReplayBuffer(
            data,
            batch_size=batch_size,
            hashes=self.models.hashes,
            action_low=box.action_low,
            action_high=box.action_high,
        )
        self.path, self.gamma = Path(data), gamma

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.models.env_name

    @property
    def info(self) -> dict[str, Any]:
        """Identity of the task, for checkpoints."""
        metadata = self.data.metadata
        return {"task": self.models.env_name, "obs_mode": "belief", "control_mode": "latent", **metadata["hashes"]}

    @property
    def state_dim(self) -> int:
        """D, length of a belief."""
        return self.data.transitions["observation"].shape[-1]

    @property
    def action_dim(self) -> int:
        """A, length of a latent."""
        return self.data.transitions["action"].shape[-1]

    @property
    def value_bound(self) -> float:
        """The largest value that there can be: expected clicks of a slate of sure hits, discounted."""
        env = SlateEnv(self.models.env_name, 1, catalogue=self.models.catalogue)
        return float(env._examined.sum()) / (1.0 - self.gamma)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Statistics of observations and actions."""
        return self.data.statistics()

    @torch.no_grad()
    def evaluate(
        self,
        policy: Policy,
        *,
        episodes: int = 256,
        seed: int = EVALUATION_SEED,
        random: bool = False,
    ) -> SlateReturns:
        """Play one episode with each of so many users, all at once.

        Args:
            policy: writes ``action`` for ``observation``.
            episodes: users.
            seed: of the first user.
            random: let distributions and flows sample; their mode or zero noise otherwise.
        """
        exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
        # A policy that samples does so alike in every evaluation, and training goes on as if there had been none.
        with isolated_rng(seed), set_exploration_type(exploration):
            env = self.models.env(episodes)
            length = int(self.data.metadata["length"])
            data, total = env.reset(seed=seed), torch.zeros(episodes, 1)
            for _ in range(length):
                data = env.step(policy(data))["next"]
                total += data["reward"]
        return SlateReturns(tuple(total.flatten().tolist()))

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Mean returns to print beside scores.

        Returns:
            ``random_latent``; ``sto``, the short-term oracle; ``behaviour``, the data's own; ``oracle``, the
            boredom-aware one; ``behaviour_through_ranker`` and ``oracle_through_ranker``, what the ranker leaves of
            them.
        """
        random_latent = self.evaluate(
            lambda data: data.set("action", self._random_actions(episodes)), episodes=episodes
        )
        rewards = self.data.transitions["next", "reward"]
        behaviour: SlatePolicyName = self.data.metadata["policy"]

        def play(name: SlatePolicyName, through: bool) -> float:
            return round_trip_return(self.models, name, users=episodes, through=through, seed=EVALUATION_SEED)

        return {
            "random_latent": random_latent.mean,
            "sto": play("sto", False),
            "behaviour": float(rewards.mean()) * self.data.metadata["length"],
            "behaviour_through_ranker": play(behaviour, True),
            "oracle_through_ranker": play("expert", True),
            "oracle": play("expert", False),
        }

    def _random_actions(self, rows: int) -> Tensor:
        """Draw latents from the prior that the ranker was trained with, in the box's units."""
        box = self.models.ranker.box
        return ((torch.randn(rows, self.action_dim) - box.centre) / box.scale).clamp(-1.0, 1.0)

    def record(
        self,
        path: str | Path,
        recipe: str,
        result: SlateReturns | float,
        *,
        seed: int,
        episodes: int,
        wall_s: float = 0.0,
        stage: str | None = None,
    ) -> None:
        """Append a row to a table of results."""
        append_result(
            path,
            recipe=recipe,
            task=self.name,
            obs=self.info["obs_mode"],
            stage=stage if stage is not None else self.data.metadata["policy"],
            seed=seed,
            episodes=episodes,
            success_once=None,
            success_at_end=None,
            env_steps=None,
            wall_s=wall_s,
            **{"return": result.mean if isinstance(result, SlateReturns) else result},
        )

    def report(self, directory: Path, recipe: str, result: SlateReturns, *, episodes: int) -> str:
        """Write ``evaluation.json`` beside the references, and return the lines to print."""
        references = self.references(episodes=episodes)
        scores = {recipe: result.mean, f"{recipe}_standard_error": result.standard_error, **references}
        write_json(directory / "evaluation.json", scores)
        lines = [f"{name:26} {value:8.1f}" for name, value in references.items()]
        return "\n".join([f"{recipe:26} {result}", *lines])


@torch.no_grad()
def q_diagnostics(loss: LossModule, batch: TensorDictBase, policy: Policy, *, bound: float) -> dict[str, float]:
    """Compare what the critics think of logged, random and the policy's actions.

    Critics that value random latents as high as logged ones have learned nothing from the data, and those above
    ``bound`` have diverged.

    Args:
        loss: loss with stacked critics ``qvalue_network``.
        batch: transitions.
        policy: writes ``action``.
        bound: the largest value that there can be.
    """
    network: Any = loss.qvalue_network
    stacked: Any = loss.qvalue_network_params.data  # pyright: ignore[reportAttributeAccessIssue]
    observation, action = batch["observation"], batch["action"]

    def q(action: Tensor) -> Tensor:
        values = []
        for member in range(len(stacked)):
            data = TensorDict({"observation": observation, "action": action}, batch_size=batch.batch_size)
            with stacked[member].to_module(network, preserve_module_state=False):
                values.append(network(data)["state_action_value"])
        return torch.stack(values).amin(0)

    acted = policy(TensorDict({"observation": observation}, batch_size=batch.batch_size))["action"]
    random = torch.rand_like(action) * 2 - 1
    own = q(acted)
    return {
        "q/data": q(action).mean().item(),
        "q/random": q(random).mean().item(),
        "q/policy": own.mean().item(),
        "q/above_bound": float((own > bound).float().mean()),
    }


def load_state_policy(source: str | Path | TrainingCheckpoint) -> tuple[nn.Module, TrainingCheckpoint]:
    """Rebuild the policy of an offline baseline, normaliser included, from a checkpoint alone.

    Args:
        source: checkpoint, its file, or the directory of a run.

    Raises:
        CheckpointError: if it holds no such policy.
    """
    checkpoint = source if isinstance(source, TrainingCheckpoint) else load_checkpoint(source)
    config: Mapping[str, Any] | None = checkpoint.module_configs.get("state_policy")
    if config is None:
        raise CheckpointError(f"{checkpoint.path} holds no policy of states, only {sorted(checkpoint.roles)}.")
    policy = make_state_policy(StatePolicyConfig(**{**config, "hidden_sizes": tuple(config["hidden_sizes"])}))
    checkpoint.restore(modules={"policy": policy})
    return policy.eval(), checkpoint
