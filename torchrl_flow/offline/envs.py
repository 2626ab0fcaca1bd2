"""Choice of the environment of logged transitions: slate recommender, SARDINE, Gymnasium, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs.libs.gym import GymEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_flow.data.errors import DataError
from torchrl_flow.data.logged.npz import read_npz_metadata
from torchrl_flow.evaluation.offline_task import OfflineTask, Policy, SlateReturns, on_device
from torchrl_flow.evaluation.seeds import EVALUATION_SEED
from torchrl_flow.recsys import SLATE_ENVS
from torchrl_flow.recsys.models import SlateModels
from torchrl_flow.recsys.sardine_task import SARDINE_PREFIX, SardineTask
from torchrl_flow.recsys.task import SlateTask
from torchrl_flow.util.randomness import isolated_rng

__all__ = ["NO_ENV", "GymTask", "offline_task"]

NO_ENV = "none"
"""The environment name with which a recipe trains without an environment, even if the file names one."""
GYM_PREFIX = "gym/"
"""Prefix of the names of Gymnasium's environments."""


class GymTask(OfflineTask):
    """Logged transitions, for example in D4RL's format, with the Gymnasium environment for evaluation.

    Args:
        data: see :class:`OfflineTask`.
        env: ``gym/NAME``, with the name registered in Gymnasium.

    Keyword Args:
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
        device: device of the transitions; the environment runs on the CPU.

    Raises:
        ValueError: if the environment is unknown, or its actions are not continuous.
        DataError: if observations or actions have other sizes than the environment's.
    """

    has_env = True

    def __init__(
        self,
        data: str | Path,
        env: str,
        *,
        batch_size: int = 256,
        gamma: float = 0.99,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(data, batch_size=batch_size, gamma=gamma, device=device)
        self._name, found = env, self._make(env)
        try:
            sizes = {"observation": found.observation_spec["observation"].shape, "action": found.action_spec.shape}
            if not found.action_spec.dtype.is_floating_point:
                raise ValueError(
                    f"{env} takes actions of type {found.action_spec.dtype}; only continuous ones are learned."
                )
        finally:
            found.close()
        for name, size in (("observation", self.state_dim), ("action", self.action_dim)):
            if tuple(sizes[name]) != (size,):
                raise DataError(f"{name}s in {data} have shape [{size}], those of {env} {list(sizes[name])}.")

    def _make(self, env: str) -> Any:
        try:
            return GymEnv(env.removeprefix(GYM_PREFIX), device="cpu")
        except Exception as error:  # Gymnasium raises a different class for each reason
            raise ValueError(f"env {env!r} cannot be made: {error}") from error

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self._name

    @torch.no_grad()
    def evaluate(
        self, policy: Policy, *, episodes: int = 256, seed: int = EVALUATION_SEED, random: bool = False
    ) -> SlateReturns:
        """Play the episodes one after the other, with actions in the data's units, clamped to the bounds."""
        exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
        env, acting, returns = self._make(self._name), on_device(policy, self.device), []
        space = env.action_spec.space

        # TorchRL recognises functions of tensordicts by the name of their argument.
        def act(tensordict: TensorDictBase) -> TensorDictBase:
            action = self.box(acting(tensordict)["action"])
            return tensordict.set("action", torch.clamp(action, space.low, space.high))

        for i in range(episodes):
            with isolated_rng(seed + i), set_exploration_type(exploration):
                env.set_seed(seed + i)
                returns.append(float(env.rollout(100_000, act)["next", "reward"].sum()))
        env.close()
        return SlateReturns(tuple(returns))

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Return mean returns of random actions within the data's bounds, and of the episodes of the data."""
        size = self.action_dim

        def random_policy(data: TensorDictBase) -> TensorDictBase:
            return data.set("action", torch.rand(*data.batch_size, size, device=self.device) * 2 - 1)

        random = self.evaluate(random_policy, episodes=episodes).mean
        return {"random_action": random, **super().references(episodes=episodes)}


def offline_task(
    data: str | Path,
    models: SlateModels | str | Path | None = None,
    *,
    env: str | None = None,
    batch_size: int = 256,
    gamma: float = 0.8,
    device: torch.device | str = "cpu",
) -> OfflineTask:
    """Open logged transitions, with the environment given by name or recorded in the file, if any.

    Args:
        data: ``.npz`` file.
        models: belief encoder and ranker of the slate recommender.
        env: one of :data:`~torchrl_flow.recsys.SLATE_ENVS`, ``sardine/NAME``, ``gym/NAME``, or ``none``. ``None`` uses
            the one named in the file, if any.
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
        device: device of the transitions and of evaluations.

    Raises:
        DataError: if the data are invalid or do not match the environment.
        FileNotFoundError: if there are no models of the environment.
        ValueError: if the environment or device is unknown, or the arguments contradict each other.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "gamma": gamma, "device": device}
    recorded = read_npz_metadata(data).get("env")
    if env is not None and env != NO_ENV and env not in SLATE_ENVS and not env.startswith((SARDINE_PREFIX, GYM_PREFIX)):
        raise ValueError(
            f"env must be one of {', '.join(SLATE_ENVS)}, {SARDINE_PREFIX}NAME, {GYM_PREFIX}NAME or {NO_ENV}, got "
            f"{env!r}. An environment of Gymnasium is {GYM_PREFIX}{env}."
        )
    if env == NO_ENV:
        if models is not None:
            raise ValueError(f"env {NO_ENV!r} has no use for models: leave one of the two out.")
        return OfflineTask(data, **options)
    if recorded in SLATE_ENVS and env is not None and env != recorded:
        raise ValueError(f"{data} was logged in {recorded}, not in {env}: leave --env out, or make it {NO_ENV}.")
    name = env if env is not None else recorded
    if env is None and isinstance(name, str) and ":" in name:
        raise DataError(
            f"{data} names the environment {name!r}, of which Gymnasium would import what stands before the colon: "
            "name it yourself (--env) if you trust it."
        )
    if isinstance(name, str) and name.startswith(SARDINE_PREFIX) and models is None:
        return SardineTask(data, env=name, **options)
    if isinstance(name, str) and name.startswith(GYM_PREFIX) and models is None:
        return GymTask(data, name, **options)
    if name in SLATE_ENVS or models is not None:
        found = models if isinstance(models, SlateModels) or models is None else SlateModels.load(models)
        if found is not None and name is not None and found.env_name != name:
            raise ValueError(f"the models are of {found.env_name}, not of {name}.")
        return SlateTask(data, found if found is not None else default_models(data, str(name)), **options)
    return OfflineTask(data, **options)


def default_models(data: str | Path, env: str) -> SlateModels:
    """Load the models of an environment from the default path of ``slate-models``."""
    path = Path("runs/slate_models") / f"{env}.torchrl"
    if not path.exists():
        raise FileNotFoundError(
            f"{data} is evaluated in {env}, and there are no models of it in {path}: name their file (--models), train "
            f"them (`python -m torchrl_flow slate-models --env {env}`), or do without evaluation (--env {NO_ENV})."
        )
    return SlateModels.load(path)
