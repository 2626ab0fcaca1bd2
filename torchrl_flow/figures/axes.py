"""Section, unit and x axis of a run's metrics in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

__all__ = ["ENV_STEPS", "axis_label", "is_rate", "metric_section", "own_steps_label", "place_metric", "sort_metrics"]

Metrics = Mapping[str, tuple[Sequence[float], Sequence[float]]]
Section = Literal["evaluation", "training", "bookkeeping"]

#: The x axis of online recipes' curves.
ENV_STEPS = "train/env_steps"
_LABELS = {
    "env_steps": "environment steps",
    "success": "success rate",
    "success_once": "success rate",
    "success_at_end": "success rate",
    "length": "environment steps per episode",
    "epochs": "passes over the data",
    "effective_sample_size": "rows",
    "ESS": "rows",
    "entropy": "nats",
    "policy_entropy": "nats",
    "kl_approx": "nats",
    "kl_to_prior": "nats",
    "utd": "updates per chunk",
}
_COUNTS = frozenset({"env_steps", "epochs", "utd", "lr", "learning_rate", "skipped_policy_batches", "fps"})
_FIRST = ("success_once", "success", "success_at_end", "return", "return_standard_error")


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _is_bookkeeping(name: str) -> bool:
    last = _last(name)
    return (
        last in _COUNTS
        or last.endswith(("_s", "_ms", "_mib"))
        or last.startswith(("gradient_norm", "grad_norm", "lr_", "num_"))
    )


def metric_section(name: str) -> Section:
    """Return the section of a report to which a metric belongs.

    Args:
        name: name of the metric, such as ``"eval/success_once"``, ``"train/loss_actor"`` or ``"train/wall_s"``. Times,
            counters, gradient norms and learning rates are always bookkeeping.

    Examples:
        >>> metric_section("eval/return"), metric_section("eval/wall_s"), metric_section("q/data")
        ('evaluation', 'bookkeeping', 'training')
    """
    if _is_bookkeeping(name):
        return "bookkeeping"
    return "evaluation" if name.startswith(("eval/", "final/")) else "training"


def sort_metrics(names: Sequence[str]) -> list[str]:
    """Sort metrics in the order of a report: evaluation, training, bookkeeping; in each, success and return first."""
    sections = ("evaluation", "training", "bookkeeping")

    def rank(name: str) -> tuple[int, int]:
        last = _last(name)
        return sections.index(metric_section(name)), _FIRST.index(last) if last in _FIRST else len(_FIRST)

    return sorted(names, key=rank)


def is_rate(name: str) -> bool:
    """Return whether a metric is a success rate, from 0 to 1."""
    return axis_label(name) == "success rate"


def axis_label(name: str) -> str:
    """Return the axis label of a metric: its unit, or its name in words if it has no unit.

    Examples:
        >>> axis_label("eval/success_once"), axis_label("train/wall_s"), axis_label("train/gradient_norm_actor")
        ('success rate', 'seconds', 'gradient norm')
        >>> axis_label("train/td_error")
        'td error'
    """
    last = _last(name)
    if last in _LABELS:
        return _LABELS[last]
    for end, unit in (("_s", "seconds"), ("_ms", "milliseconds"), ("_mib", "MiB")):
        if last.endswith(end):
            return unit
    for start, unit in (("gradient_norm", "gradient norm"), ("grad_norm", "gradient norm"), ("loss", "loss")):
        if last.startswith(start):
            return unit
    return last.replace("_", " ")


def own_steps_label(found: Metrics) -> str:
    """Return the label of a run's own steps: updates, or collected batches if environment steps are logged, too."""
    return "iterations" if ENV_STEPS in found else "gradient steps"


def place_metric(found: Metrics, name: str, against: str) -> tuple[list[float], list[float], str]:
    """Return the x values of a metric, its values, and the label of the x axis.

    At steps without a value of ``against``, the x value is interpolated; values before its first or after its last step
    are left out. Without ``against`` the run's own steps are the x values.

    Args:
        found: metrics by name, see :func:`~torchrl_flow.runs.read_metrics`.
        name: metric on the y axis.
        against: metric on the x axis.
    """
    steps, values = found[name]
    if against not in found:
        return [float(step) for step in steps], list(values), own_steps_label(found)
    known, places = found[against]
    kept = [i for i, step in enumerate(steps) if len(known) and known[0] <= step <= known[-1]]
    x = np.interp([steps[i] for i in kept], known, places).tolist() if kept else []
    return x, [values[i] for i in kept], axis_label(against)
