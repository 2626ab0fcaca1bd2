"""Reader of ``.npz`` files; errors name the damaged file or member."""

from __future__ import annotations

import json
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_flow.data.checks.archive import check_zip
from torchrl_flow.data.errors import LFS_ADVICE, DataError, is_lfs_pointer, reading

__all__ = ["npz_metadata", "open_npz", "read_member"]

# Errors that zipfile, zlib and numpy raise for damaged bytes.
DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError, RuntimeError, SyntaxError),
    *(MemoryError, OverflowError, RecursionError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


def open_npz(path: str | Path) -> Any:
    """Open a file as a context manager; :func:`read_member` reads its members.

    Raises:
        DataError: if the file is missing, a directory, empty, damaged or not an ``.npz`` file, or its unpacked size is
            far above its file size.
    """
    path = Path(path)
    _require_archive(path)
    try:
        file = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"{path} is damaged and cannot be read as .npz ({_reason(error)}): copy it again.") from error
    names = list(file.files)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        file.close()
        raise DataError(f"{path} is damaged: it holds {twice} more than once. Make it again.")
    try:
        check_zip(file.zip, str(path))
        for member in file.zip.infolist():
            # A zip file stores each name twice: if the two differ, an array would be skipped as one of another name.
            file.zip.open(member).close()
    except DAMAGE as error:
        file.close()
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged and cannot be read as .npz ({_reason(error)}): copy it again.") from error
    return file


def _require_archive(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a directory and cannot be read as .npz: give a file.")
    if not path.exists():
        raise DataError(f"{path}: there is no such file: correct the path.")
    with reading(f"{path} cannot be read as .npz"):
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(6)
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes): copy or download it again.")
    if magic == b"\x93NUMPY":
        raise DataError(f"{path} is not an .npz file: it holds a single array.")
    if is_lfs_pointer(path):
        raise DataError(f"{path} cannot be read as .npz: {LFS_ADVICE}.")
    if magic[:2] != b"PK":
        raise DataError(
            f"{path} cannot be read as .npz: it is not a zip archive, but starts with {magic!r}. Give a file of "
            "numpy.savez, and copy or download it again if it should be one."
        )


def read_member(path: Path, file: Any, name: str) -> np.ndarray:
    """Read one array of an open file.

    Raises:
        DataError: if the member is damaged or an array of Python objects.
    """
    try:
        _require_size(file, name)
        array = file[name]
    except DAMAGE as error:
        if "allow_pickle" in str(error):  # an array of objects, which only pickle can read
            raise DataError(
                f"{name!r} in {path} is not a plain array: it holds Python objects, not numbers."
            ) from error
        reason = _reason(error)
        raise DataError(f"{path} is damaged: {name!r} cannot be read ({reason}). Copy or make it again.") from error
    if not isinstance(array, np.ndarray):  # a member that numpy did not write
        raise DataError(f"{name!r} in {path} is not an array, but {len(array)} bytes of other data.")
    return array


def _require_size(file: Any, name: str) -> None:
    """Refuse a member whose size differs from that in its header, before memory is allocated."""
    member = name if name in file.zip.namelist() else f"{name}.npy"
    with file.zip.open(member) as stream:
        if stream.read(6) != b"\x93NUMPY":
            return
        version = (stream.read(1)[0], stream.read(1)[0])
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        claimed, there = math.prod(shape) * dtype.itemsize, file.zip.getinfo(member).file_size - stream.tell()
    if not dtype.hasobject and claimed != there:
        raise ValueError(f"its header claims {claimed} bytes, of shape {list(shape)}, and there are {there}")


def npz_metadata(path: Path, file: Any) -> dict[str, Any]:
    """Read the member ``metadata``, a JSON object; return an empty mapping if it is missing.

    Raises:
        DataError: if it is not a JSON object.
    """
    if "metadata" not in file.files:
        return {}
    array = read_member(path, file, "metadata")
    wanted = f"'metadata' in {path} must be the text of a JSON object"
    if array.ndim != 0 or array.dtype.kind not in "US":
        raise DataError(f"{wanted}, got an array of shape {list(array.shape)} and type {array.dtype}.")
    try:
        text = array.item()
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{wanted}, got what is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{wanted}, got {text[:60]!r}.")
    return content


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
