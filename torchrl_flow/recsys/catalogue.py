"""The items of the slate recommender: embeddings generated from a seed, and their derived properties."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrl_flow.data.logged.npz_file import open_npz, read_member
from torchrl_flow.envs.counter_rng import counter_normal, counter_uniform
from torchrl_flow.recsys.names import FOCUS_EXPONENTS, SLATE_ENVS
from torchrl_flow.util.files import staged

MAX_ITEMS = 10_000_000
"""Largest number of items that a configuration may request."""

__all__ = ["MAX_ITEMS", "ItemCatalogue", "make_catalogue"]

_FORMAT = "torchrl_flow.item_catalogue"


class ItemCatalogue:
    """Embeddings of the items of a slate recommender; each topic has a few dimensions.

    The components of an item are ``|clamp(0.4 N(0, 1), -1, 1)|`` times the item's weight of their topic, where the
    weights are uniform numbers normalised to sum to 1; embeddings are then normalised to length 1. An exponent above
    1 concentrates items on few topics.

    Args:
        embeddings: ``[num_items, num_topics * topic_dim]``.
        num_topics: number of topics.

    Raises:
        ValueError: if the embeddings are not a finite matrix whose width is a multiple of ``num_topics``, or a topic
            has no item.

    Attributes:
        embeddings: as given, float32.
        main_topic: topic of the largest norm, int64 ``[num_items]``.
        max_norm: largest norm of an item.
        topic_slate: the item with the largest norm in each topic, int64 ``[num_topics]``.

    Examples:
        >>> items = ItemCatalogue.generate(num_items=200, seed=1)
        >>> items.embeddings.shape, items.topic_slate.shape
        (torch.Size([200, 20]), torch.Size([10]))
    """

    def __init__(self, embeddings: Tensor, num_topics: int = 10) -> None:
        if embeddings.ndim != 2 or num_topics < 1 or embeddings.shape[1] % num_topics or not embeddings.shape[0]:
            raise ValueError(
                f"embeddings must be [num_items, num_topics * topic_dim] with num_topics={num_topics}, got "
                f"{list(embeddings.shape)}."
            )
        if not embeddings.isfinite().all():
            raise ValueError("embeddings hold values that are not finite.")
        self.embeddings = embeddings.detach().float().contiguous()
        self.num_topics = num_topics
        norms = self.embeddings.unflatten(-1, (num_topics, -1)).norm(dim=-1)
        self.main_topic = norms.argmax(-1)
        self.max_norm = float(self.embeddings.norm(dim=-1).max())
        self.topic_slate = norms.argmax(0)

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.embeddings.shape[1]

    @property
    def hash(self) -> str:
        """Hash of the embeddings, which identifies the catalogue."""
        return hashlib.sha256(self.embeddings.cpu().numpy().tobytes()).hexdigest()[:16]

    @classmethod
    def generate(
        cls, num_items: int = 1000, *, num_topics: int = 10, topic_dim: int = 2, exponent: float = 1.0, seed: int = 0
    ) -> ItemCatalogue:
        """Draw a catalogue.

        Args:
            num_items: number of items.
            num_topics: number of topics.
            topic_dim: dimensions of a topic.
            exponent: power to which the components are raised; a value above 1 concentrates items on few topics.
            seed: seed. The catalogue depends only on it and on the sizes.

        Raises:
            ValueError: if a size is below 1 or the exponent is not above 0.
        """
        if min(num_items, num_topics, topic_dim) < 1 or exponent <= 0:
            raise ValueError(
                f"num_items, num_topics and topic_dim must be at least 1 and exponent above 0, got {num_items}, "
                f"{num_topics}, {topic_dim} and {exponent}."
            )
        stream, item = torch.full((num_items,), seed), torch.arange(num_items)
        weights = counter_uniform(stream, 2 * item, num_topics)
        components = topic_components(counter_normal(stream, 2 * item + 1, num_topics * topic_dim), weights)
        embeddings = components.pow(exponent)
        return cls(embeddings / embeddings.norm(dim=-1, keepdim=True), num_topics)

    def save(self, path: str | Path) -> None:
        """Write the catalogue to an ``.npz`` file."""
        with staged(Path(path)) as part, part.open("wb") as file:
            np.savez(file, format=_FORMAT, embeddings=self.embeddings.cpu().numpy(), num_topics=self.num_topics)

    @classmethod
    def load(cls, path: str | Path) -> ItemCatalogue:
        """Read a catalogue.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds no catalogue, is damaged, or its unpacked size is far above its file size.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no item catalogue {path}.")
        try:
            with open_npz(path) as file:
                if "format" not in file.files or str(read_member(path, file, "format")) != _FORMAT:
                    raise ValueError(f"it has {sorted(file.files)}")
                embeddings = torch.from_numpy(read_member(path, file, "embeddings"))
                return cls(embeddings, int(read_member(path, file, "num_topics")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no item catalogue, or a damaged one: {error}.") from error


def topic_components(normal: Tensor, weights: Tensor) -> Tensor:
    """Compute components ``|clamp(0.4 normal, -1, 1)| * w`` with the weights ``w`` normalised to sum to 1.

    Args:
        normal: standard normal numbers ``[*B, num_topics * topic_dim]``.
        weights: topic weights ``[*B, num_topics]``, at least 0.

    Returns:
        ``[*B, num_topics * topic_dim]``.
    """
    topics = weights.shape[-1]
    share = weights / weights.sum(-1, keepdim=True)
    magnitude = (0.4 * normal).clamp(-1.0, 1.0).abs()
    return (magnitude.unflatten(-1, (topics, -1)) * share.unsqueeze(-1)).flatten(-2)


def make_catalogue(name: str, *, num_items: int = 1000, exponent: float | None = None, seed: int = 1) -> ItemCatalogue:
    """Generate the items of an environment.

    Args:
        name: one of :data:`SLATE_ENVS`.
        num_items: number of items.
        exponent: power that concentrates items on few topics. Defaults to 1 for ``diffuse`` and 2, the value of the
            paper, for ``focused``.
        seed: seed of the items.

    Raises:
        ValueError: if the environment is unknown.
    """
    if name not in SLATE_ENVS:
        raise ValueError(f"name must be one of {SLATE_ENVS}, got {name!r}.")
    if exponent is None:
        exponent = FOCUS_EXPONENTS[name.split("_")[0]]
    return ItemCatalogue.generate(num_items, exponent=exponent, seed=seed)
