"""The Python code of the README and of every page of the documentation runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FINAL = {
    "README.md": lambda names: names["result"].episodes == 100 and names["result"].success_once_rate > 0.2,
    "docs/tutorials/own_loop.md": lambda names: names["result"].success_once_rate > 0.1,
    "docs/tutorials/own_environment.md": lambda names: names["result"].success_once_rate > 0.3 and names["frames"] > 1,
    "docs/tutorials/own_demonstrations.md": lambda names: names["batch"]["action_chunk"].shape == (32, 8, 2),
    "docs/tutorials/torchrl_losses.md": lambda names: set(names["reported"]) == {"SACLoss", "TD3Loss", "IQLLoss"},
    "docs/tutorials/trainer.md": lambda names: names["stepper"].num_updates == 60,
    "docs/tutorials/new_algorithm.md": lambda names: 0 <= names["losses"]["chosen_share"] <= 1,
    "docs/tutorials/deployment.md": lambda names: names["robot"].calls > 1,
    "docs/tutorials/export.md": lambda names: names["action"].shape == (3,) and names["control"].calls == 2,
}
"""What must hold after the last block of a page, by the names that the page has defined."""

COMPILED_ONLY = {
    "docs/slates.md": ("runs/td3_bc-pendulum-0",),
    "docs/concepts/runs.md": ("show_video", "class Args"),
}
"""Words of blocks that need a trained run or a notebook, or show a part of a recipe: compiled, not run."""


def pages() -> dict[str, list[str]]:
    """Blocks of Python by page, for pages that have any."""
    found = {str(path.relative_to(ROOT)): FENCE.findall(path.read_text(encoding="utf-8")) for path in SOURCES}
    return {name: blocks for name, blocks in found.items() if blocks and "/_build/" not in name}


def test_each_page_with_a_promise_is_there():
    assert set(FINAL) <= set(pages())
    assert all(any(mark in block for block in pages()[page]) for page, marks in COMPILED_ONLY.items() for mark in marks)


@pytest.mark.parametrize("page", list(pages()))
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {"__name__": "__main__"}
    text = (ROOT / page).read_text(encoding="utf-8")
    if any("ManiSkillEnv(" in block for block in pages()[page]):
        pytest.importorskip("mani_skill", reason="the page simulates ManiSkill")
    for block in pages()[page]:
        first = text[: text.index(block)].count("\n")  # so that a traceback names the line of the page
        code = compile("\n" * first + block, str(ROOT / page), "exec")
        if not any(mark in block for mark in COMPILED_ONLY.get(page, ())):
            exec(code, names)
    assert FINAL.get(page, lambda names: True)(names)


def test_the_example_of_the_readme_is_short_and_complete():
    (block,) = pages()["README.md"]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 20
    assert "..." not in block


def test_the_new_algorithm_has_the_length_that_its_page_says():
    code = "".join(pages()["docs/tutorials/new_algorithm.md"])
    assert len([line for line in code.splitlines() if line.strip()]) < 120


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
