"""Objective and metric of the slate recommender's models: the bound of the slate VAE, and the AUC of clicks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torchrl_flow.functional.checks import check_same_shape

__all__ = ["binary_auc", "gaussian_kl", "latent_sample", "slate_vae_terms"]


def latent_sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Compute ``mean + sigma * noise`` with ``sigma = exp(log_variance / 2)``.

    Args:
        mean: ``[*B, A]``.
        log_variance: ``[*B, A]``.
        noise: standard normal numbers ``[*B, A]``.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape("[*B, A]", mean=mean, log_variance=log_variance, noise=noise)
    return mean + (0.5 * log_variance).exp() * noise


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute ``KL(N(mean, sigma^2) || N(0, 1))`` of each dimension, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def slate_vae_terms(
    item_logits: Tensor, slate: Tensor, click_logits: Tensor, clicks: Tensor, mean: Tensor, log_variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three terms of GeMS' bound for each row: cross-entropy of slots, of clicks, and divergence.

    Deffayet et al., "Generative Slate Recommendation with Reinforcement Learning", https://arxiv.org/abs/2301.08632.
    The loss is ``items + lambda clicks + beta kl``; all terms are averaged, over the slate or the latent's dimensions,
    so that ``beta`` weighs the divergence by ``beta L / A`` on the scale of the sums.

    Args:
        item_logits: ``[*B, L, N]``.
        slate: ids ``[*B, L]``.
        click_logits: ``[*B, L]``.
        clicks: clicks or their probabilities ``[*B, L]``.
        mean: ``[*B, A]``.
        log_variance: ``[*B, A]``.

    Returns:
        ``(items, clicks, kl)``, each ``[*B]``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if item_logits.shape[:-1] != slate.shape or click_logits.shape != slate.shape or clicks.shape != slate.shape:
        raise ValueError(
            f"item_logits {list(item_logits.shape)}, slate {list(slate.shape)}, click_logits "
            f"{list(click_logits.shape)} and clicks {list(clicks.shape)} do not fit together."
        )
    items = F.cross_entropy(item_logits.flatten(0, -2), slate.flatten(), reduction="none").reshape(slate.shape).mean(-1)
    click = F.binary_cross_entropy_with_logits(click_logits, clicks.to(click_logits.dtype), reduction="none").mean(-1)
    return items, click, gaussian_kl(mean, log_variance).mean(-1)


def binary_auc(score: Tensor, label: Tensor) -> float:
    """Compute the area under the ROC curve: the probability that a positive scores above a negative; ties count half.

    Args:
        score: any shape.
        label: bool, of the same shape.

    Raises:
        ValueError: if the shapes differ or a class is empty.

    Examples:
        >>> import torch
        >>> binary_auc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True]))
        0.875
    """
    score, label = score.flatten().double(), label.flatten().bool()
    positives, negatives = int(label.sum()), int((~label).sum())
    if score.shape != label.shape or not positives or not negatives:
        raise ValueError(f"need a score for each label, and both classes; got {positives} and {negatives} of them.")
    _, inverse, counts = score.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    rank = (last - 0.5 * (counts - 1).double())[inverse]
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))
