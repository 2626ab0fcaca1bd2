"""Files of transitions that are damaged, are something else, or do not tell all."""

from __future__ import annotations

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
import torch

from torchrl_flow.data import DataError, DataWarning, NpzReplayBuffer, read_npz
from torchrl_flow.data.logged.npz import read_npz_metadata

N = 6


def arrays(**changes):
    made = {
        "observations": np.arange(N * 3.0).reshape(N, 3),
        "actions": np.zeros((N, 2)),
        "rewards": np.arange(float(N)),
        "terminals": np.array([0, 0, 1, 0, 0, 0]),
        "timeouts": np.array([0, 0, 0, 0, 0, 1]),
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def content(compressed=False, **changes):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays(**changes))
    return file.getvalue()


def write(path, **changes):
    path.write_bytes(content(**changes))
    return path


WHOLE = content()
BROKEN = {
    "empty": (b"", r"empty \(0 bytes\)"),
    "half": (WHOLE[: len(WHOLE) // 2], "damaged"),
    "without its end": (WHOLE[:-30], "damaged"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not a zip archive"),
    "pickle": (b"\x80\x04N.", "not a zip archive"),
    "zip of text": (None, "observations"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(tmp_path, kind):
    data, message = BROKEN[kind]
    path = tmp_path / "x.npz"
    if data is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("observations", "text")
    else:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        NpzReplayBuffer(path)
    assert str(path) in str(error.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        read_npz(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, compressed):
    whole = content(compressed)
    path = tmp_path / "x.npz"
    path.write_bytes(whole)
    expected, _ = read_npz(path)
    refused = same = 0
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 255
        path.write_bytes(bytes(flipped))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found, _ = read_npz(path)
        except DataError as error:
            refused += "x.npz" in str(error)
            continue
        # Bytes that no reader looks at, or the name of an optional array.
        assert torch.equal(found["action"], expected["action"][: len(found)])
        same += 1
    assert refused + same == len(whole), "a refusal did not name the file"
    assert refused > len(whole) / 2


MEMBERS = {
    "no dimension": ({"observations": np.array(1.0)}, r"'observations'.*\[N, D\].*got \[\]"),
    "three dimensions": ({"observations": np.zeros((N, 2, 2))}, r"'observations'.*\[N, D\].*got \[6, 2, 2\]"),
    "no rows": ({name: value[:0] for name, value in arrays().items()}, "N = 0 > 0 rows"),
    "no columns": ({"actions": np.zeros((N, 0))}, r"'actions'.*got \[6, 0\]"),
    "flags as observations": ({"observations": np.zeros((N, 3), bool)}, "'observations'.*bool"),
    "complex": ({"rewards": np.zeros(N, complex)}, "'rewards'.*complex"),
    "dates": ({"rewards": np.zeros(N, "datetime64[s]")}, "'rewards'.*datetime"),
    "text as terminals": ({"terminals": np.array(["no"] * N)}, "'terminals'.*<U2"),
    "objects": ({"terminals": np.array([None] * N)}, "'terminals'.*Python objects"),
    "NaN terminals": ({"terminals": np.full(N, np.nan)}, "0 and 1"),
    "NaN": ({"actions": np.where(np.arange(N * 2).reshape(N, 2) == 7, np.nan, 0)}, r"'actions'.*nan \(row 3, column 1"),
    "infinite": ({"rewards": np.where(np.arange(N) == 4, -np.inf, 0)}, r"'rewards'.*-inf \(row 4"),
    "too large": ({"rewards": np.where(np.arange(N) == 2, 1e300, 0)}, r"'rewards'.*float32: 1e\+300 \(row 2"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_are_refused_by_name_and_what_is_there(tmp_path, kind):
    changes, message = MEMBERS[kind]
    with pytest.raises(DataError, match=message):
        read_npz(write(tmp_path / "x.npz", **changes))


METADATA = {
    "no JSON": (np.array("{"), "not JSON"),
    "list": (np.array("[1]"), r"got '\[1\]'"),
    "null": (np.array("null"), "got 'null'"),
    "numbers": (np.zeros(3), "shape .3. and type float64"),
    "objects": (np.array({"a": 1}, dtype=object), "Python objects"),
}


@pytest.mark.parametrize("kind", METADATA)
def test_wrong_metadata_is_refused(tmp_path, kind):
    value, message = METADATA[kind]
    path = write(tmp_path / "x.npz", metadata=value)
    for read in (read_npz, read_npz_metadata):
        with pytest.raises(DataError, match=message) as error:
            read(path)
        assert "'metadata' in" in str(error.value)


def test_wrong_hashes_are_refused(tmp_path):
    path = write(tmp_path / "x.npz", metadata=np.array(json.dumps({"hashes": ["a"]})))
    with pytest.raises(DataError, match=r"`hashes`.*must be an object"):
        read_npz(path, hashes={"ranker": "a"})


def test_what_marks_no_ends_is_said(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.warns(DataWarning, match=r"neither next_observations nor timeouts.*6 rows 0 are"):
        read_npz(write(path, terminals=np.zeros(N), timeouts=None))
    with pytest.warns(DataWarning, match="no terminals"):
        data, _ = read_npz(write(path, terminals=None))
    assert not data["next", "terminated"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_npz(write(path))
        read_npz(write(path, timeouts=None, next_observations=np.ones((N, 3))))


def test_double_precision_becomes_single(tmp_path):
    data = NpzReplayBuffer(write(tmp_path / "x.npz"), batch_size=4).sample()
    kinds = {data[key].dtype for key in ("observation", "action", ("next", "observation"), ("next", "reward"))}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("shape", [(2**40, 2**20), (N + 1, 3), (N - 1, 3)])
def test_a_header_of_another_size_is_refused_before_memory_is_taken(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    content = {name: io.BytesIO() for name in arrays()}
    for name, stream in content.items():
        np.save(stream, arrays()[name])
    content["observations"] = io.BytesIO(header.getvalue() + bytes(8 * 3 * N))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, stream in content.items():
            archive.writestr(f"{name}.npy", stream.getvalue())
    with pytest.raises(DataError, match=f"'observations' .*claims {8 * shape[0] * shape[1]} bytes.*there are {24 * N}"):
        read_npz(tmp_path / "a.npz")


def test_a_changed_name_of_an_array_that_may_be_missing_is_damage(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(), metadata=json.dumps({"hashes": {"a": "b"}}))
    content = path.read_bytes()
    place = content.rindex(b"metadata.npy")  # in the table of contents, which no checksum covers
    path.write_bytes(content[:place] + b"netadata.npy" + content[place + 12 :])
    with pytest.raises(DataError, match=r"is damaged and cannot be read as \.npz"):
        read_npz(path)
