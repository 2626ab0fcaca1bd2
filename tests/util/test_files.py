"""Files and directories that replace others whole."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

from torchrl_flow.util.files import part_of, publish, staged, write_bytes, write_json, write_text

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


@pytest.mark.parametrize("apart", [False, True])
def test_an_error_leaves_the_old_file_and_no_part(tmp_path, apart):
    path = tmp_path / "a"
    path.write_text("old")

    def killed():
        with staged(path, apart=apart) as part:
            part.write_text("half")
            raise Killed

    with pytest.raises(Killed):
        killed()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_written_over(tmp_path):
    part_of(tmp_path / "a").write_text("left")
    write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


@pytest.mark.parametrize("apart", [False, True])
def test_permissions_of_the_old_file_stay(tmp_path, apart):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)
    with staged(path, apart=apart) as part:
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
    assert done == [("flush", ".a.part"), ("replace", "a"), ("flush", tmp_path.name)]


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
