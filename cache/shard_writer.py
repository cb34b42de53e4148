"""One shard onto the disk: checked, written, flushed, reread, published."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache.checksum import row_checksums
from cache.durable import sha256_of_file
from cache.encoding import all_finite, decoded_rows
from cache.errors import CacheCorruptError, CacheDataError
from cache.layout import CacheHeader
from cache.ledger import LedgerEntry, ShardFile, encode_entry, entry_path, publish_entry
from cache.mirror import Mirror
from cache.schema import ArraySpec, CacheSpec, RowSpace
from cache.sizes import check_room, shard_bytes, space_errors
from cache.statistics import sum_channels
from cache.store import ArrayStore

__all__ = ["ShardWriter"]

Values = npt.NDArray[np.generic]


class ShardWriter:
    """Writes shards of one cache. Who may write which shard is decided by whoever uses it.

    Args:
        path: the cache folder.
        header: its header.
        store: where its arrays lie.
        mirror: of a cache on an object store: a shard counts when it has arrived there.
    """

    def __init__(
        self, path: Path, header: CacheHeader, store: ArrayStore, *, mirror: Mirror | None = None
    ) -> None:
        self._path = path
        self._spec: CacheSpec = header.spec
        self._counts = header.counts
        self._store = store
        self._mirror = mirror

    def write(
        self,
        space: RowSpace,
        k: int,
        arrays: Mapping[str, Values],
        *,
        publish: Callable[[LedgerEntry], None] | None = None,
    ) -> LedgerEntry:
        """Write all arrays of one shard and publish it.

        Args:
            space: the row space.
            k: number of the shard.
            arrays: every array of the space → values (rows of the shard, *shape of a row), of
                exactly the stored type.
            publish: declares the written shard finished; by default with an entry in the ledger.

        Returns:
            The shard's ledger entry.

        Raises:
            ValueError: names, shapes or types are not those of the spec.
            CacheDataError: a value is not finite.
            CacheSpaceError: the disk is full; nothing of this shard stays.
            CacheCorruptError: the disk gave back other bytes than were written.
            CacheUnreachableError: the object store does not answer.
        """
        specs = self._check_arrays(space, k, arrays)
        needed = shard_bytes(self._spec, self._counts, space, k)
        with self._room(space, k, specs):
            check_room(self._path, needed)
            try:
                with space_errors(self._path, needed):
                    entry = self._write(space, k, specs, arrays)
                    (publish or self._publish)(entry)
            except BaseException:
                entry_path(self._path, space, k).unlink(missing_ok=True)
                for array in specs:
                    self._store.remove_shard(array, k)
                raise
        return entry

    def _room(
        self, space: RowSpace, k: int, specs: tuple[ArraySpec, ...]
    ) -> AbstractContextManager[None]:
        if self._mirror is None:
            return nullcontext()
        rows = len(self._rows(space, k))
        files = {
            self._store.shard_file(array, k): self._spec.shard_file_bytes(array, rows)
            for array in specs
        }
        return self._mirror.staged(files)

    def _publish(self, entry: LedgerEntry) -> None:
        if self._mirror is None:
            publish_entry(self._path, entry)
            return
        place = entry_path(self._path, entry.space, entry.shard)
        name = place.relative_to(self._path).as_posix()
        self._mirror.upload([*entry.arrays.values()])
        e_tag = self._mirror.remote.put(name, encode_entry(entry))
        publish_entry(self._path, entry)
        self._mirror.files.remember(name, e_tag)

    def _rows(self, space: RowSpace, k: int) -> range:
        return self._spec.shard_rows(k, self._counts[space])

    def _check_arrays(
        self, space: RowSpace, k: int, arrays: Mapping[str, Values]
    ) -> tuple[ArraySpec, ...]:
        specs = self._spec.arrays_of(space)
        names = {array.name for array in specs}
        if set(arrays) != names:
            raise ValueError(f"{space} needs arrays {sorted(names)}, not {sorted(arrays)}")
        rows = self._rows(space, k)
        for array in specs:
            values = arrays[array.name]
            shape = (len(rows), *array.shape)
            if values.shape != shape or values.dtype != np.dtype(array.dtype):
                raise ValueError(
                    f"{array.name} of {space} shard {k} is {values.dtype} {values.shape}, "
                    f"not {array.dtype} {shape}"
                )
            if array.is_float:
                _check_finite(array, rows, values)
        return specs

    def _write(
        self,
        space: RowSpace,
        k: int,
        specs: tuple[ArraySpec, ...],
        arrays: Mapping[str, Values],
    ) -> LedgerEntry:
        rows = self._rows(space, k)
        files = {}
        for array in specs:
            values = np.ascontiguousarray(arrays[array.name])
            self._store.remove_shard(array, k)
            self._store.write_shard(array, k, values)
            name = self._store.shard_file(array, k)
            stored = self._store.read_rows(array, k, np.arange(rows.start, rows.stop))
            if not _same_bytes(stored, values):
                raise CacheCorruptError(
                    f"{self._path / name}: reread values differ from those written. The disk or "
                    "the memory is failing: check them, then go on: efficient-medsam2 precompute"
                )
            files[array.name] = ShardFile(
                file=name,
                bytes=(self._path / name).stat().st_size,
                sha256=sha256_of_file(self._path / name),
                row_crc32c=row_checksums(values),
            )
        return LedgerEntry(
            space=space,
            shard=k,
            start=rows.start,
            stop=rows.stop,
            fingerprint=self._spec.fingerprint(),
            arrays=files,
            sums={
                array.name: sum_channels(decoded_rows(array, arrays))
                for array in specs
                if array.has_channel_statistics
            },
        )


def _same_bytes(one: Values, other: Values) -> bool:
    """Whether two arrays of the same rows hold the same bytes; nothing large is made for it."""
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(_bytes_of(mine), _bytes_of(its)) for mine, its in pairs)


def _bytes_of(row: Values) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(row).reshape(-1).view(np.uint8)


def _check_finite(array: ArraySpec, rows: range, values: Values) -> None:
    for row, value in zip(rows, values, strict=True):
        if not all_finite(array, value):
            hint = " (float16 ends at 65504)" if array.dtype == "float16" else ""
            raise CacheDataError(
                f"{array.name} row {row} of {array.rows} has values that are not finite{hint}: "
                "the teacher's output for it is not usable. Look at that slice's image, or store "
                "this array as float32: efficient-medsam2 precompute --set cache.dtype=fp32"
            )
