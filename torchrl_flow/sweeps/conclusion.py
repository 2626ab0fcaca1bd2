"""Conclusions of a sweep: the best configuration, and the differences that exceed the spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torchrl_flow.functional.statistics import difference_interval
from torchrl_flow.reports.seed_bands import SeedBand
from torchrl_flow.sweeps.plan import RunState, Variant

__all__ = ["BASELINE", "SeedRun", "VariantResult", "conclude_sweep", "exceeds_spread"]

BASELINE = "baseline"
_RULE = (
    "A difference exceeds the spread where its 95 % interval over the episodes (Newcombe's) leaves out 0 and the rates "
    "of the seeds do not overlap. Nothing is corrected for the number of configurations that are compared."
)


@dataclasses.dataclass(frozen=True)
class SeedRun:
    """One run of a configuration."""

    seed: int
    state: RunState
    directory: Path
    log: Path


@dataclasses.dataclass(frozen=True)
class VariantResult:
    """Results of one configuration over its finished seeds; a field is ``None`` if no run has the value."""

    variant: Variant
    seeds: int
    success: float | None
    """Rate of success over the final evaluations of all seeds."""
    success_interval: tuple[float, float] | None
    """95 % Wilson interval of ``success``."""
    steps_to_baseline: float | None
    """Mean over the seeds of the environment steps until an evaluation reached the baseline's final success; ``None``
    if a seed never reached it."""
    curve_variance: float | None
    """Half the variance of the differences between successive evaluations: the curve's noise, without its trend."""
    epoch_s: float | None
    """Median seconds of a pass over an iteration's chunks."""
    curve: tuple[list[float], list[float]]
    """Environment steps and success of the evaluations, averaged over the seeds."""
    crashed: int = 0
    """Seeds that crashed."""
    successes: int = 0
    """Successful episodes of the final evaluations of all seeds."""
    episodes: int = 0
    """Episodes of the final evaluations of all seeds."""
    seed_success: tuple[float, ...] = ()
    """Rate of success of each finished seed."""
    band: SeedBand | None = None
    """Mean and spread of the curve over several seeds."""
    seed_curves: tuple[tuple[list[float], list[float]], ...] = ()
    """The curve of each seed."""
    runs: tuple[SeedRun, ...] = ()
    """Every run of the configuration, finished or not."""


def exceeds_spread(one: VariantResult, other: VariantResult) -> bool:
    """Return whether the difference of two configurations exceeds the variation over episodes and over seeds.

    Args:
        one: configuration.
        other: configuration to compare with. If one of them has no episodes, the result is False.
    """
    if not one.episodes or not other.episodes:
        return False
    low, high = difference_interval(one.successes, one.episodes, other.successes, other.episodes)
    a, b = one.seed_success or (one.success,), other.seed_success or (other.success,)
    return not low <= 0 <= high and (min(a) > max(b) or min(b) > max(a))  # pyright: ignore[reportArgumentType]


def conclude_sweep(results: Sequence[VariantResult]) -> list[str]:
    """Return a sweep's conclusions as sentences: the best configuration, and the differences that exceed the spread.

    Args:
        results: results of :func:`~torchrl_flow.sweeps.summarise_sweep`.
    """
    finished = [result for result in results if result.success is not None]
    if not finished:
        return ["No run is finished."]
    best = max(finished, key=lambda result: result.success or 0.0)
    others = [result for result in finished if result is not best]
    lines = [f"Best: {best.variant.name}, {_described(best)}."]
    base = next((result for result in finished if result.variant.name == BASELINE), None)
    if base is not None and base is not best:
        lines.append(f"Baseline: {_described(base)}. The best differs from it by {_difference(best, base)}.")
    elif base is not None and others:
        lines.append("No configuration is better than the baseline.")
    if others:
        lines += _told_apart(best, base, others)
    seeds = {result.seeds for result in finished}
    if len(seeds) > 1:
        counts = ", ".join(f"{result.variant.name} {result.seeds}" for result in finished)
        lines.append(f"The configurations have different numbers of finished seeds: {counts}.")
    elif seeds == {1} and others:
        lines.append("There is one seed of each configuration: how much the seed matters is not known.")
    missing = [f"{result.variant.name} ({result.crashed} crashed)" for result in results if result.success is None]
    if missing:
        lines.append(f"Without a finished run: {', '.join(missing)}.")
    return [*lines, _RULE] if others else lines


def _told_apart(best: VariantResult, base: VariantResult | None, others: Sequence[VariantResult]) -> list[str]:
    known = [result for result in others if result.episodes and best.episodes]
    level = [result.variant.name for result in known if not exceeds_spread(best, result)]
    lines = [f"Not told from the best by these runs: {', '.join(level)}."] if level else []
    if known and not level:
        lines.append("The best exceeds every other configuration by more than the spread.")
    if base is None or not base.episodes:
        return lines
    apart = [result for result in (best, *known) if result is not base and exceeds_spread(result, base)]
    for word, chosen in (
        ("above", [r.variant.name for r in apart if (r.success or 0) > (base.success or 0)]),
        ("below", [r.variant.name for r in apart if (r.success or 0) < (base.success or 0)]),
    ):
        lines.append(f"Beyond the spread {word} the baseline: {', '.join(chosen) or 'none'}.")
    return lines


def _described(result: VariantResult) -> str:
    low, high = result.success_interval or (float("nan"), float("nan"))
    text = f"success {result.success:.3f} [{low:.3f}, {high:.3f}]"
    text += f" over {result.seeds} seed{'s' if result.seeds != 1 else ''}"
    text += f" and {result.episodes} episodes" if result.episodes else ""
    if len(result.seed_success) > 1:
        text += f", {min(result.seed_success):.3f} to {max(result.seed_success):.3f} by seed"
    return text


def _difference(best: VariantResult, base: VariantResult) -> str:
    difference = (best.success or 0.0) - (base.success or 0.0)
    if not best.episodes or not base.episodes:
        return f"{difference:+.3f}"
    low, high = difference_interval(best.successes, best.episodes, base.successes, base.episodes)
    verdict = "exceeds the spread" if exceeds_spread(best, base) else "does not exceed the spread"
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], which {verdict}"
