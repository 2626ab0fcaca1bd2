"""Demonstrations that a checkpoint describes, which may be of somebody else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torchrl.checkpoint import CheckpointError

from torchrl_flow.demos import DemoSource


def told(**fields) -> Any:
    return SimpleNamespace(config={"demonstrations": fields}, path=Path("a.torchrl"))


@pytest.mark.parametrize("folder", ["../elsewhere", "/nowhere/at/all", "a/../../b"])
def test_nothing_is_made_outside_where_a_checkpoint_says_so(folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CheckpointError, match=r"a\.torchrl names the directory .*outside"):
        DemoSource.of_checkpoint(told(folder=folder))
    # Given by the user they are read.
    assert DemoSource.of_checkpoint(told(folder=folder), "mine.h5").path == "mine.h5"


def test_a_directory_that_is_there_or_inside_is_taken(tmp_path):
    for folder in (str(tmp_path), "demos", "a/b"):
        assert DemoSource.of_checkpoint(told(folder=folder, num_demos=3)).folder == folder


@pytest.mark.parametrize("fields", [{"colour": 1}, {"num_demos": "many"}, {"folder": 3}, {"path": ["a"]}])
def test_what_is_no_description_is_refused_by_its_field(fields):
    with pytest.raises(CheckpointError, match=f"a.torchrl records {next(iter(fields))}="):
        DemoSource.of_checkpoint(told(**fields))
