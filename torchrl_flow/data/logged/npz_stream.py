"""Writer of ``.npz`` files larger than memory, column by column, that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.memmap import list_members
from torchrl_flow.data.errors import DataError
from torchrl_flow.util.digest import json_digest
from torchrl_flow.util.files import publish, write_json
from torchrl_flow.util.platform import flush

__all__ = ["NpzStream"]

_STATE = "state.json"
_BLOCK = 2**24


class NpzStream:
    """Writer that appends rows to the columns of an ``.npz`` file and assembles the file at the end.

    Each column is written to a raw file in ``<path>.partial``. :meth:`commit` makes the appended rows durable, together
    with a position given by the caller. After a kill, a stream with the same description continues from the last
    commit. :meth:`finish` copies the columns, in blocks, into an uncompressed archive that ``numpy.load`` reads, and
    renames it into place. Columns may have different numbers of rows.

    Args:
        path: file to write.
        columns: type and row shape of each column: ``{"rewards": ("float32", ())}``.
        description: JSON-able description of the content; a partial file with another description raises an error.

    Raises:
        DataError: if the file exists already, or a partial file is damaged or has another description.

    Attributes:
        position: progress that the caller stored with the last commit; 0 at the start.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stream = NpzStream(f"{folder}/a.npz", {"x": ("float32", (2,))}, {})
        ...     stream.append({"x": np.ones((3, 2))})
        ...     stream.commit(1)
        ...     path = stream.finish({"made_by": "doctest"})
        ...     np.load(path)["x"].shape
        (3, 2)
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, tuple[str, tuple[int, ...]]],
        description: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self.columns = {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in columns.items()}
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._description = json.loads(json.dumps({**description, "columns": sorted(columns)}))
        if self.path.exists():
            if self._state().get("description") == self._description:
                shutil.rmtree(self.partial)  # left by a writer that was stopped after the file was renamed
            raise DataError(f"{self.path} exists already: delete it, or give another file.")
        self.rows = dict.fromkeys(self.columns, 0)
        self.position = 0
        self._open()

    def _open(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        found = self._state()
        if found:
            if found["description"] != self._description:
                raise DataError(
                    f"{self.partial} holds a part of another file: {found['description']}, not "
                    f"{self._description}. Delete it, or give another file."
                )
            self.position, self.rows = found["position"], {**self.rows, **found["rows"]}
        list_members(self.partial, self.partial)  # writing through a link would overwrite another file
        self._files, self._sums = {}, {}
        for name in self.columns:
            path, size = self.partial / f"{name}.bin", self.rows[name] * self._row_bytes(name)
            self._sums[name] = self._checked(path, size, found.get("sha256", {}).get(name))
            # Bytes after the last commit may be an incomplete row.
            os.truncate(path, size)
            self._files[name] = path.open("ab")

    def _checked(self, path: Path, size: int, sha256: str | None) -> Any:
        """Return the running checksum of the committed bytes, after comparing it with the stored one."""
        path.touch()
        if path.stat().st_size < size:
            raise DataError(
                f"{path} is shorter than the {size} bytes that were written: delete {self.partial} and start again."
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while size and (piece := file.read(min(size, _BLOCK))):
                digest.update(piece)
                size -= len(piece)
        # Older partial files have no checksums.
        if sha256 is not None and sha256 != digest.hexdigest():
            raise DataError(f"{path} is damaged: its checksum differs. Delete {self.partial} and start again.")
        return digest

    def _state(self) -> dict[str, Any]:
        """Return the progress that a stopped writer stored; empty if there is none."""
        state = self.partial / _STATE
        if not state.exists():
            return {}
        try:
            found = read_json(state)
            if found.get("digest", json_digest(found)) != json_digest(found):
                raise ValueError("its content is not that of its digest")
            kept = {"description": found["description"], "position": int(found["position"])}
            kept["sha256"] = dict(found.get("sha256", {}))
            return {**kept, "rows": {str(name): int(number) for name, number in found["rows"].items()}}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{state} is damaged ({error}): delete {self.partial} and start again.") from error

    def _row_bytes(self, name: str) -> int:
        kind, shape = self.columns[name]
        return kind.itemsize * int(np.prod(shape, dtype=np.int64))

    def append(self, rows: Mapping[str, Any]) -> None:
        """Append rows to columns.

        Raises:
            DataError: if a column is unknown or its rows have another shape.
        """
        for name, value in rows.items():
            if name not in self.columns:
                raise DataError(f"{self.path.name} has the columns {sorted(self.columns)}, not {name!r}.")
            kind, shape = self.columns[name]
            array = np.ascontiguousarray(value, dtype=kind)
            if array.shape[1:] != shape:
                raise DataError(f"rows of {name!r} have shape {list(shape)}, got {list(array.shape[1:])}.")
            content = array.tobytes()
            self._files[name].write(content)
            self._sums[name].update(content)
            self.rows[name] += len(array)

    def commit(self, position: int) -> None:
        """Flush the appended rows to the disk, and store the progress of the caller."""
        for file in self._files.values():
            file.flush()
            flush(file.name)
        sums = {name: digest.hexdigest() for name, digest in self._sums.items()}
        state = {"description": self._description, "position": position, "rows": self.rows, "sha256": sums}
        write_json(self.partial / _STATE, {**state, "digest": json_digest(state)}, indent=None)
        self.position = position

    def finish(self, metadata: Mapping[str, Any]) -> Path:
        """Assemble the file, with ``metadata`` as a JSON string beside the columns, and remove the parts."""
        self.close()
        staged = self.partial / "archive.npz"
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in self.columns:
                self._copy(archive, name)
            with archive.open("metadata.npy", "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(dict(metadata))), allow_pickle=False)
        publish(staged, self.path)
        shutil.rmtree(self.partial)
        return self.path

    def _copy(self, archive: zipfile.ZipFile, name: str) -> None:
        kind, shape = self.columns[name]
        header = {
            "descr": np.lib.format.dtype_to_descr(kind),
            "fortran_order": False,
            "shape": (self.rows[name], *shape),
        }
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            with (self.partial / f"{name}.bin").open("rb") as file:
                shutil.copyfileobj(file, member, _BLOCK)

    def close(self) -> None:
        """Close the parts; committed rows stay on the disk."""
        for file in self._files.values():
            file.close()
