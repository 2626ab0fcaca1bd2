"""Common parts of the offline baselines of the slate recommender: data, environment, evaluation, diagnostics."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.data.logged.npz import NpzReplayBuffer, read_npz_metadata
from torchrl_flow.evaluation.offline_task import OfflineTask, Policy, SlateReturns
from torchrl_flow.evaluation.seeds import EVALUATION_SEED
from torchrl_flow.modules.actors.action_box import ActionBox
from torchrl_flow.modules.actors.state_policy import StatePolicyConfig, make_state_policy
from torchrl_flow.recsys.collect import SLATE_FORMAT
from torchrl_flow.recsys.env import SlateEnv
from torchrl_flow.recsys.model_training import round_trip_return
from torchrl_flow.recsys.models import SlateModels
from torchrl_flow.recsys.policies import SLATE_POLICIES, SlatePolicyName
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint
from torchrl_flow.runs.names import Which
from torchrl_flow.runs.restore import open_checkpoint, restore_module
from torchrl_flow.util.randomness import isolated_rng
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SlateTask", "action_box", "in_data_units", "load_state_policy", "play_latent_policy", "q_diagnostics"]


class SlateTask(OfflineTask):
    """Logged transitions with their environment and models.

    Actions of policies and data lie in [-1, 1]: latents of the data are mapped from the ranker's box to [-1, 1] here,
    and the environment maps actions back.

    Args:
        data: file of ``collect-slates``, or other transitions whose observations are beliefs and whose actions are
            latents of the models.
        models: belief encoder and ranker; data made with other models raise an error. Defaults to
            ``runs/slate_models/ENV.torchrl``.

    Keyword Args:
        batch_size: rows of a batch.
        gamma: discount, for the bound on values.
        device: device of the transitions and of evaluations.

    Raises:
        DataError: if the data cannot be used with the models.
        FileNotFoundError: if there are no models.

    Attributes:
        models: belief encoder and ranker, on the CPU.
        data: the replay buffer.
    """

    has_env = True
    state_bound = 2.0  # a learned policy visits beliefs far outside the data

    def __init__(
        self,
        data: str | Path,
        models: SlateModels | str | Path | None = None,
        *,
        batch_size: int = 256,
        gamma: float = 0.8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        metadata = read_npz_metadata(data)
        if models is None:
            models = Path("runs/slate_models") / f"{metadata.get('env')}.torchrl"
        self.models = models if isinstance(models, SlateModels) else SlateModels.load(models)
        ranker = self.models.ranker
        self.box = ActionBox(ranker.action_low, ranker.action_high)
        # A file of another program has no model hashes; its user must ensure that it matches these models.
        foreign = not metadata.get("hashes") and metadata.get("format") != SLATE_FORMAT
        if foreign:
            warnings.warn(
                f"{data} does not say which models made its observations and actions: they are taken for beliefs and "
                f"latents of the models of {self.models.env_name}.",
                DataWarning,
                stacklevel=2,
            )
        self.data = NpzReplayBuffer(
            data,
            batch_size=batch_size,
            hashes=None if foreign else self.models.hashes,
            action_low=ranker.action_low,
            action_high=ranker.action_high,
            device=self.device,
        )
        if self.state_dim != self.models.encoder.belief_dim:
            raise DataError(
                f"observations in {data} have {self.state_dim} numbers, beliefs of the models of "
                f"{self.models.env_name} have {self.models.encoder.belief_dim}."
            )
        length = self.data.metadata.get("length", 100)
        if not isinstance(length, int) or length < 1:
            raise DataError(f"metadata in {data}: length must be a whole number of at least 1, got {length!r}.")
        self.path, self.gamma, self._length = Path(data), gamma, length
        self._acting = self.models if self.device.type == "cpu" else copy.deepcopy(self.models).to(self.device)

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self.models.env_name

    @property
    def info(self) -> TaskInfo:
        """Identity of the task, for checkpoints."""
        return TaskInfo(task=self.name, obs_mode="belief", control_mode="latent", details=self.models.hashes)

    @property
    def value_bound(self) -> float:
        """Upper bound of the value function: the discounted expected clicks if every examined item is clicked."""
        env = SlateEnv(self.models.env_name, 1, catalogue=self.models.catalogue)
        return float(env._examined.sum()) / (1.0 - self.gamma) if self.gamma < 1 else float("inf")

    def evaluate(
        self,
        policy: Policy,
        *,
        episodes: int = 256,
        seed: int = EVALUATION_SEED,
        random: bool = False,
    ) -> SlateReturns:
        """Play one episode with each user, all in one batch.

        Args:
            policy: policy that reads ``observation`` and writes ``action``.
            episodes: number of users.
            seed: seed of the first user.
            random: sample from distributions and flows. False uses the mode of a distribution and zero noise of a flow.
        """
        options: dict[str, Any] = {"episodes": episodes, "seed": seed, "random": random}
        return play_latent_policy(self._acting, policy, **options, length=self._length, device=self.device)

    def references(self, *, episodes: int = 256) -> dict[str, float]:
        """Return mean returns of reference policies.

        Returns:
            ``random_latent``; ``mean_latent``, the mean of the data's latents for every user at every step; ``sto``,
            the short-term oracle; ``behaviour``, the data; ``oracle``, the boredom-aware oracle;
            ``behaviour_through_ranker`` and ``oracle_through_ranker``, the same two after encoding and decoding by the
            ranker.
        """
        found = {"random_latent": self.evaluate(self._random_latent, episodes=episodes).mean}
        found["mean_latent"] = self.evaluate(self._mean_latent, episodes=episodes).mean

        def play(name: SlatePolicyName, through: bool) -> float:
            return round_trip_return(self.models, name, users=episodes, through=through, seed=EVALUATION_SEED)

        found["sto"] = play("sto", False)
        if "length" in self.data.metadata:
            rewards = self.data.transitions["next", "reward"]
            found["behaviour"] = float(rewards.mean()) * self._length
        else:
            found |= super().references(episodes=episodes)
        if self.label in SLATE_POLICIES:
            found["behaviour_through_ranker"] = play(cast(SlatePolicyName, self.label), True)
        return found | {"oracle_through_ranker": play("expert", True), "oracle": play("expert", False)}

    def _mean_latent(self, data: TensorDictBase) -> TensorDictBase:
        mean = self.data.transitions["action"].mean(0)
        return data.set("action", mean.expand(*data.batch_size, self.action_dim))

    def _random_latent(self, data: TensorDictBase) -> TensorDictBase:
        """Draw latents from the prior of the ranker, in the units of the box."""
        box = self.models.ranker.box
        drawn = (torch.randn(*data.batch_size, self.action_dim) - box.centre) / box.scale
        return data.set("action", drawn.clamp(-1.0, 1.0).to(self.device))


@torch.no_grad()
def play_latent_policy(
    models: SlateModels,
    policy: Policy,
    *,
    episodes: int = 256,
    seed: int = EVALUATION_SEED,
    random: bool = False,
    length: int = 100,
    device: torch.device | str = "cpu",
) -> SlateReturns:
    """Play one episode with each user of a latent env, all in one batch.

    Args:
        models: belief encoder and ranker, on ``device``.
        policy: policy that reads ``observation`` and writes ``action`` in [-1, 1].
        episodes: number of users.
        seed: seed of the first user.
        random: sample from distributions and flows. False uses the mode of a distribution and zero noise of a flow.
        length: steps of an episode.
        device: device of the simulation.
    """
    exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
    # Every evaluation draws the same samples, and the random state of training is left unchanged.
    with isolated_rng(seed), set_exploration_type(exploration):
        env = models.env(episodes, device=device)
        data, total = env.reset(seed=seed), torch.zeros(episodes, 1, device=device)
        for _ in range(length):
            data = env.step(policy(data))["next"]
            total += data["reward"]
    return SlateReturns(tuple(total.flatten().tolist()))


@torch.no_grad()
def q_diagnostics(
    loss: LossModule, batch: TensorDictBase, policy: Policy, *, bound: float | None = None
) -> dict[str, float]:
    """Compare the critics' values of logged, random and policy actions, without draws from global generators.

    If critics value random latents as high as logged ones, they have not learned from the data. If values exceed
    ``bound``, the critics have diverged.

    Args:
        loss: loss with stacked critics ``qvalue_network``.
        batch: transitions.
        policy: policy that writes ``action``.
        bound: largest possible value. Defaults to None: the share of values above it is not returned.
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

    with set_exploration_type(ExplorationType.DETERMINISTIC):
        acted = policy(TensorDict({"observation": observation}, batch_size=batch.batch_size))["action"]
    # A separate generator: the number of diagnostics must not change the training.
    random = torch.rand(action.shape, generator=torch.Generator().manual_seed(0)).to(action.device) * 2 - 1
    own = q(acted)
    found = {"q/data": q(action).mean().item(), "q/random": q(random).mean().item(), "q/policy": own.mean().item()}
    return found if bound is None else {**found, "q/above_bound": float((own > bound).float().mean())}


def load_state_policy(
    source: str | Path | TrainingCheckpoint, *, data_units: bool = False, which: Which = "last"
) -> tuple[nn.Module, TrainingCheckpoint]:
    """Rebuild the policy of an offline baseline, including the normaliser, from a checkpoint only.

    Args:
        source: checkpoint, its file, or the directory of a run.
        data_units: return actions in the units of the training data. False returns actions in [-1, 1].
        which: checkpoint of a run: the last, or the best by the return in evaluations during training.

    Raises:
        CheckpointError: if the checkpoint holds no such policy.
    """
    checkpoint = open_checkpoint(source, which)
    policy = restore_module(
        checkpoint,
        "state_policy",
        StatePolicyConfig.from_dict,
        make_state_policy,
        roles=("policy",),
        absent="{path} holds no policy of states, only {roles}.",
    )
    return (in_data_units(policy, checkpoint) if data_units else policy).eval(), checkpoint


def action_box(checkpoint: TrainingCheckpoint) -> ActionBox:
    """Return the bounds of the actions that a policy of an offline baseline was trained on.

    Args:
        checkpoint: checkpoint of an offline baseline.

    Raises:
        CheckpointError: if the checkpoint holds no bounds.
    """
    bounds = checkpoint.module_configs.get("action_box")
    if bounds is None:
        raise CheckpointError(f"{checkpoint.path} holds no bounds of actions: an offline baseline did not write it.")
    return ActionBox(torch.tensor(bounds["low"]), torch.tensor(bounds["high"]))


def in_data_units(policy: Any, checkpoint: TrainingCheckpoint) -> TensorDictSequential:
    """Convert a policy trained on actions in [-1, 1] to one that writes actions in the units of its data.

    Args:
        policy: module that writes ``action``, such as the result of :func:`load_state_policy` or a
            :class:`~torchrl_flow.modules.SingleStepActor`.
        checkpoint: checkpoint of the run that trained the policy.

    Raises:
        CheckpointError: if the checkpoint holds no bounds.
    """
    scaled: Any = TensorDictModule(action_box(checkpoint), in_keys=["action"], out_keys=["action"])
    return TensorDictSequential(policy, scaled)
