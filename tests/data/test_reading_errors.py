"""Errors of the file system while data are read: a DataError that names the file, but for a missing permission."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from torchrl_flow.data import DataError
from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.memmap import list_members
from torchrl_flow.data.demos.trajectory_file import _open_h5
from torchrl_flow.data.demos.trajectory_json import read_trajectory_json
from torchrl_flow.data.errors import reading
from torchrl_flow.data.logged.npz_file import open_npz

READERS = {
    "json": (read_json, Path, "read_bytes", "cannot be read: Input/output error."),
    "recording": (read_trajectory_json, Path, "read_bytes", "cannot be read: Input/output error."),
    "npz": (open_npz, Path, "open", "cannot be read as .npz: Input/output error."),
    "members": (lambda path: list_members(path, path), os, "scandir", "cannot be listed: Input/output error."),
}


def failing(error):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize("name", READERS)
def test_a_reader_names_a_failing_file_and_passes_a_missing_permission_on(name, tmp_path, monkeypatch):
    read, owner, method, message = READERS[name]
    path = tmp_path / "data"
    path.write_bytes(b"{}")
    monkeypatch.setattr(owner, method, failing(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).endswith(f"data {message}")
    refused = PermissionError(errno.EACCES, "Permission denied", str(path))
    monkeypatch.setattr(owner, method, failing(refused))
    with pytest.raises(PermissionError) as caught:
        read(path)
    assert caught.value is refused


def test_a_recording_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "open", failing(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        _open_h5(tmp_path / "data.h5")


def test_other_errors_of_the_block_are_not_changed():
    with pytest.raises(DataError, match=r"^a reason$"), reading("x cannot be read"):
        raise DataError("a reason")
