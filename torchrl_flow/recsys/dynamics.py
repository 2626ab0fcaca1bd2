"""Dynamics of the slate recommender as pure functions: users, relevance, clicks, click history, boredom."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_flow.recsys.catalogue import topic_components
from torchrl_flow.recsys.names import CLICK_MODELS, ClickModel

__all__ = [
    "BOREDOM_STEPS",
    "MEMORY",
    "ClickHistory",
    "bored_topics",
    "click_probability",
    "drift_user",
    "effective_user",
    "examination",
    "forget_clicks",
    "initial_user",
    "relevance",
    "remember_clicks",
    "tick_boredom",
]

MEMORY = 10
"""Number of clicks in the history."""
CLICK_AGE = 5
"""Steps after which a click is forgotten."""
BORING_CLICKS = 5
"""Number of clicks in the history at which their topic becomes boring."""
BOREDOM_STEPS = 5
"""Number of steps for which a topic stays boring."""
SAME_TOPIC_ITEMS = 4
"""Number of items of one main topic at which `divpen` penalises a slate."""
_EXAMINATION_DECAY = 0.85
_DRIFT = 0.1
_STEEPNESS, _THRESHOLD = 100.0, 0.28


def examination(click_model: ClickModel, slate_size: int, device: torch.device | None = None) -> Tensor:
    """Compute the examination probability ``[slate_size]`` of each slot.

    Raises:
        ValueError: if the click model is unknown.
    """
    if click_model not in CLICK_MODELS:
        raise ValueError(f"click_model must be one of {CLICK_MODELS}, got {click_model!r}.")
    falling = _EXAMINATION_DECAY ** torch.arange(slate_size, dtype=torch.float32, device=device)
    return falling if click_model == "topdown" else 0.5 * (falling + falling.flip(0))


def normalise_user(user: Tensor, num_topics: int) -> Tensor:
    """Divide a user's interests by the sum of the norms of their topics."""
    topics = user.unflatten(-1, (num_topics, -1))
    return user / topics.square().sum(-1).sqrt().sum(-1, keepdim=True)


def initial_user(uniform: Tensor, normal: Tensor) -> Tensor:
    """Draw users' interests.

    Args:
        uniform: numbers in [0, 1), ``[*B, num_topics]``.
        normal: standard normal numbers ``[*B, num_topics * topic_dim]``.

    Returns:
        ``[*B, num_topics * topic_dim]``, whose topic norms sum to 1.
    """
    return normalise_user(topic_components(normal, uniform.pow(3)), uniform.shape[-1])


def relevance(score: Tensor, max_norm: float) -> Tensor:
    """Compute the click probability of an examined item from its score ``e . u``."""
    return torch.sigmoid(_STEEPNESS * (score / max_norm - _THRESHOLD))


def effective_user(user: Tensor, bored: Tensor) -> Tensor:
    """Set the interests ``[*B, D]`` in boring topics (bool ``[*B, num_topics]``) to zero."""
    topics = user.unflatten(-1, (bored.shape[-1], -1))
    return topics.masked_fill(bored.unsqueeze(-1), 0.0).flatten(-2)


def click_probability(relevance: Tensor, slate_topics: Tensor, examined: Tensor, *, penalise: bool) -> Tensor:
    """Compute the click probabilities of a slate.

    Args:
        relevance: relevance of the slate's items, ``[*B, L]``.
        slate_topics: main topics of the items ``[*B, L]``.
        examined: examination probabilities ``[L]``.
        penalise: divide by 3 where at least 4 items share their main topic.

    Returns:
        ``[*B, L]``.
    """
    probability = relevance * examined
    if penalise:
        same = (slate_topics.unsqueeze(-1) == slate_topics.unsqueeze(-2)).sum(-1).amax(-1, keepdim=True)
        probability = torch.where(same >= SAME_TOPIC_ITEMS, probability / 3.0, probability)
    return probability


def drift_user(user: Tensor, items: Tensor, clicks: Tensor, num_topics: int) -> Tensor:
    """Move interests towards each clicked item in slate order: ``u <- normalise(0.9 u + 0.1 e)``.

    Args:
        user: interests ``[*B, D]``.
        items: embeddings of the slate ``[*B, L, D]``.
        clicks: ``[*B, L]`` bool.
        num_topics: number of topics.
    """
    weight = _DRIFT * clicks.unsqueeze(-1).to(user.dtype)
    pull = (weight * items).unbind(-2)
    for keep, item in zip((1.0 - weight).unbind(-2), pull):
        # The norm of an unchanged user is already 1, up to rounding, so all rows are normalised.
        user = normalise_user(torch.addcmul(item, user, keep), num_topics)
    return user


class ClickHistory(NamedTuple):
    """The last clicks, newest last, and the number of them that still count.

    Attributes:
        entries: ``step * num_topics + topic`` of the last clicks, int64 ``[*B, MEMORY]``.
        kept: entries in the queue of topics, int64 ``[*B, 1]``.
        dated: entries in the queue of times, int64 ``[*B, 1]``. Without the legacy bookkeeping it equals ``kept``.
    """

    entries: Tensor
    kept: Tensor
    dated: Tensor


def remember_clicks(
    history: ClickHistory, clicks: Tensor, slate_topics: Tensor, step: Tensor, num_topics: int, *, dated: bool = True
) -> ClickHistory:
    """Append the clicks of a slate to a history.

    Args:
        history: the history before.
        clicks: ``[*B, L]`` bool.
        slate_topics: main topics ``[*B, L]``.
        step: number of the step, int64 ``[*B, 1]``.
        num_topics: number of topics.
        dated: append to the queue of times, too. The authors' code uses False at a reset.
    """
    entries = torch.cat([history.entries, step * num_topics + slate_topics], -1)
    valid = torch.cat([torch.ones_like(history.entries, dtype=torch.bool), clicks], -1)
    from_newest = valid.flip(-1).cumsum(-1).flip(-1) - 1
    # Entries without a click, or too old to be kept, go to a slot that is cut off.
    slot = torch.where(valid & (from_newest < MEMORY), MEMORY - 1 - from_newest, MEMORY)
    placed = entries.new_zeros(*entries.shape[:-1], MEMORY + 1).scatter_(-1, slot, entries)
    number = clicks.sum(-1, keepdim=True)
    grown = (history.dated + number).clamp(max=MEMORY) if dated else history.dated
    return ClickHistory(placed[..., :MEMORY], (history.kept + number).clamp(max=MEMORY), grown)


def forget_clicks(history: ClickHistory, step: Tensor, num_topics: int) -> ClickHistory:
    """Remove the clicks that are older than 5 steps.

    The queue of times determines the number of clicks removed from both queues. With the authors' bookkeeping, in which
    clicks at a reset have no time, the removed clicks are not always the oldest ones.
    """
    index = torch.arange(MEMORY, device=step.device)
    age = step - history.entries.div(num_topics, rounding_mode="floor")
    expired = ((age > CLICK_AGE) & (index >= MEMORY - history.dated)).sum(-1, keepdim=True)
    return ClickHistory(history.entries, (history.kept - expired).clamp(min=0), history.dated - expired)


def bored_topics(history: ClickHistory, num_topics: int) -> Tensor:
    """Return which topics ``[*B, num_topics]`` have at least 5 of the kept clicks."""
    index = torch.arange(MEMORY, device=history.entries.device)
    counted = (index >= MEMORY - history.kept).to(torch.float32)
    counts = counted.new_zeros(*counted.shape[:-1], num_topics)
    return counts.scatter_add_(-1, history.entries % num_topics, counted) >= BORING_CLICKS


def tick_boredom(timers: Tensor, becomes_bored: Tensor) -> Tensor:
    """Decrement the timers ``[*B, num_topics]``, and start those of topics that become boring.

    A topic is boring while its timer is above 0. A running timer is not restarted.
    """
    fallen = (timers - 1).clamp(min=0)
    return torch.where(becomes_bored & (fallen == 0), BOREDOM_STEPS, fallen)
