"""The command ``runs``: a list of the runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from torchrl_flow.commands.run_files import RunFiles, age, find_runs, text_table
from torchrl_flow.util.suggest import did_you_mean

__all__ = ["RunsArgs"]

_ORDER: dict[str, Callable[[RunFiles], Any]] = {
    "age": lambda run: -run.changed,
    "success": lambda run: -run.own.get("success_once", -1.0),
    "name": lambda run: str(run.directory),
}


@dataclasses.dataclass
class RunsArgs:
    """List the runs: task, recipe, steps, success, age."""

    folder: Annotated[str, tyro.conf.Positional] = "runs"
    """directory of runs, searched with all its subdirectories"""
    sort: Literal["age", "success", "name"] = "age"
    """order of the runs: newest first, most successful first, or by name"""
    task: str | None = None
    """show only runs of this task"""
    recipe: str | None = None
    """show only runs of this recipe"""

    def __call__(self) -> int:
        """Print a line for each run."""
        found = find_runs(self.folder)
        if not found:
            raise SystemExit(f"There are no runs in {self.folder}: name the directory that you gave as --runs.")
        kept = [run for run in found if self.task in (None, run.task) and self.recipe in (None, run.recipe)]
        if not kept:
            tasks, recipes = sorted({run.task for run in found}), sorted({run.recipe for run in found})
            hint = did_you_mean(self.task or "", tasks) or did_you_mean(self.recipe or "", recipes)
            raise SystemExit(
                f"No run in {self.folder} matches.{hint} Its tasks are {', '.join(tasks)}, its recipes "
                f"{', '.join(recipes)}."
            )
        header = ("run", "recipe", "task", "seed", "steps", "env steps", "success", "state", "age")
        print(text_table(header, [self._row(run) for run in sorted(kept, key=_ORDER[self.sort])]))
        for run in kept:
            if run.problem:
                print(run.problem)
        return 0

    def _row(self, run: RunFiles) -> list[str]:
        folder = run.directory
        name = folder.relative_to(self.folder) if folder != Path(self.folder) else folder.resolve().name
        env_steps = run.last.get("train/env_steps")
        return [
            str(name),
            run.recipe or "?",
            run.task or "?",
            "" if run.seed is None else str(run.seed),
            "" if run.step is None else str(run.step),
            "" if env_steps is None else f"{env_steps:.0f}",
            _success(run),
            run.state,
            age(run),
        ]


def _success(run: RunFiles) -> str:
    """Return the success of the evaluation, or of training in brackets; the return if a task has no success."""
    own = run.own
    text = f"{own['success_once']:.3f}" if "success_once" in own else ""
    if not text and "return" in own:
        text = f"return {own['return']:.4g}"
    return f"({text})" if text and run.evaluations is None else text
