"""Cache on disk of the latents of demonstrated actions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_flow.data.checks.json import read_json
from torchrl_flow.data.checks.memmap import MemmapEntry, check_memmap, list_members, load_memmap, require_members
from torchrl_flow.data.demos.replay import DemoReplayBuffer
from torchrl_flow.data.errors import DataError, DataWarning
from torchrl_flow.util.differences import differing_fields
from torchrl_flow.util.digest import module_digest
from torchrl_flow.util.files import named_write_errors, require_space, write_json

__all__ = ["AliasFn", "NoiseCache", "data_digest", "module_digest"]

AliasFn = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""``(rows [n], generator) -> latent [n, S, A], residual [n]``."""

_METADATA, _ROWS, _DIGESTS = "cache.json", "rows", "digests.json"


def data_digest(data: DemoReplayBuffer) -> str:
    """Return the SHA-256 of the files of a demo buffer and of its chunk options.

    The discount is not included, since it affects only rewards.
    """
    columns = data.store.metadata["columns"]
    sums = {f"{table}/{key}": entry["sha256"] for table, keys in columns.items() for key, entry in keys.items()}
    folding = {key: value for key, value in data.storage.state_dict().items() if key != "gamma"}
    text = json.dumps([sums, folding], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class NoiseCache:
    """A memory-mapped table of one latent and one residual for each row of a data set.

    It is filled block by block. After a kill the remaining blocks are computed; the table equals that of an
    uninterrupted run, since each block has its own generator. The identity of its inputs (data, flow, search) is stored
    beside the table, and a table with another identity is refused. The SHA-256 of each block is stored too: opening
    reads the whole table, and a block that was changed counts as missing, with a :class:`DataWarning`. In an older
    table without checksums they are added for all finite blocks.

    Args:
        root: directory of the cache; it is created if it is missing.

    Keyword Args:
        num_rows: rows of the data set.
        latent_shape: ``[S, A]``.
        identity: JSON-able description of the inputs of the latents, such as
            ``{"data": data_digest(data), "flow": module_digest(flow), ...}``.
        block_size: rows computed at a time.
        seed: seed of the blocks' generators.

    Raises:
        DataError: if the directory holds another or a damaged cache. The error names the difference.

    Examples:
        >>> import tempfile, torch
        >>> def double(rows, generator):
        ...     return 2.0 * rows.float()[:, None, None], torch.zeros(len(rows))
        >>> with tempfile.TemporaryDirectory() as root:
        ...     cache = NoiseCache(root + "/cache", num_rows=3, latent_shape=(1, 1), identity={"data": "x"})
        ...     for done in cache.fill(double):
        ...         pass
        ...     cache.latent.flatten().tolist()
        [0.0, 2.0, 4.0]
    """

    def __init__(
        self,
        root: str | Path,
        *,
        num_rows: int,
        latent_shape: Sequence[int],
        identity: Mapping[str, Any],
        block_size: int = 512,
        seed: int = 0,
    ) -> None:
        if num_rows < 1 or block_size < 1:
            raise ValueError(f"num_rows and block_size must be at least 1, got {num_rows} and {block_size}.")
        self.root, self.num_rows, self.block_size, self.seed = Path(root), num_rows, block_size, seed
        own = {"num_rows": num_rows, "latent_shape": list(latent_shape), "block_size": block_size, "seed": seed}
        self.identity: dict[str, Any] = json.loads(json.dumps({**identity, **own}))
        if (self.root / _METADATA).exists():
            self._require_identity()
        else:
            self._create(latent_shape)
        self._table = self._open()
        self._digests = self._read_digests()
        self._check_blocks()

    def _require_identity(self) -> None:
        found = read_json(self.root / _METADATA)
        if not isinstance(found, dict):
            raise DataError(
                f"{self.root / _METADATA} is not a JSON object, so that the cache is damaged: remove the cache."
            )
        differing = differing_fields(found, self.identity, form="{name}: {found!r} there, {wanted!r} here")
        if differing:
            raise DataError(
                f"{self.root} holds the latents of something else. {'; '.join(differing)}. Give another directory, or "
                "remove this one."
            )

    def _create(self, latent_shape: Sequence[int]) -> None:
        rows = self.num_rows
        if os.path.lexists(self.root / _ROWS):
            # Files left by a kill are overwritten, so links, which would lead to another file, raise an error.
            list_members(self.root, self.root)
            list_members(self.root / _ROWS, self.root)
        entries = {"latent": torch.zeros(rows, *latent_shape), "residual": torch.full((rows,), torch.nan)}
        entries["done"] = torch.zeros(rows, dtype=torch.bool)
        table = TensorDict({**entries}, batch_size=[rows])
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            require_space(self.root, sum(entry.nbytes for entry in entries.values()))
            with named_write_errors(self.root):
                table.memmap(str(self.root / _ROWS))
            # Written last and atomically: a directory without it is incomplete.
            write_json(self.root / _METADATA, self.identity)
        except OSError:
            shutil.rmtree(self.root / _ROWS, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds other files
                self.root.rmdir()
            raise

    def _open(self) -> TensorDict:
        try:
            require_members(list_members(self.root, self.root), (_METADATA, _DIGESTS, _ROWS), self.root, self.root)
            entries = check_memmap(self.root / _ROWS, root=self.root)
        except DataError as error:
            raise DataError(f"{error} The cache is damaged: remove it, and it is computed again.") from error
        rows, numbers = self.num_rows, torch.float32
        expected = {
            ("latent",): MemmapEntry((rows, *self.identity["latent_shape"]), numbers),
            ("residual",): MemmapEntry((rows,), numbers),
            ("done",): MemmapEntry((rows,), torch.bool),
        }
        if entries != expected:
            found = {"/".join(key): f"{list(entry.shape)} {entry.dtype}" for key, entry in entries.items()}
            raise DataError(f"{self.root} is a damaged cache, of entries {found}: remove it.")
        return load_memmap(self.root / _ROWS)

    def _read_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each block, by its first row."""
        file = self.root / _DIGESTS
        if not os.path.lexists(file):
            digests = {str(first): self._digest(first) for first in self._blocks() if self._is_whole(first)}
            if digests:
                write_json(file, digests, indent=None)
            return digests
        found = read_json(file)
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise DataError(f"{file} is damaged: it must hold one text for each block. Remove the cache.")
        return found

    def _check_blocks(self) -> None:
        """Mark blocks whose checksum differs as missing."""
        right = {str(first): self._digest(first) for first in self._blocks() if str(first) in self._digests}
        right = {first: digest for first, digest in right.items() if self._digests[first] == digest}
        damaged = len(self._digests) - len(right)
        self._digests = right
        for first in self._blocks():
            rows, done = self._rows(first), str(first) in right
            if bool((self._column("done")[rows] != done).any()):
                self._column("done")[rows] = done
        if damaged:
            message = f"{self.root}: {damaged} blocks of latents are damaged and are computed anew."
            warnings.warn(message, DataWarning, stacklevel=3)

    def _blocks(self) -> range:
        """First rows of the blocks."""
        return range(0, self.num_rows, self.block_size)

    def _rows(self, first: int) -> slice:
        return slice(first, min(first + self.block_size, self.num_rows))

    def _is_whole(self, first: int) -> bool:
        rows = self._rows(first)
        finite = self._column("latent")[rows].isfinite().all() and self._column("residual")[rows].isfinite().all()
        return bool(finite and self._column("done")[rows].all())

    def _digest(self, first: int) -> str:
        digest = hashlib.sha256()
        for key in ("latent", "residual"):
            digest.update(self._column(key)[self._rows(first)].contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def missing(self) -> int:
        """Rows that are not yet computed."""
        return int((~self._column("done")).sum())

    def _column(self, key: str) -> Tensor:
        return self._table[key].as_subclass(Tensor)

    def fill(self, compute: AliasFn) -> Iterator[int]:
        """Compute the blocks that are missing.

        Args:
            compute: function of rows and a generator that returns latents and residuals; its draws must come from the
                generator.

        Yields:
            The number of complete rows after each block.

        Raises:
            DataError: if a latent or residual is not finite; its block stays missing.
        """
        for first in self._blocks():
            rows = self._rows(first)
            if str(first) in self._digests:
                continue
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
            latent, residual = compute(torch.arange(rows.start, rows.stop), generator)
            self._column("latent")[rows] = latent.detach().cpu().float()
            self._column("residual")[rows] = residual.detach().cpu().float()
            self._column("done")[rows] = True
            if not self._is_whole(first):
                raise DataError(
                    f"{self.root}: the search gave latents or residuals that are not finite for rows {rows.start} to "
                    f"{rows.stop - 1}: look at the flow's weights and at these rows of the demonstrations."
                )
            self._digests[str(first)] = self._digest(first)
            # Written after the rows: a kill in between leaves a block that is computed again.
            write_json(self.root / _DIGESTS, self._digests, indent=None)
            yield self.num_rows - self.missing

    def _whole(self, key: str) -> Tensor:
        if self.missing:
            raise DataError(f"{self.root} lacks {self.missing} of {self.num_rows} rows: fill it first.")
        return self._column(key)

    @property
    def latent(self) -> Tensor:
        """Latents ``[num_rows, S, A]``, memory-mapped.

        Raises:
            DataError: if rows are missing.
        """
        return self._whole("latent")

    @property
    def residual(self) -> Tensor:
        """Residuals ``[num_rows]``; raises as :attr:`latent` does."""
        return self._whole("residual")
