"""Rows of a cache whose shards come and go in a mirror.

Where all shards of a batch are there, they are read at once and nothing is copied. Else the batch
is read shard by shard, so that no thread ever keeps one shard while it waits for another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import CacheCorruptError
from cache.ledger_entry import ShardFile
from cache.mirror import Mirror
from cache.open_shards import Lookup
from cache.schema import ArraySpec

__all__ = ["MirroredReader"]

Outs = Sequence[tuple[ArraySpec, npt.NDArray[Any]]]
Fill = Callable[[Sequence[int], Outs], None]


class MirroredReader:
    """Reads rows through a mirror. May be used from several threads.

    Args:
        mirror: of the cache.
        rows_per_shard: rows of a full shard.
        lookup: what the ledger says of (array, shard, row); raises where it is not finished.
        fill: reads rows whose files are there.
        forget: called with (array, shard) when its file is removed.
    """

    def __init__(
        self,
        mirror: Mirror,
        *,
        rows_per_shard: int,
        lookup: Lookup,
        fill: Fill,
        forget: Callable[[str, int], None],
    ) -> None:
        self._mirror = mirror
        self._rows_per_shard = rows_per_shard
        self._lookup = lookup
        self._fill = fill
        self._forget = forget
        self._files: dict[tuple[str, int], ShardFile] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        mirror.on_removal(self._removed)

    def fill(self, rows: npt.NDArray[np.int64], outs: Outs) -> None:
        """Read the same rows of several arrays.

        Raises:
            CacheMissingError: a row was never written.
            CacheCorruptError: a shard is missing in the store, or damaged there.
            CacheUnreachableError: the store does not answer.
        """
        files = self._needed(rows, [array for array, _ in outs])
        with self._mirror.hold_all(files) as there:
            if there:
                try:
                    self._fill(rows.tolist(), outs)
                    return
                except CacheCorruptError:
                    pass  # damaged on this disk: piece by piece it is found and fetched again
        self._mirror.expect(files)
        for array, out in outs:
            shards = rows // self._rows_per_shard
            for shard in np.unique(shards).tolist():
                positions = np.flatnonzero(shards == shard)
                piece = np.empty((len(positions), *array.shape), dtype=array.dtype)
                self._fill_piece(array, shard, rows[positions], piece)
                out[positions] = piece

    def expect(self, rows: npt.NDArray[np.int64], arrays: Sequence[ArraySpec]) -> None:
        """Have the shards of rows fetched in the background, in the order of the rows."""
        self._mirror.expect(self._needed(rows, arrays))

    def _fill_piece(
        self,
        array: ArraySpec,
        shard: int,
        rows: npt.NDArray[np.int64],
        piece: npt.NDArray[Any],
    ) -> None:
        file = self._file(array, shard, int(rows[0]))
        try:
            with self._mirror.hold(file):
                self._fill(rows.tolist(), [(array, piece)])
        except CacheCorruptError:
            self._mirror.discard(file)
            with self._mirror.hold(file):
                self._fill(rows.tolist(), [(array, piece)])

    def _needed(self, rows: npt.NDArray[np.int64], arrays: Sequence[ArraySpec]) -> list[ShardFile]:
        shards, first = np.unique(rows // self._rows_per_shard, return_index=True)
        in_order = np.argsort(first)
        return [
            self._file(array, int(shards[i]), int(rows[first[i]]))
            for i in in_order
            for array in arrays
        ]

    def _file(self, array: ArraySpec, shard: int, row: int) -> ShardFile:
        key = (array.name, shard)
        file = self._files.get(key)
        if file is None:
            file = self._lookup(array, shard, row)
            self._keys[file.file] = key
            self._files[key] = file
        return file

    def _removed(self, name: str) -> None:
        key = self._keys.get(name)
        if key is not None:
            self._forget(*key)
