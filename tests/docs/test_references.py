"""What the pages name exists: commands with their options, public names, files and headings."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from torchrl_flow._lazy import exports
from torchrl_flow._moved import NAMES
from torchrl_flow.commands.command_line import ALIASES, COMMANDS, _source
from torchrl_flow.commands.options_source import options_alone
from torchrl_flow.commands.recipes import find_recipes
from torchrl_flow.options import parse_options

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/torchrl-flow/torchrl_flow/blob/main/"
TOP = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "RELEASE.md", "SECURITY.md", "examples/README.md")
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "generated"} & set(page.parts)]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in [*(ROOT / name for name in TOP), *DOCS]
}
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
PROGRAM = re.compile(r"(?:torchrl-flow|python -m torchrl_flow) (?=[a-z])|python examples/|^(?=\w+\.py )")
VALUES = {"N": "1", "S": "0", "RUN": "runs/a", "RUN...": "runs/a", "NAME": "quickstart", "NAME.py": "quickstart"}
RECIPES = {**find_recipes(), "X": find_recipes()["quickstart"], "NAME": find_recipes()["quickstart"]}


def commands_of(page: str) -> set[tuple[str, ...]]:
    """Words after the program, of each command of a recipe or of ``torchrl-flow`` in blocks and in prose."""
    text = PAGES[page]
    blocks = [re.sub(r"\\\n\s*", "", block) for kind, block in FENCE.findall(text) if kind in ("bash", "console")]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    if page != "docs/results.md":  # Its commands are those of their time.
        lines += [" ".join(code.split()) + " ..." for code in CODE.findall(FENCE.sub("", text))]
    found = set()
    for line in lines:
        start = PROGRAM.search(line)
        if start is None:
            continue
        words = shlex.split(line[start.end() :], comments=True)
        script = not start[0] or start[0].endswith("examples/")
        if not script or words[0].removesuffix(".py") in RECIPES:
            end = next((index for index, word in enumerate(words) if word in ("&&", "|", ">", "\\")), len(words))
            found.add((*(["run"] if script else []), *words[:end]))
    return found


def options_of(words: list[str]) -> tuple[Any, list[str]] | str | None:
    """Options of a command and the words that set them; the reason if there is no such command; None for no options."""
    name, *rest = [VALUES.get(word, "1" if word.startswith("$") else word) for word in words]
    if name == "recipes" or (name == "run" and not rest):
        return None
    if name == "run":
        recipe = rest[0].removesuffix(".py")
        if recipe not in RECIPES:
            return f"there is no recipe {recipe}"
        return options_alone(RECIPES[recipe][0], "Args"), rest[1:]
    name = ALIASES.get(name, name)
    return (options_alone(*_source(name)), rest) if name in COMMANDS else f"there is no command {name}"


def refusal(words: list[str], printed: Any) -> str | None:
    """Reason for which the command line does not take these words, or None."""
    found = options_of(words)
    if found is None or isinstance(found, str):
        return found
    options, rest = found
    if "--help" in rest:
        return None
    if "..." in rest:  # A part of a command, in prose: only the names of its options are checked.
        fields = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(options)}
        given = {word.replace("--no-", "--") for word in rest if word.startswith("--")}
        return f"there is no {given - fields}" if given - fields else None
    try:
        parse_options(options, args=rest, prog=" ".join(words[:2]))
    except SystemExit:
        return "".join(printed.readouterr())
    return None


@pytest.mark.parametrize(("page", "words"), [(page, words) for page in PAGES for words in sorted(commands_of(page))])
def test_a_command_of_a_page_is_accepted(page, words, capsys):
    assert refusal(list(words), capsys) is None


def test_a_wrong_command_is_found(capsys):
    assert refusal(["shortcut-flow-bc"], capsys) == "there is no command shortcut-flow-bc"
    assert "no recipe bc" in str(refusal(["run", "bc"], capsys))
    assert "--clip" in str(refusal(["run", "td3_bc", "--clip", "1"], capsys))
    assert "--clip" in str(refusal(["run", "td3_bc", "...", "--clip", "1"], capsys))
    assert refusal(["run", "td3_bc", "--alpha", "1"], capsys) is None


PACKAGES = sorted(name for name, (_, attribute) in exports("torchrl_flow").items() if attribute is None)
DOTTED = re.compile(rf"(?<![\w./-])(?:torchrl_flow\.)?({'|'.join(PACKAGES)})\.([A-Za-z_]\w*)(?![\w/-])")


def dotted_names(page: str) -> set[tuple[str, str]]:
    """Names of packages that the prose of a page writes as ``package.name``."""
    codes = CODE.findall(FENCE.sub("", PAGES[page]))
    return {
        found for code in codes for found in DOTTED.findall(code) if found[1] not in ("py", "h5", "json", "reshape")
    }


def earlier_names(page: str) -> set[tuple[str, str]]:
    """Names in the Python blocks of a page that moved to another package."""
    moved = {
        (package, name.partition("=")[0])
        for package, places in NAMES.items()
        for names in places.values()
        for name in names.split()
    }
    return {
        found for kind, block in FENCE.findall(PAGES[page]) if kind == "python" for found in DOTTED.findall(block)
    } & moved


@pytest.mark.parametrize(
    ("page", "package", "name"), [(page, *found) for page in PAGES for found in sorted(dotted_names(page))]
)
def test_a_name_of_a_package_is_exported_there(page, package, name):
    module = importlib.import_module(f"torchrl_flow.{package}")
    assert name in {*module.__all__, *(path.stem for path in Path(str(module.__file__)).parent.iterdir())}


@pytest.mark.parametrize("page", PAGES)
def test_no_code_of_a_page_has_a_name_from_before_the_packages_were_split(page):
    assert not earlier_names(page)


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SLUG = re.compile(r"[^\w\- ]")


def headings(text: str) -> set[str]:
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {SLUG.sub("", line.lower()).replace(" ", "-") for line in lines}


def links_of(page: str) -> set[str]:
    found = {link for link in LINK.findall(FENCE.sub("", PAGES[page])) if link}
    return {link for link in found if link.startswith(REPOSITORY) or not re.match(r"[a-z]+:", link)}


@pytest.mark.parametrize(("page", "link"), [(page, link) for page in PAGES for link in sorted(links_of(page))])
def test_a_link_leads_to_a_file_and_a_heading(page, link):
    path, _, heading = link.removeprefix(REPOSITORY).partition("#")
    folder = ROOT if link.startswith(REPOSITORY) else (ROOT / page).parent
    file = folder / path if path else ROOT / page
    if path.startswith("generated/"):  # Sphinx makes these pages.
        return
    assert file.exists()
    if heading:
        assert heading in headings(file.read_text(encoding="utf-8"))
