"""The command ``report``: the report page of a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from torchrl_flow.commands.run_files import RunFiles, find_runs, require_runs

__all__ = ["ReportArgs"]

_PAGES = ("report.html", "stages.html")
NOTE = (
    "This page was made from the files of the run by `torchrl-flow report`: single episodes are not among them. "
    "`torchrl-flow evaluate` evaluates the run anew."
)


@dataclasses.dataclass
class ReportArgs:
    """Write the report of a run from its files, and print its path."""

    run: Annotated[str, tyro.conf.Positional]
    """directory of a run, or of a sweep"""
    rebuild: bool = False
    """make the page again even if it exists; the old page is kept as report-before.html"""

    def __call__(self) -> int:
        """Print the path of each page."""
        folder = Path(self.run)
        if not folder.exists() and (Path("runs") / folder).is_dir():
            folder = Path("runs") / folder
        pages = [folder / name for name in _PAGES if (folder / name).is_file()]
        # The page of a sweep is written by the sweep itself.
        if pages and (not self.rebuild or not (folder / "config.json").exists()):
            for page in pages:
                print(page.resolve())
            return 0
        (run, *others) = require_runs([str(folder)])
        if others or run.directory.resolve() != folder.resolve():
            lines = [str(item.directory / "report.html") for item in find_runs(folder)]
            raise SystemExit("\n".join([f"{folder} is not a run and has no report. The runs below it:", *lines]))
        print(rebuild_report(run).resolve())
        return 0


def rebuild_report(run: RunFiles) -> Path:
    """Write the page of a run from its files.

    Raises:
        SystemExit: if the files hold no metrics and no evaluation.
    """
    from torchrl_flow.reports.report import write_report
    from torchrl_flow.runs.metrics import read_metrics

    metrics, page = run.directory / "metrics.csv", run.directory / "report.html"
    curves = read_metrics(metrics) if metrics.exists() else {}
    if not curves and not run.evaluations:
        raise SystemExit(f"{run.directory} has neither metrics nor an evaluation: there is nothing to report yet.")
    if page.exists():
        page.replace(page.with_name("report-before.html"))
    videos = [path for path in sorted(run.directory.glob("episodes.*")) if path.suffix in (".mp4", ".webp", ".gif")]
    try:
        return write_report(page, curves=curves, **_content(run, videos))
    except RuntimeError as error:  # no matplotlib
        content = _content(run, videos)
        return write_report(page, **{**content, "notes": [*content["notes"], f"No curves. {error}"]})


def _content(run: RunFiles, videos: list[Path]) -> dict[str, Any]:
    notes = [NOTE, *(f"{label}: {_figures(figures)}." for label, figures in _labelled(run))]
    if run.evaluations is None:
        notes.append("The run is not finished: it was not evaluated.")
    return {
        "title": f"{run.recipe or run.name} on {run.task or 'an unnamed task'}",
        "subtitle": run.name,
        "video": videos[0] if videos else None,
        "video_caption": "The first episodes.",
        "notes": notes,
        "config": run.config,
        "versions": _json(run.directory / "versions.json", {}),
        "command": _command(run),
    }


def _labelled(run: RunFiles) -> list[tuple[str, Any]]:
    found = run.evaluations or {}
    return [(f"K = {label}" if label.isdigit() else label, figures) for label, figures in found.items()]


def _figures(figures: Any) -> str:
    shown = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
    texts = []
    for name, value in shown.items():
        text = f"{name.replace('_', ' ')} {value:.4g}"
        if f"{name}_low" in figures:
            text += f" (95 %: {figures[f'{name}_low']:.3f} to {figures[f'{name}_high']:.3f})"
        texts.append(text)
    return ", ".join(texts)


def _command(run: RunFiles) -> str:
    starts = _json(run.directory / "provenance.json", [])
    return str(starts[0].get("command", "")) if starts and isinstance(starts[0], dict) else ""


def _json(path: Path, default: Any) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return found if isinstance(found, type(default)) else default
