"""Reference policies of the slate recommender: random, short-term oracle, logged, and boredom-aware oracle."""

from __future__ import annotations

from typing import get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_flow.recsys.catalogue import ItemCatalogue
from torchrl_flow.recsys.dynamics import effective_user
from torchrl_flow.recsys.names import SlatePolicyName

SLATE_POLICIES = get_args(SlatePolicyName)
"""Names of the reference policies of the slate recommender."""

__all__ = ["SLATE_POLICIES", "SlatePolicy", "SlatePolicyName", "diverse_slate", "make_slate_policy"]


def diverse_slate(score: Tensor, main_topic: Tensor, *, max_per_topic: int, slate_size: int = 10) -> Tensor:
    """Select the items with the highest scores, with at most ``max_per_topic`` of one main topic.

    Args:
        score: score of every item, ``[*B, N]``.
        main_topic: main topic of every item, ``[N]``.
        max_per_topic: largest number of items of one main topic in a slate.
        slate_size: items of a slate.

    Returns:
        ids ``[*B, slate_size]``, best first.

    Raises:
        ValueError: if the topics cannot fill a slate.

    Examples:
        >>> score = torch.tensor([5.0, 4.0, 3.0, 2.0])
        >>> diverse_slate(score, torch.tensor([0, 0, 0, 1]), max_per_topic=2, slate_size=3)
        tensor([0, 1, 3])
    """
    groups = [(main_topic == topic).nonzero().squeeze(-1) for topic in main_topic.unique().tolist()]
    if sum(min(max_per_topic, len(group)) for group in groups) < slate_size:
        raise ValueError(
            f"{len(groups)} topics with at most {max_per_topic} items each cannot fill a slate of {slate_size}."
        )
    best = [score[..., group].topk(min(max_per_topic, len(group)), -1) for group in groups]
    values = torch.cat([top.values for top in best], -1)
    ids = torch.cat([group[top.indices] for group, top in zip(groups, best)], -1)
    return ids.gather(-1, values.topk(slate_size, -1).indices)


class SlatePolicy(TensorDictModuleBase):
    """Policy that mixes, slot by slot, an oracle's slate with random items.

    An oracle shows the items with the highest true score, in which boring topics count zero. The short-term oracle
    (``max_per_topic=None``) shows the best slate of the current step and ignores the boredom it causes. The
    boredom-aware oracle shows at most ``max_per_topic`` items of each main topic, so that no topic becomes boring. The
    policy reads the observations of a ``SlateEnv`` with ``privileged=True``.

    Args:
        catalogue: the items.

    Keyword Args:
        oracle_share: probability that a slot holds the oracle's item.
        max_per_topic: largest number of items of one main topic in the oracle's slate; ``None`` for the short-term
            oracle, which has no limit.
        slate_size: items of a slate.
        generator: generator of the random items. Defaults to torch's global generator.
        user_key: key of the interests.
        bored_key: key of the boring topics.
        action_key: key of the slate.

    Raises:
        ValueError: if ``oracle_share`` is not in [0, 1].

    Examples:
        >>> from torchrl_flow.recsys import SlateEnv
        >>> env = SlateEnv("diffuse_topdown", 2, privileged=True, seed=0)
        >>> policy = SlatePolicy(env.catalogue, oracle_share=1.0, max_per_topic=1)
        >>> env.rollout(3, policy)["action"].shape
        torch.Size([2, 3, 10])
    """

    def __init__(
        self,
        catalogue: ItemCatalogue,
        *,
        oracle_share: float = 1.0,
        max_per_topic: int | None = None,
        slate_size: int = 10,
        generator: torch.Generator | None = None,
        user_key: NestedKey = "user",
        bored_key: NestedKey = "bored",
        action_key: NestedKey = "action",
    ) -> None:
        if not 0 <= oracle_share <= 1:
            raise ValueError(f"oracle_share must lie in [0, 1], got {oracle_share}.")
        self.in_keys = [user_key, bored_key]  # pyright: ignore[reportAttributeAccessIssue]
        self.out_keys = [action_key]  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__()
        self.catalogue, self.oracle_share, self.max_per_topic = catalogue, oracle_share, max_per_topic
        self.slate_size, self.generator = slate_size, generator
        self.user_key, self.bored_key, self.action_key = user_key, bored_key, action_key

    def oracle_slate(self, user: Tensor, bored: Tensor) -> Tensor:
        """Return the oracle's slate ``[*B, slate_size]`` for interests ``[*B, D]`` and boring topics."""
        items = self.catalogue
        score = effective_user(user, bored) @ items.embeddings.to(user.device).T
        if self.max_per_topic is None:
            return score.topk(self.slate_size, -1).indices
        topics = items.main_topic.to(user.device)
        return diverse_slate(score, topics, max_per_topic=self.max_per_topic, slate_size=self.slate_size)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the slate."""
        user = tensordict[self.user_key]
        shape, device, generator = (*user.shape[:-1], self.slate_size), user.device, self.generator
        if self.oracle_share < 1:
            slate = torch.randint(self.catalogue.num_items, shape, device=device, generator=generator)
            if self.oracle_share > 0:
                chosen = torch.rand(shape, device=device, generator=generator) < self.oracle_share
                slate = torch.where(chosen, self.oracle_slate(user, tensordict[self.bored_key]), slate)
        else:
            slate = self.oracle_slate(user, tensordict[self.bored_key])
        return tensordict.set(self.action_key, slate)


def make_slate_policy(
    name: SlatePolicyName,
    env_name: str,
    catalogue: ItemCatalogue,
    *,
    slate_size: int = 10,
    generator: torch.Generator | None = None,
) -> SlatePolicy:
    """Make a reference policy of an environment.

    Args:
        name: ``random``; ``sto``, the short-term oracle; ``logged``, the paper's logging policy, in which each slot has
            the short-term oracle's item with probability 0.5, otherwise a random one; ``expert``, the boredom-aware
            oracle; ``medium``, in which each slot has the expert's item with probability 0.5, otherwise a random one.
        env_name: name of the environment. It sets the number of items per topic: 1 for ``topdown``, 2 for the others.
        catalogue: items of the environment.
        slate_size: items of a slate.
        generator: generator of the random items.

    Raises:
        ValueError: if the policy is unknown.
    """
    if name not in SLATE_POLICIES:
        raise ValueError(f"policy must be one of {SLATE_POLICIES}, got {name!r}.")
    share = {"random": 0.0, "logged": 0.5, "medium": 0.5}.get(name, 1.0)
    aware = 1 if env_name.endswith("topdown") else 2
    return SlatePolicy(
        catalogue,
        oracle_share=share,
        max_per_topic=aware if name in ("medium", "expert") else None,
        slate_size=slate_size,
        generator=generator,
    )
