"""The command ``compare``: table, drawing and page of runs with several configurations and seeds."""

from __future__ import annotations

import dataclasses
import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from torchrl_flow.commands.run_files import RunFiles, require_runs

if TYPE_CHECKING:
    from torchrl_flow.commands.seed_curves import SeedCurve

__all__ = ["CompareArgs", "Group", "group_runs"]

#: Settings that do not affect training: seed, directory, logging and evaluation.
_ASIDE = frozenset(
    (
        *("seed", "name", "runs", "results", "resume", "label", "threads", "device", "progress"),
        *("save_every", "eval_every", "log_every", "eval_episodes", "num_videos", "compare_steps", "noise_scales"),
        *("best_of", "tensorboard", "wandb", "wandb_project", "wandb_group"),
    )
)
_MOST_SETTINGS = 6
_FIGURES = ("success_once", "success_at_end", "return")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs with one recipe, label and task: the seeds of one configuration."""

    name: str
    runs: tuple[RunFiles, ...]

    @property
    def done(self) -> tuple[RunFiles, ...]:
        """The evaluated runs; an unfinished run would shorten the curve of the group."""
        return tuple(run for run in self.runs if run.evaluations is not None)

    def figure(self, name: str) -> list[float]:
        """Return a value of each evaluated run that has it."""
        return [run.own[name] for run in self.done if name in run.own]


@dataclasses.dataclass
class CompareArgs:
    """Compare runs: a table, and curves with bands over the seeds."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """run directories, or directories that contain runs; runs with the same recipe, label and task are the seeds of
    one group"""
    metric: str | None = None
    """metric to draw; default: success in evaluations during training, else success in training, else the return"""
    against: str = "train/env_steps"
    """metric on the x axis; the run's own steps if a run has no such metric"""
    output: str = "comparison"
    """files to write: <output>.html, <output>.svg and <output>.md; the suffix .html is optional"""

    def __call__(self) -> int:
        """Print the table, write the files and print the path of the page."""
        if not self.runs:
            raise SystemExit("name at least one run: `compare RUN...`.")
        groups = group_runs(require_runs(self.runs))
        header, rows = _table(groups)
        notes = [*_differing(groups), *_missing(groups)]
        print(_markdown(header, rows, notes), flush=True)
        print(self._write(groups, header, rows, notes).resolve())
        return 0

    def _write(self, groups: Sequence[Group], header: Sequence[str], rows: list[list[str]], notes: list[str]) -> Path:
        from torchrl_flow.commands.seed_curves import draw_bands, pick_metric, seed_curve
        from torchrl_flow.figures.axes import axis_label
        from torchrl_flow.figures.plots import standalone_svg
        from torchrl_flow.figures.style import STYLE
        from torchrl_flow.util.files import write_text

        page = Path(f"{self.output.removesuffix('.html')}.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        metric, drawing = pick_metric([run for group in groups for run in group.runs], self.metric), ""
        curves: dict[str, SeedCurve] = {}
        for group in groups:
            curve = None if metric is None else seed_curve(group.done or group.runs, metric, self.against)
            if curve is not None:
                curves[group.name] = curve
        if metric is None:
            notes = [*notes, "No curves: no metric of success or return was logged (--eval-every, or --metric)."]
        else:
            try:
                labels = {"x_label": axis_label(self.against), "y_label": axis_label(metric)}
                drawing = draw_bands(curves, title=metric, **labels)
                write_text(page.with_suffix(".svg"), standalone_svg(drawing))
            except RuntimeError as error:
                notes = [*notes, f"No curves. {error}"]
        write_text(page.with_suffix(".md"), _markdown(header, rows, notes, gap="\n\n") + "\n")
        write_text(page, _page(header, rows, notes, drawing, STYLE, groups))
        return page


def group_runs(runs: Sequence[RunFiles]) -> list[Group]:
    """Group runs by recipe, label and task, in the order of first appearance; sort each group by seed."""
    members: dict[tuple[str, str, str], list[RunFiles]] = {}
    for run in runs:
        members.setdefault((run.recipe, run.label, run.task), []).append(run)
    # Parts that are equal in all groups are left out of the names.
    shown = [i for i in range(3) if len({key[i] for key in members}) > 1 or i == 0]
    groups = []
    for key, found in members.items():
        name = " ".join(key[i] for i in shown if key[i]) or found[0].name
        groups.append(Group(name, tuple(sorted(found, key=lambda run: (run.seed is None, run.seed or 0, run.name)))))
    return groups


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _digits(values: Sequence[float]) -> int:
    """Return the number of decimal places of returns: three if they are small."""
    return 3 if all(abs(value) < 10 for value in values) else 1


def _table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return mean and standard deviation over the seeds; for one seed, the interval of its evaluation."""
    names = [name for name in _FIGURES if any(group.figure(name) for group in groups)]
    header = ["group", "task", "seeds", *(name.replace("_", " ") for name in names), "lowest to highest", "env steps"]
    rows = []
    for group in groups:
        once = group.figure("success_once") or group.figure("return")
        digits = 3 if group.figure("success_once") else _digits(once)
        done = group.done
        steps = [run.last["train/env_steps"] for run in done if "train/env_steps" in run.last]
        cells = [_cell(group, name) for name in names]
        span = f"{min(once):.{digits}f} to {max(once):.{digits}f}" if len(once) > 1 else ""
        seeds = str(len(done)) if len(done) == len(group.runs) else f"{len(done)} of {len(group.runs)}"
        rows.append(
            [group.name, group.runs[0].task, seeds, *cells, span, f"{statistics.fmean(steps):.0f}" if steps else ""]
        )
    return header, rows


def _cell(group: Group, name: str) -> str:
    values = group.figure(name)
    text = _spread(values, _digits(values) if name == "return" else 3)
    own = next((run.own for run in group.runs if run.evaluations is not None), {})
    if len(values) == 1 and f"{name}_low" in own:
        text += f" [{own[f'{name}_low']:.3f}, {own[f'{name}_high']:.3f}]"
    return text


def _differing(groups: Sequence[Group]) -> list[str]:
    """Return the settings, except the seed, in which the runs of one group differ."""
    notes = []
    for group in groups:
        seeds = [run.seed for run in group.runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"Note: {group.name}: seeds come more than once: {', '.join(run.name for run in group.runs)}.")
        settings = {key for run in group.runs for key in run.config if key not in _ASIDE}
        differing = [key for key in sorted(settings) if len({_seedless(run.config.get(key)) for run in group.runs}) > 1]
        # If each seed starts from the earlier run with the same seed, only the paths differ.
        differing = [key for key in differing if not _are_paths(run.config.get(key) for run in group.runs)]
        if differing:
            told = "; ".join(
                f"{key}: {', '.join(dict.fromkeys(_seedless(run.config.get(key)) for run in group.runs))}"
                for key in differing[:_MOST_SETTINGS]
            )
            if len(differing) > _MOST_SETTINGS:
                told += f"; and {len(differing) - _MOST_SETTINGS} more"
            notes.append(f"Note: the runs of {group.name} differ in more than their seed. {told}.")
    return notes


def _seedless(value: Any) -> str:
    """Return a setting as text without any seed in it, such as the seed of demonstrations."""
    return str({k: v for k, v in value.items() if k != "seed"} if isinstance(value, Mapping) else value)


def _are_paths(values: Any) -> bool:
    return all(isinstance(value, str) and ("/" in value or "\\" in value) for value in values)


def _missing(groups: Sequence[Group]) -> list[str]:
    open_runs = [run for group in groups for run in group.runs if run.evaluations is None or run.problem]
    notes = [f"Note: {run.problem}." for run in open_runs if run.problem]
    names = ", ".join(run.name for run in open_runs if not run.problem)
    return [*notes, f"Note: not evaluated yet, and left out beside runs that are: {names}."] if names else notes


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], gap: str = "\n") -> str:
    """Return table and notes as Markdown; names and settings of the runs become no markup."""
    from torchrl_flow.figures import markdown_table, markdown_text

    return gap.join([markdown_table(header, rows), *map(markdown_text, notes)])


def _page(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    drawing: str,
    style: str,
    groups: Sequence[Group],
) -> str:
    """Return the page; all text is escaped, and only the drawing is inserted as markup."""

    def cells(kind: str, line: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in line) + "</tr>"

    runs: list[list[Any]] = [
        [
            group.name,
            run.name,
            "" if run.seed is None else run.seed,
            run.state,
            *(_number(run.own, n) for n in _FIGURES),
        ]
        for group in groups
        for run in group.runs
    ]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy"',
        " content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        f"<title>Comparison</title><style>{style}</style></head><body><main><h1>Comparison</h1>",
        '<p class="subtitle">Mean and standard deviation over the seeds of each group; in brackets the 95 % interval '
        "of a single evaluation.</p>",
        f'<div class="card"><table class="results"><thead>{cells("th", header)}</thead><tbody>',
        *(cells("td", row) for row in rows),
        "</tbody></table></div>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    if drawing:
        caption = "Mean over the seeds; the band reaches from the lowest to the highest seed."
        parts.append(f'<h2>Curves</h2><div class="card">{drawing}</div><p class="caption">{caption}</p>')
    head = ["group", "run", "seed", "state", *(name.replace("_", " ") for name in _FIGURES)]
    parts.append(f'<h2>Runs</h2><div class="card"><table class="results"><thead>{cells("th", head)}</thead><tbody>')
    return "\n".join([*parts, *(cells("td", row) for row in runs), "</tbody></table></div></main></body></html>\n"])


def _number(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.4g}" if name in figures else ""
