"""The script that damages files of every kind that the library reads, and what it finds."""

from __future__ import annotations

import random
import shutil
import signal
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
    """Read files of a kind with any part of one replaced by anything; a counterexample is shrunk.

    A reading that does not end within LIMIT_S, or needs more memory than MEMORY, is a failure.
    """
    failure = damage_drill.in_a_limited_process(lambda: fuzz_here(KINDS[name], name, tmp_path, examples))
    assert failure is None, f"{failure}; the last input was {(tmp_path / 'input').read_text()}"


def fuzz_here(kind, name, tmp_path, examples):
    copy = tmp_path / "copy"
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
        (tmp_path / "input").write_text(f"{file}: {first} of {len(content)} bytes, {left_out} left out, {put_in}")
        signal.alarm(damage_drill.LIMIT_S)
        outcome, message = damage_drill.attempt(kind, copy, intact)
        signal.alarm(0)
        allowed = ("equal", "warned", "refused", *(["silent"] if name in WITHOUT_CHECKSUMS else []))
        assert outcome in allowed, f"{outcome}: {message}"

    check()


def fuzz_reader(read, tmp_path, monkeypatch):
    """How the fuzzing of a file of eight letters by a reader fails; None if it does not."""

    def make(folder):
        (folder / "x").write_bytes(b"12345678")

    monkeypatch.setattr(damage_drill, "LIMIT_S", 1)
    monkeypatch.setattr(damage_drill, "MEMORY", 2**29)
    kind = Kind(make, read, ("x",), "")
    return damage_drill.in_a_limited_process(lambda: fuzz_here(kind, "metrics", tmp_path, 20))


def test_a_hang_is_a_failure_of_the_fuzzing(tmp_path, monkeypatch):
    def hangs(folder):
        while (folder / "x").read_bytes() != b"12345678":
            pass

    assert fuzz_reader(hangs, tmp_path, monkeypatch) == "the process ended by SIGALRM"
    assert (tmp_path / "input").read_text().startswith("x: ")


def test_too_much_memory_and_a_foreign_error_are_failures_of_the_fuzzing(tmp_path, monkeypatch):
    def allocates(folder):
        return bytes(8 if (folder / "x").read_bytes() == b"12345678" else 2**32)

    (tmp_path / "a").mkdir()
    assert "foreign: MemoryError" in fuzz_reader(allocates, tmp_path / "a", monkeypatch)

    def divides(folder):
        return 1 / ((folder / "x").read_bytes() == b"12345678")

    (tmp_path / "b").mkdir()
    assert "foreign: ZeroDivisionError" in fuzz_reader(divides, tmp_path / "b", monkeypatch)
    (tmp_path / "c").mkdir()
    assert fuzz_reader(lambda folder: (folder / "x").read_bytes(), tmp_path / "c", monkeypatch) is None


@pytest.mark.parametrize("name", KINDS)
def test_files_with_any_part_replaced(name, tmp_path):
    fuzz(name, tmp_path, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_files_with_any_part_replaced(name, tmp_path):
    fuzz(name, tmp_path, 10_000 // len(KINDS))
