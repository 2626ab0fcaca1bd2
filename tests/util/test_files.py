"""Files and directories that replace others whole."""

from __future__ import annotations

import ast
import json
import os
import time
from pathlib import Path

import pytest

from torchrl_flow.util.files import (
    csv_rows,
    is_leftover,
    publish,
    read_text,
    staged,
    write_bytes,
    write_json,
    write_text,
)

PACKAGE = Path(__file__).parents[2] / "torchrl_flow"
#: Where files are flushed and renamed.
ONE_PLACE = ("files.py", "platform.py")


class Killed(BaseException):
    pass


def test_text_json_and_bytes_are_written_as_given(tmp_path):
    write_text(tmp_path / "a", "one\r\n\udcff\n")
    write_json(tmp_path / "b", {"x": [1]}, indent=None)
    write_bytes(tmp_path / "c", b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == b"one\r\n?\n"
    assert json.loads((tmp_path / "b").read_text()) == {"x": [1]}
    assert (tmp_path / "c").read_bytes() == b"\x00\r\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_an_error_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def killed():
        with staged(path) as part:
            part.write_text("half")
            raise Killed

    with pytest.raises(Killed):
        killed()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_removed_after_an_hour_and_what_is_being_written_is_not(tmp_path):
    now = time.time()
    for name, age in (("old", 3700), ("young", 3500)):
        folder = tmp_path / f".a.{name}.part"
        folder.mkdir()
        (folder / "a").write_text("half")
        os.utime(folder, (now - age, now - age))
    os.makedirs(tmp_path / ".ab.old.part")
    os.utime(tmp_path / ".ab.old.part", (0, 0))
    (tmp_path / ".a.part").write_text("of an older version")
    os.utime(tmp_path / ".a.part", (0, 0))
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    # What belongs to another file is its own writer's.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.young.part", ".ab.old.part", "a"]


def test_where_a_file_is_staged_cannot_be_guessed_nor_entered_by_others(tmp_path):
    places = []
    for _ in range(2):
        with staged(tmp_path / "a") as part:
            places.append(part)
            assert part.parent.stat().st_mode & 0o777 == 0o700
            assert is_leftover(part.parent.name)
            part.write_text("x")
    assert places[0].parent != places[1].parent
    assert places[0].name == "a"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_text_that_is_none_is_named_with_its_line(tmp_path):
    (tmp_path / "a").write_bytes("é\n".encode() + b"b\n\xff\n")
    with pytest.raises(ValueError, match=r"a, line 3: byte 0xff is not UTF-8 text"):
        read_text(tmp_path / "a")
    (tmp_path / "a").write_bytes("é\n".encode())
    assert read_text(tmp_path / "a") == "é\n"


def test_permissions_of_the_old_file_stay(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)
    with staged(path) as part:
        part.write_text("new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_directory_is_put_in_place_whole(tmp_path):
    with staged(tmp_path / "store") as part:
        part.mkdir()
        (part / "x").write_text("1")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["x"]
    (tmp_path / "other").mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        publish(tmp_path / "other", tmp_path / "store")
    assert (tmp_path / "store" / "x").exists()


def test_contents_are_flushed_before_the_name(tmp_path, monkeypatch):
    done = []
    real = os.replace
    monkeypatch.setattr("torchrl_flow.util.files.flush", lambda path: done.append(("flush", Path(path).name)))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(("replace", Path(b).name)) or real(a, b))
    write_text(tmp_path / "a", "x")
    assert done == [("flush", "a"), ("replace", "a"), ("flush", tmp_path.name)]


def test_no_other_file_renames_or_flushes_by_itself():
    own = {"os.replace", "os.rename", "os.fsync", "tempfile.mkstemp", "tempfile.mkdtemp"}
    wrong = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ONE_PLACE and path.parent.name == "util":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in imported for alias in node.names}
        found = calls & own | names & {"torchrl_flow.util.platform.replace"}
        if found:
            wrong[str(path.relative_to(PACKAGE))] = sorted(found)
    assert wrong == {}


def test_rows_of_csv_and_the_line_that_is_none(tmp_path):
    assert list(csv_rows(['a,"b,c"', "", "1,2"], tmp_path / "t.csv")) == [["a", "b,c"], [], ["1", "2"]]
    rows = csv_rows(["a,b", "\ra,b"], tmp_path / "t.csv")
    assert next(rows) == ["a", "b"]
    with pytest.raises(ValueError, match=r"t\.csv, line 2: not a row of a CSV file"):
        next(rows)
