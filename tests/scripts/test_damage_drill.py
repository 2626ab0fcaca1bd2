"""The script that damages files of every kind that the library reads, and what it finds."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("resource")  # not on Windows
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import damage_drill
from damage_kinds import KINDS, Kind

WITHOUT_CHECKSUMS = ("maniskill_h5", "maniskill_json", "metrics", "results", "run_json")
"""Files of other programs, and texts that are appended to or that people edit."""


def test_every_damage_changes_the_content():
    rng = random.Random(0)
    content = bytes(range(256)) * 4
    changed = [damage_drill.mutate(content, rng) for _ in range(400)]
    assert all(each != content for each in changed)
    sizes = {(len(each) > len(content)) - (len(each) < len(content)) for each in changed}
    assert sizes == {-1, 0, 1}
    assert damage_drill.mutate(b"", rng) == b"\x00"


def outcome(tmp_path, read):
    """What the drill says of a reader, given a file 'x' that held "1"."""
    tmp_path.joinpath("x").write_text("2")
    return damage_drill.attempt(Kind(lambda folder: None, read, ("x",), ""), tmp_path, "1")[0]


def test_outcomes_are_told_apart(tmp_path):
    def raises(error):
        def read(folder):
            raise error

        return read

    def warns(folder):
        import warnings

        warnings.warn("x is odd", UserWarning, stacklevel=1)
        return "2"

    assert outcome(tmp_path, lambda folder: "1") == "equal"
    assert outcome(tmp_path, lambda folder: "2") == "silent"
    assert outcome(tmp_path, warns) == "warned"
    assert outcome(tmp_path, raises(ValueError(f"{tmp_path}/x is damaged"))) == "refused"
    assert outcome(tmp_path, raises(ValueError("damaged"))) == "foreign"  # it does not name the file
    assert outcome(tmp_path, raises(KeyError("x"))) == "foreign"
    assert outcome(tmp_path, raises(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"))) == "foreign"


def test_a_reader_that_ends_the_process_or_hangs_is_counted(tmp_path, monkeypatch):
    import os
    import time

    monkeypatch.setattr(damage_drill, "LIMIT_S", 1)

    def make(folder):
        (folder / "x").write_text("1234")

    def read(folder):
        found = (folder / "x").read_bytes()
        if len(found) < 4:
            os._exit(3)
        if found != b"1234":
            time.sleep(30)

    found = list(damage_drill.trials(Kind(make, read, ("x",), ""), tmp_path, 6, random.Random(1)))
    assert [each[0] for each in found] == ["hung"] * 6
    assert {each[1] for each in found} <= {"the process ended by SIGALRM", "the process ended by status 768"}


@pytest.mark.parametrize("name", KINDS)
def test_no_damage_ends_in_a_foreign_error(name):
    counts = damage_drill.drill(name, 12, seed=1)
    assert sum(counts.values()) == 12
    assert counts["foreign"] == counts["hung"] == 0, counts
    assert name in WITHOUT_CHECKSUMS or counts["silent"] == 0, counts


def fuzz(name, tmp_path, examples):
    """Read files of a kind with any part of one replaced by anything; a counterexample is shrunk."""
    kind, copy = KINDS[name], tmp_path / "copy"
    (tmp_path / "intact").mkdir()
    kind.make(tmp_path / "intact")
    shutil.copytree(tmp_path / "intact", copy)
    intact = kind.read(copy)

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(
        file=st.sampled_from(damage_drill.files_of(kind, tmp_path / "intact")),
        place=st.floats(0, 1),
        left_out=st.one_of(st.just(0), st.integers(0, 16), st.just(2**30)),
        put_in=st.binary(max_size=16),
    )
    def check(file, place, left_out, put_in):
        shutil.rmtree(copy)
        shutil.copytree(tmp_path / "intact", copy)
        content = (copy / file).read_bytes()
        first = int(place * len(content))
        (copy / file).write_bytes(content[:first] + put_in + content[first + left_out :])
        outcome, message = damage_drill.attempt(kind, copy, intact)
        allowed = ("equal", "warned", "refused", *(["silent"] if name in WITHOUT_CHECKSUMS else []))
        assert outcome in allowed, f"{outcome}: {message}"

    check()


@pytest.mark.parametrize("name", KINDS)
def test_files_with_any_part_replaced(name, tmp_path):
    fuzz(name, tmp_path, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_files_with_any_part_replaced(name, tmp_path):
    fuzz(name, tmp_path, 10_000 // len(KINDS))
