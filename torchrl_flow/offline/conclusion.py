"""Conclusion of an offline baseline's run: evaluation (if there is an environment), report and row of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import LossModule

from torchrl_flow.evaluation.offline_task import OfflineTask, Policy, SlateReturns
from torchrl_flow.evaluation.seeds import EVALUATION_SEED
from torchrl_flow.offline.report import write_offline_report
from torchrl_flow.recsys.task import q_diagnostics
from torchrl_flow.reports.results import record_results
from torchrl_flow.runs.metrics import read_metrics
from torchrl_flow.runs.run import EVALUATION, Run
from torchrl_flow.training.finite import require_finite_modules
from torchrl_flow.util.files import write_json
from torchrl_flow.util.randomness import isolated_rng
from torchrl_flow.util.versions import collect_versions, command_line, today

__all__ = ["action_distance", "conclude_offline", "measure_references", "offline_lines", "offline_row"]


@torch.no_grad()
def action_distance(task: OfflineTask, policy: Policy, *, random: bool = False) -> float:
    """Return the mean absolute difference of policy and data actions in [-1, 1], over all dimensions.

    Args:
        task: the data.
        policy: writes ``action`` in [-1, 1].
        random: let distributions and flows sample.
    """
    exploration: Any = ExplorationType.RANDOM if random else ExplorationType.DETERMINISTIC
    rows = task.diagnostic_rows()
    with isolated_rng(EVALUATION_SEED), set_exploration_type(exploration):
        acted = policy(rows.select("observation"))["action"]
    return float((acted - rows["action"]).abs().mean())


def offline_row(
    task: OfflineTask,
    recipe: str,
    result: SlateReturns | float,
    *,
    seed: int,
    episodes: int,
    wall_s: float = 0.0,
    stage: str | None = None,
) -> dict[str, Any]:
    """Return the columns of one return for the table of results (:func:`~torchrl_flow.reports.record_results`)."""
    return {
        "recipe": recipe,
        "task": task.name,
        "obs": task.info["obs_mode"],
        "stage": stage if stage is not None else task.label,
        "seed": seed,
        "episodes": episodes,
        "success_once": None,
        "success_at_end": None,
        "return": result.mean if isinstance(result, SlateReturns) else result,
        "env_steps": None,
        "wall_s": wall_s,
    }


def measure_references(
    task: Callable[[], OfflineTask], path: Path, *, episodes: int, results: str | Path
) -> dict[str, float]:
    """Measure the returns of the reference policies, record their rows and write them to a file, or read that file.

    Args:
        task: function that opens data and environment if they are needed.
        path: the file, ``.json``.
        episodes: number of episodes for each reference.
        results: the table of results.
    """
    if not path.exists():
        opened = task()
        found = opened.references(episodes=episodes)
        for name, value in found.items():
            row = offline_row(opened, name, value, seed=0, episodes=episodes)
            # Each reference has its own directory, as a run has: a new measurement replaces its old row.
            record_results(results, [row], directory=path.with_suffix("") / name)
        write_json(path, found)
    return json.loads(path.read_text(encoding="utf-8"))


def conclude_offline(
    run: Run,
    task: OfflineTask,
    policy: Any,
    *,
    recipe: str,
    loss: LossModule | None = None,
    random: bool = False,
    others: Mapping[str, Policy] | None = None,
) -> str:
    """Evaluate a trained policy and write ``report.html``, a row of results and, last, ``evaluation.json``.

    A row of results needs a return: without an environment no row is written, and the text states this. The number of
    episodes, the seed, the label and the table of results are those of the run's configuration.

    Args:
        run: the run, its training done.
        task: data and environment.
        policy: module that writes ``action``.

    Keyword Args:
        recipe: name of the recipe.
        loss: loss with critics, whose values are compared.
        random: let distributions and flows sample.
        others: further policies made from the trained parts, by the name of their row. They are evaluated if there is
            an environment, always with samples of distributions and flows.

    Returns:
        lines to print.

    Raises:
        NonFiniteError: if a weight is not finite; nothing is written.
    """
    require_finite_modules({"policy": policy}, doing="the policy is not evaluated and no result is written")
    episodes, results = run.config["eval_episodes"], run.config["results"]
    figures = {"action_distance": action_distance(task, policy, random=random)}
    if loss is not None:
        figures |= q_diagnostics(loss, task.diagnostic_rows(), policy, bound=task.value_bound)
        figures["q/bound"] = task.value_bound
    result = task.evaluate(policy, episodes=episodes, random=random) if task.has_env else None
    acting = others if others and task.has_env else {}
    measured = {name: task.evaluate(other, episodes=episodes, random=True) for name, other in acting.items()}
    references = task.references(episodes=episodes) if run.config.get("references", True) else {}
    returns: list[tuple[str, float, float | None]] = [(name, value, None) for name, value in references.items()]
    results_of = {} if result is None else {recipe: result, **measured}
    returns[:0] = [(name, found.mean, found.standard_error) for name, found in results_of.items()]
    metrics = run.directory / "metrics.csv"
    path = write_offline_report(
        run.directory / "report.html",
        title=f"{recipe} on {task.name}",
        subtitle=f"{len(task.data)} transitions of {task.path.name}, {today()}",
        returns=returns,
        figures=figures,
        curves=read_metrics(metrics) if metrics.exists() else None,
        notes=_notes(task, result, episodes),
        config=run.config,
        versions=collect_versions(),
        command=command_line(),
    )
    scores = dict(references)
    run.logger.log_final(run.step, {f"final/{name}": value for name, value in figures.items()})
    if result is not None:
        run.logger.log_final(run.step, result.metrics("final/"))
        for name, found in results_of.items():
            scores |= {name: found.mean, f"{name}_standard_error": found.standard_error}
        if results is not None:
            training: dict[str, Any] = {"seed": run.config["seed"], "stage": run.config["label"], "wall_s": run.wall_s}
            training["episodes"] = episodes
            for name, found in results_of.items():
                row = offline_row(task, name, found, **training)
                # A run has one row per stage, so each further policy has its own directory.
                record_results(results, [row], directory=run.directory if name == recipe else run.directory / name)
    # Without a discount the bound is infinite, which JSON cannot represent.
    finite = {name: value for name, value in figures.items() if name != "q/bound"}
    run.write_json(EVALUATION, {**scores, **finite})
    lines = [f"{name:26} {found}" for name, found in measured.items()]
    return "\n".join([*offline_lines(recipe, result, references, figures), *lines, str(path.resolve())])


def _notes(task: OfflineTask, result: SlateReturns | None, episodes: int) -> list[str]:
    notes = [f"Actions lie in [-1, 1]; {100 * task.data.clamped:.2g} % of the data's were outside of the bounds."]
    if result is None:
        return [*notes, "No environment: no return is measured, and no row of results is written (--env names one)."]
    return [*notes, f"{episodes} episodes from the fixed seed {EVALUATION_SEED}."]


def offline_lines(
    recipe: str, result: SlateReturns | None, references: Mapping[str, float], figures: Mapping[str, float]
) -> list[str]:
    """Return the lines to print: the return, the reference returns and other values."""
    lines = [] if result is None else [f"{recipe:26} {result}"]
    lines += [f"{name:26} {value:8.1f}" for name, value in references.items()]
    lines += [f"{name:26} {value:8.3f}" for name, value in figures.items()]
    if result is None:
        lines.append("No environment: no return, no row of results. Name one with --env to evaluate.")
    return lines
