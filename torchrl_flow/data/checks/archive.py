"""Checks of zip archives and ``torch.save`` files before any member is unpacked."""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from torchrl_flow.data.errors import DataError

__all__ = ["check_torch_stream", "check_zip", "load_torch"]

MAX_RATIO = 100
"""Largest allowed ratio of an archive's unpacked size to its file size."""
SMALL = 64 * 2**20
"""Unpacked size in bytes up to which the ratio is not checked."""
_MAX_MEMBERS = 100_000
_TORCH_MEMBERS = re.compile(
    r"(data\.pkl|byteorder|version|data/\d+|\.data/serialization_id|\.format_version|\.storage_alignment)"
)
_ENCRYPTED = 0x1


def check_zip(
    archive: zipfile.ZipFile,
    name: str,
    *,
    allowed: Callable[[str], bool] | None = None,
    compressed: bool = True,
) -> dict[str, zipfile.ZipInfo]:
    """Check the table of contents of a zip archive.

    Args:
        archive: the archive, open for reading.
        name: name of the archive in errors.
        allowed: function that returns whether a member of this name may be in the archive. Defaults to all names.
        compressed: whether members may be compressed.

    Returns:
        The members by name.

    Raises:
        DataError: if a member's name is absolute, points outside the archive or occurs twice; if a member is a link, a
            directory, encrypted, or compressed by a method other than deflate; or if the unpacked size is too large for
            the file size (a zip bomb). The error names archive and member.
    """
    infos = archive.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise DataError(f"{name} has {len(infos)} members, and at most {_MAX_MEMBERS} are read.")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        _check_member(info, name, compressed)
        if info.filename in members:
            raise DataError(
                f"{name} has the member {info.filename!r} twice, and only one of them could be checked: make the "
                "file again."
            )
        if allowed is not None and not allowed(info.filename):
            raise DataError(f"{name} has the member {info.filename[:120]!r}, which is not part of the format.")
        members[info.filename] = info
    total = sum(info.file_size for info in infos)
    stored = sum(info.compress_size for info in infos)
    if archive.fp is not None:
        archive.fp.seek(0, 2)
        size = archive.fp.tell()
        if stored > size:
            raise DataError(f"{name} has {size} bytes and its members claim {stored}: they overlap.")
    if total > SMALL and total > MAX_RATIO * max(stored, 1):
        raise DataError(
            f"{name} would unpack to {total} bytes from {stored}, more than {MAX_RATIO} times its size. If the "
            "file is right, save it without compression."
        )
    return members


def _check_member(info: zipfile.ZipInfo, name: str, compressed: bool) -> None:
    member = info.filename
    shown = f"{name} has the member {member[:120]!r}"
    # ZipInfo cuts names at a null byte, and replaces path separators by slashes only on some systems.
    if info.orig_filename != member or "\\" in member or not member.isprintable():
        raise DataError(f"{shown} ({info.orig_filename[:120]!r} in the file), which is not a plain name.")
    if member.startswith("/") or re.match(r"[A-Za-z]:", member) or any(p in ("", ".", "..") for p in member.split("/")):
        raise DataError(f"{shown}, whose path is absolute, leads out of the archive or names a directory.")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise DataError(f"{shown}, which is a link or another special file.")
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"{shown}, which is encrypted.")
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
    if info.compress_type not in methods:
        raise DataError(
            f"{shown}, which is compressed (method {info.compress_type}): save the file without compression."
        )
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise DataError(f"{shown}, which claims {info.file_size} bytes and stores {info.compress_size}.")


def check_torch_stream(stream: IO[bytes], name: str) -> None:
    """Check that a seekable stream is a ``torch.save`` file: an uncompressed zip archive with the expected members.

    Raises:
        DataError: if the check fails. The error names the file.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            root = names[0].split("/")[0] + "/" if names else ""

            def allowed(member: str) -> bool:
                return member.startswith(root) and _TORCH_MEMBERS.fullmatch(member[len(root) :]) is not None

            members = check_zip(archive, name, allowed=allowed, compressed=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name} is damaged, or was not written by torch.save of a current version: {error}."
        ) from error
    if root + "data.pkl" not in members:
        raise DataError(f"{name} is not a file of torch.save: it has no data.pkl.")


def load_torch(path: Path, *, map_location: Any = "cpu") -> Any:
    """Check a file of ``torch.save`` and read it without running code from it.

    Raises:
        DataError: if the file has another format, is damaged, or holds objects other than tensors and plain values. The
            error names the file.
    """
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path} is not a regular file: give the file itself, not a link or a device.")
    with path.open("rb") as stream:
        check_torch_stream(stream, str(path))
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch's restricted unpickler raises errors of many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as plain tensors: {reason}") from error
