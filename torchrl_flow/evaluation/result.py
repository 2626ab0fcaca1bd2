"""Result of an evaluation as numbers, metrics and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_flow.figures.notebook import result_html
from torchrl_flow.functional.statistics import wilson_interval

__all__ = ["EvaluationResult"]


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of one episode per seed.

    Args:
        seeds: seeds of the ``n`` episodes.
        returns: undiscounted sum of env-step rewards, float64 ``[n]``.
        lengths: env steps, int64 ``[n]``.
        success_once: whether any env step succeeded, bool ``[n]``; None for a task without success.
        success_at_end: whether the last env step succeeded, bool ``[n]``; None for a task without success.
        wall_s: wall time of the evaluation in seconds.
        policy_ms: median milliseconds of one policy call for all sub-environments together.
        policy_calls: number of calls of the policy.
        videos: frames of the first episodes, uint8 ``[length + 1, h, w, 3]`` each. Rendering is part of ``wall_s`` and
            disturbs ``policy_ms``: reports omit the times of an evaluation with videos.

    Examples:
        >>> import torch
        >>> flags = torch.tensor([True, False, True, True])
        >>> result = EvaluationResult(
        ...     (0, 1, 2, 3), torch.ones(4), torch.full((4,), 50), flags, flags,
        ...     wall_s=1.0, policy_ms=2.0, policy_calls=9)
        >>> result.success_once_rate, [round(end, 3) for end in result.success_once_interval]
        (0.75, [0.301, 0.954])
    """

    seeds: tuple[int, ...]
    returns: Tensor
    lengths: Tensor
    success_once: Tensor | None
    success_at_end: Tensor | None
    wall_s: float
    policy_ms: float
    policy_calls: int
    videos: list[np.ndarray] = field(default_factory=list, repr=False)

    @classmethod
    def from_groups(
        cls, seeds: Sequence[int], groups: Sequence[Mapping[str, Any]], *, wall_s: float
    ) -> EvaluationResult:
        """Join the groups of episodes that ran together."""

        def joined(name: str) -> Tensor | None:
            return None if groups[0][name] is None else torch.cat([group[name] for group in groups])

        latencies = [latency for group in groups for latency in group["latencies_s"]]
        return cls(
            seeds=tuple(seeds),
            returns=torch.cat([group["returns"] for group in groups]),
            lengths=torch.cat([group["lengths"] for group in groups]),
            success_once=joined("success_once"),
            success_at_end=joined("success_at_end"),
            wall_s=wall_s,
            policy_ms=1e3 * median(latencies),
            policy_calls=len(latencies),
            videos=[video for group in groups for video in group["videos"]],
        )

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.seeds)

    @property
    def env_steps(self) -> int:
        """Number of env steps over all episodes."""
        return int(self.lengths.sum())

    @property
    def filmed(self) -> bool:
        """Whether frames were kept; the times then include rendering and are not comparable with other evaluations."""
        return bool(self.videos)

    @property
    def success_once_rate(self) -> float:
        """Share of the episodes with a successful env step; NaN for a task without success."""
        return _rate(self.success_once)

    @property
    def success_at_end_rate(self) -> float:
        """Share of the episodes whose last env step succeeded; NaN for a task without success."""
        return _rate(self.success_at_end)

    @property
    def success_once_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of :attr:`success_once_rate`."""
        return _interval(self.success_once)

    @property
    def success_at_end_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of :attr:`success_at_end_rate`."""
        return _interval(self.success_at_end)

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """Return the scalars to log, intervals included."""
        values = {
            "return": self.returns.mean().item(),
            "length": self.lengths.double().mean().item(),
            "policy_ms": self.policy_ms,
            "wall_s": self.wall_s,
        }
        if self.success_once is not None:
            for name in ("success_once", "success_at_end"):
                low, high = getattr(self, f"{name}_interval")
                values |= {name: getattr(self, f"{name}_rate"), f"{name}_low": low, f"{name}_high": high}
        return {prefix + name: value for name, value in values.items()}

    def table(self) -> list[dict[str, Any]]:
        """Return one row per episode: seed, success_once, success_at_end, return, length."""
        rows = []
        for i, seed in enumerate(self.seeds):
            row: dict[str, Any] = {"seed": seed}
            if self.success_once is not None and self.success_at_end is not None:
                row["success_once"] = bool(self.success_once[i])
                row["success_at_end"] = bool(self.success_at_end[i])
            rows.append({**row, "return": float(self.returns[i]), "length": int(self.lengths[i])})
        return rows

    def result_columns(self) -> dict[str, Any]:
        """Return the columns of ``results.csv`` that an evaluation determines."""
        return {
            "episodes": self.episodes,
            "success_once": None if self.success_once is None else self.success_once_rate,
            "success_at_end": None if self.success_at_end is None else self.success_at_end_rate,
            "return": self.returns.mean().item(),
        }

    def summary(self) -> str:
        """Return a one-line summary."""
        parts = [f"{self.episodes} episodes"]
        if self.success_once is not None:
            for name in ("success_once", "success_at_end"):
                low, high = getattr(self, f"{name}_interval")
                parts.append(f"{name} {getattr(self, f'{name}_rate'):.3f} [{low:.3f}, {high:.3f}]")
        parts += [f"return {self.returns.mean():.3f}", f"length {self.lengths.double().mean():.1f}"]
        return ", ".join([*parts, f"policy {self.policy_ms:.2f} ms", f"{self.wall_s:.1f} s"])

    def _repr_html_(self) -> str:
        """Return an HTML summary for a notebook: numbers, a table of episodes, and the video if there is one."""
        return result_html(self)


def _rate(flags: Tensor | None) -> float:
    return float("nan") if flags is None else flags.double().mean().item()


def _interval(flags: Tensor | None) -> tuple[float, float]:
    if flags is None:
        return float("nan"), float("nan")
    return wilson_interval(int(flags.sum()), flags.numel())
