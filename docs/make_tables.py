"""Write the tables of docs/results.md from results/results.csv and benchmarks/results.csv, and the list of files.

python docs/make_tables.py            rewrite the tables
python docs/make_tables.py --check    fail if they are not what the files say
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import re
import statistics
import sys
from pathlib import Path

import tyro

from torchrl_flow.figures import markdown_table, mean_and_deviation
from torchrl_flow.functional import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
FILES = ROOT / "docs" / "concepts" / "files.md"
_PAGES = ("demonstrations", "awsc", "steering", "reinflow", "slates", "overview", "command_line")
_PAGES += ("tutorials/distributed",)
WITH_TABLES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _PAGES))
HEAD = """# Results and timings

Made by `python docs/make_tables.py` from `results/results.csv` and `benchmarks/results.csv`; every row there names the
command, commit and date that made it. Success is over the stated number of episodes from fixed seeds (10000 on), with
terminations ignored; brackets are Wilson's 95 % intervals.
"""


FILES_HEAD = """# Every file

Made by `python docs/make_tables.py`: each file of the library with the first sentence of its docstring.
[Architecture](architecture.md) says what belongs into which package.
"""


@dataclasses.dataclass
class Args:
    """What to do with the tables."""

    check: bool = False
    """compare instead of writing"""


def rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file; an absent one has no rows."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def rate(value: str, episodes: str) -> str:
    """Write a success rate with its interval."""
    if not value:
        return ""
    low, high = wilson_interval(round(float(value) * int(episodes)), int(episodes))
    return f"{float(value):.2f} [{low:.2f}, {high:.2f}]"


def learning_table(found: list[dict[str, str]]) -> str:
    """Write the table of some learning results."""
    header = [
        "task",
        "obs",
        "stage",
        "seed",
        "episodes",
        "success_once",
        "success_at_end",
        "return",
        "env steps",
        "minutes",
    ]
    body = []
    for row in found:
        rates = [rate(row[name], row["episodes"]) for name in ("success_once", "success_at_end")]
        named = [row[name] for name in ("task", "obs", "stage", "seed", "episodes")]
        body.append(
            [*named, *rates, f"{float(row['return']):.1f}", row["env_steps"], f"{float(row['wall_s']) / 60:.1f}"]
        )
    return markdown_table(header, body) + "\n"


def learning(found: list[dict[str, str]]) -> str:
    """One table for each recipe."""
    text = ""
    for recipe in dict.fromkeys(row["recipe"] for row in found):
        mine = [row for row in found if row["recipe"] == recipe]
        text += f"\n## {recipe}\n\n" + learning_table(mine)
        commands = dict.fromkeys(f"{row['command']} ({row['date']})" for row in mine)
        text += "\n" + "".join(f"- `{command}`\n" for command in commands)
    return text


def summary_table(found: list[dict[str, str]]) -> str:
    """Write one line for each recipe, task and stage: its seeds side by side, their mean and standard deviation."""
    header = [
        "recipe",
        "task",
        "obs",
        "stage",
        "episodes",
        "success_once by seed",
        "mean",
        "deviation",
        "env steps",
        "minutes",
    ]
    body = []
    names = ("recipe", "task", "obs", "stage", "episodes")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in found):
        mine = [row for row in found if tuple(row[name] for name in names) == key]
        mine.sort(key=lambda row: int(row["seed"]))
        once = [float(row["success_once"]) for row in mine]
        steps = [int(row["env_steps"]) for row in mine if row["env_steps"]]
        minutes = statistics.mean(float(row["wall_s"]) for row in mine) / 60
        rates = " ".join(f"{value:.2f}" for value in once)
        deviation = f"{statistics.stdev(once):.3f}" if len(once) > 1 else ""
        cells = [rates, f"{statistics.mean(once):.3f}", deviation]
        body.append([*key, *cells, f"{statistics.mean(steps):.0f}" if steps else "", f"{minutes:.1f}"])
    return markdown_table(header, body) + "\n"


def returns_table(found: list[dict[str, str]]) -> str:
    """Write the mean return of each recipe in each task, with its standard deviation over (so many) seeds."""
    tasks = list(dict.fromkeys(row["task"] for row in found))
    body = []
    for recipe in dict.fromkeys(row["recipe"] for row in found):
        cells = []
        for task in tasks:
            values = [float(row["return"]) for row in found if (row["recipe"], row["task"]) == (recipe, task)]
            number = f" ({len(values)})" if len(values) > 1 else ""
            cells.append(mean_and_deviation(values) + number if values else "")
        body.append([recipe, *cells])
    return markdown_table(["", *tasks], body) + "\n"


STAGES = {
    ("awsc", "1"): "cloned: AWSC, stage 1",
    ("awsc", "2"): "AWSC, offline",
    ("awsc", "3"): "AWSC, online",
    ("dsrl_ppo", "1"): "DSRL, offline",
    ("dsrl_ppo", "2"): "DSRL, online PPO",
    ("dsrl_sac", "2"): "DSRL, online SAC",
    ("reinflow", "K=4"): "ReinFlow",
    ("dsrl_sac", "2 64 envs, gamma .99"): "DSRL, online SAC, 64 environments",
    ("dsrl_na", "1"): "DSRL, noise aliasing, offline",
    ("dsrl_na", "2"): "DSRL, noise aliasing, online",
    ("dsrl_na", "2 64 envs, gamma .99"): "DSRL, noise aliasing, 64 environments",
    ("dsrl_ppo", "2 64 envs, tied"): "DSRL, online PPO, 64 environments",
    ("reinflow", "K=4, 64 envs, defaults"): "ReinFlow, 64 environments, 600,000 steps",
    ("reinflow", "K=4, 64 envs, slow decay, target KL"): "ReinFlow, 64 environments, slow decay of the noise",
    ("awsc_rounds", "noise 0.7"): "AWSC by returns, new weights in each round",
    ("awsc_rounds", "continued"): "AWSC by returns, in rounds",
}
"""What the brief table calls a recipe's stage."""


def brief_table(found: list[dict[str, str]]) -> str:
    """Write mean success and its deviation over (so many) seeds, algorithms against tasks.

    Where a seed was evaluated twice, the evaluation over fewer episodes counts, which all seeds have.
    """
    tasks = list(dict.fromkeys(row["task"] for row in found))
    body = []
    for key in dict.fromkeys((row["recipe"], row["stage"]) for row in found):
        cells = []
        for task in tasks:
            mine = [row for row in found if (row["recipe"], row["stage"], row["task"]) == (*key, task)]
            mine.sort(key=lambda row: -int(row["episodes"]))
            values = list({row["seed"]: float(row["success_once"]) for row in mine}.values())
            deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{deviation} ({len(values)})" if values else "")
        body.append([STAGES.get(key, " ".join(key)), *cells])
    return markdown_table(["success (seeds)", *tasks], body) + "\n"


TABLES = {"results": learning_table, "summary": summary_table, "returns": returns_table, "brief": brief_table}
"""Kinds of tables that a page can ask for."""


def fill(page: str, found: list[dict[str, str]]) -> str:
    """Write the tables that a page asks for: ``<!-- results column=value|value ... -->`` to ``<!-- end -->``.

    Rows come in the order in which their values are written, which hold underscores for spaces. ``summary`` in place of
    ``results`` asks for one line a stage instead of one a row, ``returns`` and ``brief`` for recipes against tasks.
    The column ``quality`` is that of the option in the command: mixed, or the default.
    """
    found = [row | {"quality": "mixed" if "--quality mixed" in row["command"] else "default"} for row in found]

    def block(match: re.Match[str]) -> str:
        kind, text = match[1], match[2]
        wanted = [(name, values.split("|")) for name, values in (pair.split("=", 1) for pair in text.split())]

        def place(row: dict[str, str]) -> list[int]:
            return [values.index(row[name].replace(" ", "_")) for name, values in wanted]

        rows_here = [row for row in found if all(row[name].replace(" ", "_") in values for name, values in wanted)]
        rows_here.sort(key=place)
        if not rows_here:
            raise SystemExit(f"No row of results/results.csv is one of {text!r}.")
        return f"<!-- {kind} {text} -->\n\n{TABLES[kind](rows_here)}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) (.*?) -->.*?<!-- end -->", block, page, flags=re.DOTALL)


def timings(found: list[dict[str, str]]) -> str:
    """One table of all pairs."""
    if not found:
        return ""
    header = ["pair", "mode", "device", "threads", "ours ms", "reference ms", "ratio"]
    names = ("pair", "mode", "device", "threads", "ours_ms", "reference_ms")
    body = [[row[n] for n in names] + [f"{row['ratio']} [{row['ratio_low']}, {row['ratio_high']}]"] for row in found]
    return "\n## Timings\n\n" + markdown_table(header, body) + "\n"


def first_sentence(path: Path) -> str:
    """Return the first sentence of a file's docstring, without the markup of Sphinx."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.split("\n\n", 1)[0].split()).split(". ", 1)[0].rstrip(".")
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", line).replace("``", "`").replace("|", "\\|")


def list_of_files() -> str:
    """Write a table for each package: its files, and what is in them."""
    package, parts = ROOT / "torchrl_flow", [FILES_HEAD]
    for folder in sorted(path for path in package.iterdir() if (path / "__init__.py").exists()):
        files = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
        body = [[f"`{path.relative_to(package)}`", first_sentence(path)] for path in files]
        parts += [
            f"\n## {folder.name}\n\n{first_sentence(folder / '__init__.py')}.\n\n",
            markdown_table(["file", "contents"], body),
            "\n",
        ]
    return "".join(parts)


def main(args: Args) -> None:
    """Write or compare."""
    found = rows(ROOT / "results" / "results.csv")
    text = HEAD + learning(found) + timings(rows(ROOT / "benchmarks" / "results.csv"))
    pages = {PAGE: text} | {path: fill(path.read_text(encoding="utf-8"), found) for path in WITH_TABLES}
    pages[FILES] = list_of_files()
    for path, page in pages.items():
        if not args.check:
            path.write_text(page, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != page:
            sys.exit(f"{path.relative_to(ROOT)} is not what the files say: run `python docs/make_tables.py`.")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
