"""The two frozen models of the latent slate env, belief encoder and ranker, and the logs they are trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.checkpoint import CheckpointError
from torchrl.envs import EnvBase

from torchrl_flow.recsys.belief_encoder import BeliefEncoder, BeliefEncoderConfig
from torchrl_flow.recsys.catalogue import ItemCatalogue
from torchrl_flow.recsys.env import SlateEnv
from torchrl_flow.recsys.policies import SlatePolicyName, make_slate_policy
from torchrl_flow.recsys.slate_ranker import SlateRanker, SlateRankerConfig
from torchrl_flow.recsys.transforms import latent_slate_env
from torchrl_flow.runs.checkpoint import save_checkpoint
from torchrl_flow.runs.checkpoint_reader import TrainingCheckpoint, load_checkpoint
from torchrl_flow.runs.restore import restore_module
from torchrl_flow.util.digest import module_digest
from torchrl_flow.util.task_info import TaskInfo

__all__ = ["SlateLogs", "SlateModels", "play_slates"]


@dataclasses.dataclass
class SlateLogs:
    """Logs of a reference policy: slates and clicks of whole episodes.

    Attributes:
        slates: ids ``[E, T + 1, L]``, the slate of the reset first.
        clicks: bool ``[E, T + 1, L]``.
    """

    slates: Tensor
    clicks: Tensor


def play_slates(
    env: SlateEnv, policy_name: SlatePolicyName, *, seed: int, generator: torch.Generator | None = None
) -> SlateLogs:
    """Play one episode in each sub-environment with a reference policy.

    Args:
        env: privileged slate env.
        policy_name: see :func:`~torchrl_flow.recsys.make_slate_policy`.
        seed: seed of the first sub-environment.
        generator: generator of the policy.
    """
    policy = make_slate_policy(policy_name, env.name, env.catalogue, slate_size=env.slate_size, generator=generator)
    data = env.reset(seed=seed)
    slates, clicks = [data["slate"]], [data["clicks"]]
    for _ in range(env.max_episode_steps):
        data = env.step(policy(data))["next"]
        slates.append(data["slate"])
        clicks.append(data["clicks"])
    return SlateLogs(torch.stack(slates, 1), torch.stack(clicks, 1))


@dataclasses.dataclass
class SlateModels:
    """The items, the belief encoder and the ranker of a latent slate env.

    Attributes:
        env_name: the environment that they were trained for.
        catalogue: items of the environment.
        encoder: belief encoder, frozen.
        ranker: ranker, frozen.
        quality: measurements after the training.
    """

    env_name: str
    catalogue: ItemCatalogue
    encoder: BeliefEncoder
    ranker: SlateRanker
    quality: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the networks."""
        for network in (self.encoder, self.ranker):
            network.eval().requires_grad_(False)

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of items, belief encoder and ranker, which are stored in data sets made with them."""
        return {
            "catalogue": self.catalogue.hash,
            "belief_encoder": module_digest(self.encoder, layout=False)[:16],
            "ranker": module_digest(self.ranker, layout=False)[:16],
        }

    def to(self, device: torch.device | str) -> SlateModels:
        """Move the networks, in place."""
        self.encoder.to(device)
        self.ranker.to(device)
        return self

    def env(self, num_envs: int, *, seed: int | None = None, **kwargs: Any) -> EnvBase:
        """Make the latent env: beliefs as observations, the ranker's latents as actions."""
        base = SlateEnv(self.env_name, num_envs, catalogue=self.catalogue, seed=seed, **kwargs)
        return latent_slate_env(base, self.encoder, self.ranker)

    @torch.no_grad()
    def latents(self, beliefs: Tensor, slates: Tensor, clicks: Tensor | None = None) -> Tensor:
        """Encode slates ``[*B, L]`` as latents ``[*B, A]``, the posterior's mean.

        Args:
            beliefs: belief before each slate, ``[*B, D]``.
            slates: ids of the items, ``[*B, L]``.
            clicks: clicks that the latents encode. Defaults to the clicks predicted from the belief, so that a latent
                represents the slate in its context and not the outcome. A ranker that does not encode clicks ignores
                them.
        """
        given = self.encoder.click_probabilities(beliefs, slates) if clicks is None else clicks
        return self.ranker.encode(slates, given)[0]

    def save(self, path: str | Path, *, config: Mapping[str, Any] | None = None) -> Path:
        """Write items, encoder, ranker and quality to one file.

        Args:
            path: file to write.
            config: configuration of the training.
        """
        configs = {"belief_encoder": self.encoder.config.to_dict(), "ranker": self.ranker.config.to_dict()}
        items = nn.Module()
        items.register_buffer("embeddings", self.catalogue.embeddings)
        return save_checkpoint(
            path,
            modules={"belief_encoder": self.encoder, "ranker": self.ranker, "catalogue": items},
            config=config,
            task=TaskInfo(task=self.env_name, details={"num_topics": self.catalogue.num_topics}),
            metrics=self.quality,
            metadata={"module_configs": configs, "quality": self.quality, "hashes": self.hashes},
            rng=False,
        )

    @classmethod
    def load(cls, path: str | Path) -> SlateModels:
        """Read a file that :meth:`save` wrote.

        Raises:
            CheckpointError: if the file has other content, lacks a field, or a field has another type.
        """
        checkpoint = load_checkpoint(path)
        try:
            return cls._from_checkpoint(checkpoint)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint.path} does not describe the two models: {error!r}.") from error

    @classmethod
    def _from_checkpoint(cls, checkpoint: TrainingCheckpoint) -> SlateModels:
        absent = "{path} holds no belief encoder and ranker, only {roles}."
        encoder = restore_module(checkpoint, "belief_encoder", _read_belief_config, BeliefEncoder, absent=absent)
        ranker = restore_module(checkpoint, "ranker", _read_ranker_config, SlateRanker, absent=absent)
        items = nn.Module()
        items.register_buffer("embeddings", torch.zeros(ranker.config.num_items, ranker.config.item_dim))
        checkpoint.restore(modules={"catalogue": items})
        catalogue = ItemCatalogue(items.get_buffer("embeddings"), checkpoint.task.details["num_topics"])
        name, quality = checkpoint.task.task, dict(checkpoint.metadata["quality"])
        if not isinstance(name, str):
            raise TypeError(f"the task's name must be a text, got {name!r}")
        return cls(name, catalogue, encoder, ranker, quality)


def _read_belief_config(values: Mapping[str, Any]) -> BeliefEncoderConfig:
    """Rebuild the encoder's configuration; in older files ``clicked_sum`` is missing and means False."""
    return BeliefEncoderConfig.from_dict({"clicked_sum": False, **values}, complete=True)


def _read_ranker_config(values: Mapping[str, Any]) -> SlateRankerConfig:
    """Rebuild the ranker's configuration; rankers of older files encode clicks and may repeat items."""
    older = {"encode_clicks": True, "distinct_items": False}
    return SlateRankerConfig.from_dict({**older, **values}, complete=True)
