"""Checks of HDF5 files, so that reading one file cannot read another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
from h5py import h5d, h5g, h5l  # pyright: ignore[reportAttributeAccessIssue]
from h5py.h5o import open as open_object  # pyright: ignore[reportMissingImports]

from torchrl_flow.data.errors import DataError

__all__ = ["DAMAGE", "check_hdf5", "reading_hdf5"]

DAMAGE = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError),
    *(MemoryError, OverflowError, RecursionError, NotImplementedError),
)
"""Exceptions that h5py, or NumPy on its results, raises for a damaged file."""

_MAX_RATIO = 1100
"""Deflate, which HDF5 files are compressed with, makes data at most some 1030 times smaller."""
_SMALL = 64 * 2**20


@contextmanager
def reading_hdf5(path: Path) -> Iterator[None]:
    """Turn HDF5's errors about damaged content into errors that name the file.

    Raises:
        DataError: instead of the errors that h5py raises.
    """
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path.name} is damaged ({reason}): copy or record it again.") from error


def check_hdf5(file: h5py.File, path: Path) -> None:
    """Refuse a file whose links or data sets refer to other files, or that declares far more data than it stores.

    Soft links within the file are accepted: their target is also reached, and checked, through its own link.

    Args:
        file: file, open for reading; only its structure is read.
        path: path of the file, for the error.

    Raises:
        DataError: naming file and data set or link, for external links, external storage, virtual data sets, links of a
            kind that a plug-in defines, or a data set larger than its stored bytes allow; or if the file is damaged.
    """
    with reading_hdf5(path):
        _check_links(file, path)


def _check_links(file: h5py.File, path: Path) -> None:
    seen: set[int] = set()
    groups = [("", file.id)]
    while groups:
        prefix, group = groups.pop()
        links = group.links
        for raw in _names(group):
            name = prefix + raw.decode("utf-8", "replace")
            link = links.get_info(raw)
            kind = link.type
            if kind == h5l.TYPE_SOFT:
                continue
            if kind == h5l.TYPE_EXTERNAL:
                target, inside = (part.decode("utf-8", "replace") for part in links.get_val(raw))
                raise _leads_out(path, name, f"is a link to {inside!r} in the file {target!r}")
            if kind != h5l.TYPE_HARD:
                raise _leads_out(path, name, "is a link of a kind that a plug-in defines")
            address = link.u  # the address of a hard link's object
            if address in seen:
                continue
            seen.add(address)
            item = open_object(group, raw)
            if isinstance(item, h5g.GroupID):
                groups.append((f"{name}/", item))
            elif isinstance(item, h5d.DatasetID):
                _check_dataset(item, path, name)


def _names(group: h5g.GroupID) -> list[bytes]:
    return list(group)


def _check_dataset(item: h5d.DatasetID, path: Path, name: str) -> None:
    layout = item.get_create_plist()
    if layout.get_external_count() > 0:
        target = layout.get_external(0)[0].decode("utf-8", "replace")
        raise _leads_out(path, name, f"stores its data in the file {target!r}")
    if layout.get_layout() == h5d.VIRTUAL:
        raise _leads_out(path, name, "is a virtual data set, put together from other files")
    claimed = item.get_space().get_simple_extent_npoints() * item.get_type().get_size()
    stored = item.get_storage_size()
    size = path.stat().st_size
    if stored > size:
        raise DataError(f"{path.name}: {name} claims to store {stored} bytes in a file of {size}: it is damaged.")
    if layout.get_nfilters() == 0 and claimed > _SMALL and claimed > stored:
        raise DataError(f"{path.name}: {name} claims {claimed} bytes and stores {stored} of them: it is damaged.")
    if claimed > _SMALL and claimed > _MAX_RATIO * max(stored, 1):
        raise DataError(
            f"{path.name}: {name} claims {claimed} bytes and stores {stored}, which is impossible: the file is "
            "damaged or incomplete."
        )


def _leads_out(path: Path, name: str, how: str) -> DataError:
    return DataError(
        f"{path.name}: {name} {how}. Nothing outside of the file is read: copy the data into it (h5repack, or "
        "replay_trajectory anew)."
    )
