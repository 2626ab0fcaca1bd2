"""The belief encoder of a slate recommender: a recurrent summary of slates and clicks, trained to predict clicks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_flow.modules.config import Config
from torchrl_flow.recsys.catalogue import MAX_ITEMS

__all__ = ["BeliefEncoder", "BeliefEncoderConfig"]


@dataclasses.dataclass(frozen=True)
class BeliefEncoderConfig(Config):
    """Configuration from which a :class:`BeliefEncoder` is built."""

    limits: ClassVar[Mapping[str, int]] = {"num_items": MAX_ITEMS}

    num_items: int = 1000
    """Number of items of the catalogue."""
    slate_size: int = 10
    """L, number of items of a slate."""
    item_dim: int = 20
    """Length of an item's embedding."""
    belief_dim: int = 20
    """D, length of the belief."""
    head_width: int = 128
    """Hidden width of the click model."""
    clicked_sum: bool = True
    """Whether the GRU also gets the sum of the clicked items' embeddings."""

    @property
    def step_inputs(self) -> int:
        """Number of inputs of the GRU per step."""
        return self.slate_size * (self.item_dim + 1) + (self.item_dim if self.clicked_sum else 0)

    def _weights(self) -> int:
        inputs = self.step_inputs
        recurrent = 3 * (inputs + self.belief_dim) * self.belief_dim
        return self.num_items * self.item_dim + recurrent + self.head_width * (self.belief_dim + self.item_dim)


class BeliefEncoder(nn.Module):
    """Encoder of an episode's slates and clicks in a GRU's state, with a model of the next slate's clicks.

    The input of a step is each slot's item embedding with its click, ``L * (item_dim + 1)`` numbers, and with
    ``clicked_sum`` the sum of the clicked items' embeddings: a click moves a user's interests towards its item, and the
    linear input of a GRU cannot form these products of clicks and embeddings. The click model scores an item by the
    product of its embedding with a query computed from the belief, plus a term for the slot. Encoder and click model
    are trained together on next-click prediction, and frozen before reinforcement learning, so that data and
    environment have the same beliefs.

    Args:
        config: sizes of the encoder.

    References:
        Deffayet et al., https://arxiv.org/abs/2301.08632, whose belief encoder has this form
        without ``clicked_sum``.

    Examples:
        >>> encoder = BeliefEncoder(BeliefEncoderConfig(num_items=50))
        >>> slates, clicks = torch.randint(50, (4, 7, 10)), torch.rand(4, 7, 10) < 0.3
        >>> beliefs = encoder(slates, clicks)
        >>> beliefs.shape, encoder.click_logits(beliefs, slates).shape
        (torch.Size([4, 7, 20]), torch.Size([4, 7, 10]))
        >>> one = encoder.step(torch.zeros(4, 20), slates[:, 0], clicks[:, 0])
        >>> torch.allclose(one, beliefs[:, 0], atol=1e-6)
        True
    """

    def __init__(self, config: BeliefEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_items, config.item_dim)
        self.gru = nn.GRU(config.step_inputs, config.belief_dim, batch_first=True)
        width = config.head_width
        self.query = MLP(config.belief_dim, config.item_dim + 1, num_cells=[width], activation_class=nn.ReLU)
        self.item_bias = nn.Embedding(config.num_items, 1)
        self.slot_bias = nn.Parameter(torch.zeros(config.slate_size))
        nn.init.normal_(self.embedding.weight, std=0.3)
        nn.init.zeros_(self.item_bias.weight)

    @property
    def belief_dim(self) -> int:
        """Length D of a belief."""
        return self.config.belief_dim

    def _inputs(self, slate: Tensor, clicks: Tensor) -> Tensor:
        size = self.config.slate_size
        if slate.shape != clicks.shape or slate.shape[-1] != size:
            raise ValueError(
                f"slate and clicks must have shape [*B, {size}], got {list(slate.shape)} and {list(clicks.shape)}."
            )
        items = self.embedding(slate)
        clicked = clicks.unsqueeze(-1).to(items.dtype)
        slots = torch.cat([items, clicked], -1).flatten(-2)
        return torch.cat([slots, (items * clicked).sum(-2)], -1) if self.config.clicked_sum else slots

    def forward(self, slates: Tensor, clicks: Tensor) -> Tensor:
        """Return the beliefs ``[B, T, D]`` after each of T slates ``[B, T, L]``, starting from the zero belief."""
        return self.gru(self._inputs(slates, clicks))[0]

    def step(self, belief: Tensor, slate: Tensor, clicks: Tensor) -> Tensor:
        """Return the belief ``[*B, D]`` after a further slate ``[*B, L]`` and its clicks.

        Raises:
            ValueError: if a shape does not fit.
        """
        inputs = self._inputs(slate, clicks)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [self.gru.get_parameter(name) for name in names]
        after = torch.gru_cell(inputs.reshape(-1, inputs.shape[-1]), belief.reshape(-1, self.belief_dim), *weights)
        return after.reshape(belief.shape)

    def click_logits(self, belief: Tensor, slate: Tensor) -> Tensor:
        """Predict the clicks of the next slate.

        Args:
            belief: belief before the slate, ``[*B, D]``.
            slate: ids ``[*B, L]``.

        Returns:
            logits ``[*B, L]``.
        """
        query = self.query(belief)
        score = (self.embedding(slate) @ query[..., :-1, None]).squeeze(-1)
        return score + self.item_bias(slate).squeeze(-1) + query[..., -1:] + self.slot_bias

    def click_probabilities(self, belief: Tensor, slate: Tensor) -> Tensor:
        """Return the predicted click probabilities ``[*B, L]``; see :meth:`click_logits`."""
        return self.click_logits(belief, slate).sigmoid()
