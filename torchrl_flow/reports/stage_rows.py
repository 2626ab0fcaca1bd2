"""Result rows of a recipe's stages over several seeds, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_flow.figures.tables import markdown_table
from torchrl_flow.reports.conclusion import read_evaluation, variant_labels
from torchrl_flow.runs.checkpoint_reader import load_checkpoint
from torchrl_flow.util.versions import command_line, git_commit, today

__all__ = ["evaluation_rows", "has_evaluation_rows", "stage_table"]

Row = dict[str, Any]


def evaluation_rows(directory: str | Path, *, stage: str, episodes: int, **columns: Any) -> list[Row]:
    """Return the rows of ``results.csv`` of an evaluated run: the policy, then its variants.

    Args:
        directory: directory of the run.
        stage: name of the stage; the label of a variant is appended.
        episodes: episodes of the evaluation.
        **columns: values of ``recipe``, ``task``, ``obs`` and ``seed``.

    Raises:
        FileNotFoundError: if the run was not evaluated.
    """
    checkpoint = load_checkpoint(directory)
    by_steps, variants = read_evaluation(directory)
    rows = []
    for label, values in [*((stage, values) for values in by_steps.values()), *variants.items()]:
        row = {**columns, "stage": label if label == stage else f"{stage} {label}", "episodes": episodes}
        row |= {name: values[name] for name in ("success_once", "success_at_end", "return")}
        row |= {"env_steps": checkpoint.counters.get("env_steps"), "wall_s": checkpoint.metadata["wall_s"]}
        rows.append({**row, "command": command_line(), "commit": git_commit(), "date": today()})
    return rows


def has_evaluation_rows(
    rows: Sequence[Mapping[str, Any]],
    stage: str,
    episodes: int,
    *,
    noise_scales: Sequence[float] = (),
    best_of: Sequence[int] = (),
) -> bool:
    """Return whether rows are those of a stage with exactly these episodes and variants (:func:`variant_labels`)."""
    labels = (stage, *(f"{stage} {variant}" for variant in variant_labels(noise_scales, best_of)))
    return {(row["stage"], row["episodes"]) for row in rows} == {(label, episodes) for label in labels}


def stage_table(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Return rows of several seeds as a Markdown table with a line for each stage.

    Args:
        rows: rows of :func:`evaluation_rows`.
        names: title of each stage, by its name in ``rows``.
    """
    header = ("stage", "success_once by seed", "mean", "standard deviation", "at end", "env steps", "minutes")
    body = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["seed"])
        once = [row["success_once"] for row in mine]
        spread = f"{statistics.stdev(once):.3f}" if len(once) > 1 else ""
        steps = {row["env_steps"] for row in mine if row["env_steps"]}
        cells = [
            f"{stage} ({names[stage]})" if stage in names else stage,
            " ".join(f"{value:.2f}" for value in once),
            f"{statistics.mean(once):.3f}",
            spread,
            f"{statistics.mean(row['success_at_end'] for row in mine):.3f}",
            f"{statistics.mean(steps):.0f}" if steps else "",
            f"{statistics.mean(row['wall_s'] for row in mine) / 60:.1f}",
        ]
        body.append(cells)
    return markdown_table(header, body)
