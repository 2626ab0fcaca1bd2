"""GeMS' ranker: a variational autoencoder of slates and clicks whose decoder ranks items for a latent action."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_flow.modules.config import Config, dense_weights
from torchrl_flow.recsys.catalogue import MAX_ITEMS

__all__ = ["LatentActionBox", "SlateRanker", "SlateRankerConfig"]


class LatentActionBox(nn.Module):
    """The box of latent actions: ``centre + scale * tanh(x)``.

    Args:
        size: A, dimensions of a latent.

    Examples:
        >>> box = LatentActionBox(2)
        >>> box.fit_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.ones(2, 2))
        >>> box.low, box.high, box(torch.zeros(2))
        (tensor([-1.,  0.]), tensor([3., 4.]), tensor([1., 2.]))
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def fit_(self, mean: Tensor, sigma: Tensor, deviations: float | None = None) -> None:
        """Fit the box to posteriors.

        Args:
            mean: means of the posteriors, ``[N, A]``.
            sigma: standard deviations of the posteriors, ``[N, A]``.
            deviations: half width of the box around the mean of ``mean``, in standard deviations of ``mean``. ``None``
                uses the midpoint and half range of ``[min(mean - sigma), max(mean + sigma)]``, as in the paper. With
                many rows, outliers make that range so wide that most of it holds no data.

        Raises:
            ValueError: if the shapes differ or hold no row, or ``deviations`` is not above 0.
        """
        if mean.shape != sigma.shape or mean.ndim != 2 or mean.shape != (mean.shape[0], len(self.centre)):
            raise ValueError(
                f"mean and sigma must be [N, {len(self.centre)}], got {list(mean.shape)} and {list(sigma.shape)}."
            )
        if deviations is not None:
            if not deviations > 0:
                raise ValueError(f"deviations must be above 0, or None for the range of the data, got {deviations}.")
            self.centre.copy_(mean.mean(0))
            self.scale.copy_(deviations * mean.std(0, unbiased=False).clamp(min=1e-3))
            return
        low, high = (mean - sigma).amin(0), (mean + sigma).amax(0)
        self.centre.copy_(0.5 * (low + high))
        self.scale.copy_(0.5 * (high - low))

    @property
    def low(self) -> Tensor:
        """Lower bounds ``[A]``."""
        return self.centre - self.scale

    @property
    def high(self) -> Tensor:
        """Upper bounds ``[A]``."""
        return self.centre + self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Squash ``[*B, A]`` into the box."""
        return self.centre + self.scale * x.tanh()


@dataclasses.dataclass(frozen=True)
class SlateRankerConfig(Config):
    """Configuration from which a :class:`SlateRanker` is built; defaults are the paper's sizes."""

    limits: ClassVar[Mapping[str, int]] = {"num_items": MAX_ITEMS}

    num_items: int = 1000
    """N, number of items of the catalogue."""
    slate_size: int = 10
    """L, number of items of a slate."""
    item_dim: int = 20
    """Length of an item's embedding."""
    latent_dim: int = 32
    """A, length of a latent action."""
    hidden_sizes: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers; the decoder has them in reverse order. If empty, both are linear."""

    encode_clicks: bool = False
    """Encode clicks with the slate, as in the paper. A latent then depends on clicks too, and a critic is trained on
    values of clicks, which decoded slates do not have."""
    distinct_items: bool = True
    """Show no item twice in a slate; otherwise each slot shows its best item independently, as in the paper."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if self.distinct_items and self.num_items < self.slate_size:
            raise ValueError(
                f"num_items={self.num_items} cannot fill a slate of slate_size={self.slate_size} distinct items: give "
                "at least as many items, or distinct_items=False."
            )

    def _weights(self) -> int:
        slate, hidden = self.slate_size * (self.item_dim + 1), self.hidden_sizes
        ends = (dense_weights([slate, *hidden, 2 * self.latent_dim]), dense_weights([self.latent_dim, *hidden, slate]))
        return self.num_items * self.item_dim + sum(ends)


class SlateRanker(nn.Module):
    """Autoencoder that encodes slates (and clicks) as latents and decodes latents as slates.

    The encoder's input is the slate and, with ``encode_clicks``, its clicks. The decoder computes a vector for each
    slot; an item's logit is the product of this vector and the item's embedding. Encoder and decoder share the
    embeddings.

    Args:
        config: sizes of the ranker.

    References:
        Deffayet et al., "Generative Slate Recommendation with Reinforcement Learning", WSDM 2023,
        https://arxiv.org/abs/2301.08632

    Examples:
        >>> ranker = SlateRanker(SlateRankerConfig(num_items=50, hidden_sizes=(64,)))
        >>> slate = torch.randint(50, (4, 10))
        >>> mean, log_variance = ranker.encode(slate, torch.zeros(4, 10))
        >>> mean.shape, ranker.rank(mean).shape
        (torch.Size([4, 32]), torch.Size([4, 10]))
    """

    def __init__(self, config: SlateRankerConfig) -> None:
        super().__init__()
        self.config = config
        size, dim, hidden = config.slate_size, config.item_dim, list(config.hidden_sizes)
        self.embedding = nn.Embedding(config.num_items, dim)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.encoder = MLP(size * (dim + 1), 2 * config.latent_dim, num_cells=hidden, activation_class=nn.ReLU)
        self.decoder = MLP(config.latent_dim, size * (dim + 1), num_cells=hidden[::-1], activation_class=nn.ReLU)
        self.box = LatentActionBox(config.latent_dim)

    @property
    def action_low(self) -> Tensor:
        """Lower bound of latent actions ``[A]``."""
        return self.box.low

    @property
    def action_high(self) -> Tensor:
        """Upper bound of latent actions ``[A]``."""
        return self.box.high

    def encode(self, slate: Tensor, clicks: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance ``[*B, A]`` of a slate's latent.

        Args:
            slate: ids ``[*B, L]``.
            clicks: clicks or their probabilities ``[*B, L]``; only read with ``encode_clicks``.

        Raises:
            ValueError: if a shape does not fit.
        """
        if slate.shape != clicks.shape or slate.shape[-1] != self.config.slate_size:
            raise ValueError(
                f"slate and clicks must have shape [*B, {self.config.slate_size}], got {list(slate.shape)} and "
                f"{list(clicks.shape)}."
            )
        items = self.embedding(slate)
        read = clicks if self.config.encode_clicks else torch.zeros_like(clicks)
        inputs = torch.cat([items, read.unsqueeze(-1).to(items.dtype)], -1).flatten(-2)
        mean, log_variance = self.encoder(inputs).chunk(2, -1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return item logits ``[*B, L, N]`` and click logits ``[*B, L]`` of a latent ``[*B, A]``."""
        slots = self.decoder(latent).unflatten(-1, (self.config.slate_size, self.config.item_dim + 1))
        return slots[..., :-1] @ self.embedding.weight.T, slots[..., -1]

    def rank(self, latent: Tensor) -> Tensor:
        """Return the slate ``[*B, L]`` of a latent action: the item with the highest logit in each slot.

        With ``distinct_items`` slots are filled from the first to the last, each with its best item that no earlier
        slot shows.
        """
        logits = self.decode(latent)[0]
        if not self.config.distinct_items:
            return logits.argmax(-1)
        taken, slate = torch.zeros_like(logits[..., 0, :], dtype=torch.bool), []
        for slot in logits.unbind(-2):
            slate.append(slot.masked_fill(taken, -torch.inf).argmax(-1))
            taken = taken.scatter(-1, slate[-1].unsqueeze(-1), True)
        return torch.stack(slate, -1)
