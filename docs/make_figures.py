"""Draw the figures of the README and of the concept pages: results from results/results.csv, and one timeline.

python docs/make_figures.py            draw them
python docs/make_figures.py --check    fail if they are not what the files say
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"

# Mid-tones that can be read on white and on dark pages alike; the background is transparent.
INK, GRID = "#6e7781", "#8b949e55"
CLONE, BLUE, GREEN, ORANGE = "#8b949e", "#2f81f7", "#2da44e", "#d4762c"

GAMMA = "\u03b3"

BARS = (
    ("planar pick-and-place", "planar", (("awsc", "1"), ("awsc", "3"), ("dsrl_sac", "2"), ("reinflow", "K=4"))),
    (
        "ManiSkill PickCube-v1",
        "PickCube-v1",
        (
            ("awsc", "1"),
            ("awsc_rounds", "noise 0.7"),
            ("dsrl_sac", "2 64 envs, gamma .99"),
            ("reinflow", "K=4, 64 envs, slow decay, target KL"),
        ),
    ),
)
"""Title, task, and (recipe, stage) of each bar, of the evaluations with the fewest episodes that all seeds have."""

LABELS = ("cloned", "AWSC", "DSRL", "ReinFlow")
COLOURS = (CLONE, BLUE, GREEN, ORANGE)


def success(task: str, recipe: str, stage: str) -> list[float]:
    """Return ``success_once`` of each seed."""
    with (ROOT / "results" / "results.csv").open(encoding="utf-8") as file:
        wanted = (task, "state", recipe, stage)
        rows = [r for r in csv.DictReader(file) if (r["task"], r["obs"], r["recipe"], r["stage"]) == wanted]
    if not rows:
        raise SystemExit(f"results/results.csv has no row of {recipe!r}, stage {stage!r}, on {task!r}.")
    rows.sort(key=lambda row: -int(row["episodes"]))
    by_seed = {row["seed"]: float(row["success_once"]) for row in rows}
    return list(by_seed.values())


def text(x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", weight: str = "normal") -> str:
    """Write words at a place."""
    style = f'font-size="{size}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def svg(width: int, height: int, title: str, body: list[str]) -> str:
    """Wrap the parts of a drawing."""
    family = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{family}" fill="{INK}">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *body, "</svg>"]) + "\n"


def success_bars() -> str:
    """Draw the success of a cloned policy and of what each algorithm made of one, with a dot for each seed."""
    bottom, height, step, bar = 250.0, 190.0, 84.0, 52.0
    body = []
    for panel, (title, task, bars) in enumerate(BARS):
        left = 50.0 + panel * 400
        body.append(text(left + 2 * step, 30, title, size=15, weight="bold"))
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = bottom - height * tick
            body.append(f'<line x1="{left}" y1="{y:g}" x2="{left + 4 * step:g}" y2="{y:g}" stroke="{GRID}"/>')
            if not panel:
                body.append(text(left - 8, y + 4, f"{tick:.0%}", size=11, anchor="end"))
        for place, ((recipe, stage), label, colour) in enumerate(zip(bars, LABELS, COLOURS, strict=True)):
            values = success(task, recipe, stage)
            mean, centre = statistics.mean(values), left + (place + 0.5) * step
            top = bottom - height * mean
            body.append(
                f'<rect x="{centre - bar / 2:g}" y="{top:g}" width="{bar:g}" height="{bottom - top:g}" rx="3" '
                f'fill="{colour}" fill-opacity="0.75"/>'
            )
            for value in values:
                body.append(
                    f'<circle cx="{centre:g}" cy="{bottom - height * value:g}" r="3.2" fill="{colour}" '
                    f'stroke="{INK}" stroke-width="0.8"/>'
                )
            highest = bottom - height * max(values)
            body.append(text(centre, highest - 9, f"{mean:.2f}", weight="bold"))
            body.append(text(centre, bottom + 19, label))
    body.append(text(425, 296, "success rate; a dot is one seed of training", size=11))
    return svg(850, 306, "Success of cloned policies and of AWSC, DSRL and ReinFlow", body)


MANISKILL = "ManiSkillEnv / ManiSkill's single environment, PickCube-v1"

GROWTH = (
    ("sample of the mixed buffer, online rows", "replay sample, by stored rows", "ms a batch"),
    ("sample of chunks, demonstrations", "replay sample, by demonstrations", "ms a batch"),
    ("values and gradient of an ensemble, members", "critics, by members of the ensemble", "ms an update"),
    ("step of the planar task, environments", "planar task, by environments", "ms a step of all"),
    (MANISKILL, "PickCube-v1, by environments", "ms an environment step"),
    ("cloning loss and gradient, pixels of an image's side", "cloning 32 images, by pixels of a side", "ms an update"),
)
"""Pair in benchmarks/results.csv, title and unit of each panel of the growth."""


def growth_of(pair: str) -> dict[int, float]:
    """Return the milliseconds of one thread by size, of the last row of each size."""
    found = {}
    with (ROOT / "benchmarks" / "results.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            size = re.search(r"N = (\d+), [\d.]+ MB" if pair == MANISKILL else r"^(\d+) / ", row["mode"])
            if row["pair"] == pair and row["threads"] == "1" and size is not None:
                found[int(size[1])] = float(row["ours_ms"])
    if len(found) < 2:
        raise SystemExit(f"benchmarks/results.csv has no rows of {pair!r} by size: run benchmarks/growth.py.")
    return dict(sorted(found.items()))


def growth_panel(pair: str, title: str, unit: str, left: float, bottom: float) -> list[str]:
    """Draw times by size on logarithmic axes, with a dashed line for growth in proportion."""
    width, height, times = 220.0, 120.0, growth_of(pair)
    sizes, low = list(times), min(times.values())
    span, rise = math.log(sizes[-1] / sizes[0]), max(math.log(max(times.values()) / low), math.log(8))

    def place(size: float, ms: float) -> tuple[float, float]:
        x = left + width * math.log(size / sizes[0]) / span
        return round(x, 1), round(bottom - height * math.log(ms / low) / rise, 1)

    reach = math.exp(min(span, rise - math.log(times[sizes[0]] / low)))
    points = [place(size, ms) for size, ms in times.items()]
    line = " L".join(f"{x:g} {y:g}" for x, y in points)
    proportional = "M{:g} {:g} L{:g} {:g}".format(*points[0], *place(sizes[0] * reach, times[sizes[0]] * reach))
    body = [
        text(left + width / 2, bottom - height - 24, title, weight="bold"),
        f'<path d="M{left:g} {bottom + 6:g} h{width:g}" stroke="{GRID}"/>',
        f'<path d="{proportional}" stroke="{GRID}" stroke-dasharray="4 4"/>',
        f'<path d="M{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>',
    ]
    for (x, y), (size, ms) in zip(points, times.items()):
        body.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{BLUE}"/>')
        body += [text(x, y - 7, f"{ms:.3g}", size=10), text(x, bottom + 20, f"{size:,}", size=10)]
    return [*body, text(left + width / 2, bottom + 36, unit, size=10)]


def growth() -> str:
    """Draw the panels of the growth, three in a row."""
    body = []
    for panel, content in enumerate(GROWTH):
        body += growth_panel(*content, left=50.0 + panel % 3 * 275, bottom=170.0 + panel // 3 * 210)
    return svg(870, 430, "Time by size: replay rows, demonstrations, critics, environments and images", body)


def chunk_timeline() -> str:
    """Draw how a predicted chunk, its executed slice and an episode's end become one transition."""
    left, cell, top = 250.0, 62.0, 62.0
    body = [text(left + 4 * cell, 22, "environment steps", size=12)]
    rows = ("action_chunk: H = 8 are predicted", "action: H_a = 4 are sent", "executed: k = 3, then done")
    for row, words in enumerate(rows):
        y = top + row * 46
        body.append(text(left - 12, y + 19, words, size=12, anchor="end"))
        for step in range(8):
            shown = step < (8, 4, 3)[row]
            fill = (BLUE, GREEN, ORANGE)[row] if shown else "none"
            dash = "" if shown else ' stroke-dasharray="3 3"'
            body.append(
                f'<rect x="{left + step * cell:g}" y="{y:g}" width="{cell - 6:g}" height="28" rx="4" fill="{fill}" '
                f'fill-opacity="0.7" stroke="{GRID}"{dash}/>'
            )
            if shown:
                body.append(f'<g fill="#ffffff">{text(left + step * cell + 28, y + 19, f"a{step}", size=12)}</g>')
    for step in range(9):
        body.append(text(left + step * cell - 3, top - 12, f"t+{step}" if step else "t", size=11))
    base = top + 3 * 46 + 14
    start, end = left, left + 3 * cell - 6
    body.append(f'<path d="M{start:g} {base:g} H{end:g}" stroke="{ORANGE}" stroke-width="2.5" fill="none"/>')
    body.append(f'<path d="M{end - 8:g} {base - 5:g} l8 5 l-8 5" stroke="{ORANGE}" stroke-width="2.5" fill="none"/>')
    body.append(text(start, base + 22, "observation at t", size=12, anchor="start"))
    body.append(text(end + 10, base + 5, 'one transition: "next" holds', size=12, anchor="start", weight="bold"))
    body.append(text(end + 10, base + 24, f"reward = r0 + {GAMMA} r1 + {GAMMA}\u00b2 r2", size=12, anchor="start"))
    body.append(text(end + 10, base + 42, "steps_to_next_obs = k = 3", size=12, anchor="start"))
    body.append(text(end + 10, base + 60, "observation at t+3, done, terminated, success", size=12, anchor="start"))
    target = f"target = reward + {GAMMA}\u1d4f (1 \u2212 terminated) V(next observation)"
    body.append(text(left, base + 92, target, anchor="start", size=14))
    return svg(770, 310, "A chunk of actions as one transition", body)


DRAWINGS = {"growth.svg": growth, "success.svg": success_bars, "chunk_timeline.svg": chunk_timeline}


def main() -> None:
    """Draw or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of drawing")
    check = parser.parse_args().check
    for name, draw in DRAWINGS.items():
        path, drawing = FIGURES / name, draw()
        if not check:
            path.write_text(drawing, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != drawing:
            sys.exit(f"docs/figures/{name} is not what the files say: run `python docs/make_figures.py`.")


if __name__ == "__main__":
    main()
