"""Arrays as HDF5 files: one file a shard and array, one row a chunk, no compression.

``arrays/<name>/<shard>.h5`` has one dataset ``values``; any HDF5 reader opens it. Its rows lie
one after the other behind a header of ``HDF5_HEADER_BYTES``, which is checked when it is
written. HDF5 lets files be longer than it needs, so behind the rows stand the crc32c of every
row, of the header, and of these checksums themselves: the file can be read and verified without
the HDF5 library. Earlier formats of HDF5 do not open when a writer was killed; a temporary name,
a flush and a rename keep such files from being seen.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.checksum import CRC_BYTES, crc32c, row_checksums
from cache.direct_read import read_shard
from cache.durable import flush_file, flush_folder, write_pieces
from cache.encoding import ENCODING_ATTRIBUTES
from cache.errors import CacheCorruptError
from cache.layout import ARRAYS_FOLDER
from cache.schema import HDF5_HEADER_BYTES, ArraySpec, CacheSpec, RowSpace
from cache.shard_index import ShardIndex
from cache.store import damaged_shard

__all__ = ["DATASET_NAME", "Hdf5Store"]

Values = npt.NDArray[np.generic]

DATASET_NAME = "values"
_PARTIAL = ".partial"


class Hdf5Store:
    """The HDF5 files of one cache; see ``cache.store.ArrayStore``.

    Args:
        cache: the cache folder.
        spec: its spec.
        counts: rows of each row space.
    """

    def __init__(self, cache: Path, spec: CacheSpec, counts: Mapping[RowSpace, int]) -> None:
        self._cache = cache
        self._folder = cache / ARRAYS_FOLDER
        self._spec = spec
        self._counts = counts

    def prepare(self) -> None:
        """Make the folders."""
        self._folder.mkdir(exist_ok=True)
        for array in self._spec.arrays:
            (self._folder / array.name).mkdir(exist_ok=True)
        flush_folder(self._folder)
        flush_folder(self._cache)

    def metadata(self) -> dict[str, bytes]:
        """Give nothing: every file describes itself."""
        return {}

    def problem(self, array: ArraySpec) -> str | None:
        """Say that an array's folder is missing, or give ``None``."""
        folder = self._folder / array.name
        return None if folder.is_dir() else f"cannot be opened ({folder} is missing)"

    def group_problem(self) -> str | None:
        """Give nothing: the files need nothing around them."""
        return None

    def shard_file(self, array: ArraySpec, shard: int) -> str:
        """Give ``arrays/<name>/<shard>.h5``."""
        return f"{ARRAYS_FOLDER}/{array.name}/{shard}.h5"

    def _rows(self, array: ArraySpec, shard: int) -> range:
        return self._spec.shard_rows(shard, self._counts[array.rows])

    def write_shard(self, array: ArraySpec, shard: int, values: Values) -> None:
        """Write a whole shard under a temporary name, flush it, and rename it."""
        plain = np.ascontiguousarray(values)
        file = self._cache / self.shard_file(array, shard)
        partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
        _write_dataset(partial, plain, ENCODING_ATTRIBUTES.get(array.encoding, {}))
        checksums = row_checksums(plain).astype("<u4").tobytes()
        with partial.open("r+b") as opened:
            header = opened.read(HDF5_HEADER_BYTES)
            opened.seek(0, os.SEEK_END)
            checksums += crc32c(header).to_bytes(CRC_BYTES, "little")
            checksums += crc32c(checksums).to_bytes(CRC_BYTES, "little")
            write_pieces(opened.fileno(), [np.frombuffer(checksums, dtype=np.uint8)])
        flush_file(partial)
        partial.replace(file)
        flush_folder(file.parent)

    def reads_directly(self, array: ArraySpec) -> bool:
        """Give true: every file says for itself where its rows are."""
        return True

    def read_index(self, array: ArraySpec, shard: int, descriptor: int, size: int) -> ShardIndex:
        """Read and check the checksums at the end of a shard's file, and its header."""
        rows = len(self._rows(array, shard))
        if size != self._spec.shard_file_bytes(array, rows):
            wanted = self._spec.shard_file_bytes(array, rows)
            raise ValueError(f"the file has {size} bytes, not {wanted}")
        tail = CRC_BYTES * (rows + 2)
        header = os.pread(descriptor, HDF5_HEADER_BYTES, 0)
        content = os.pread(descriptor, tail, size - tail)
        checksums = np.frombuffer(content, dtype="<u4")
        if len(checksums) != rows + 2 or crc32c(content[:-CRC_BYTES]) != checksums[-1]:
            raise ValueError("the checksums at the file's end do not fit their own checksum")
        if crc32c(header) != checksums[-2]:
            raise ValueError("the file's header does not fit its checksum")
        end = HDF5_HEADER_BYTES + rows * array.row_bytes
        return ShardIndex(
            offsets=range(HDF5_HEADER_BYTES, end, array.row_bytes),
            gap=0,
            checksums=checksums[:rows],
        )

    def read_rows(self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]) -> Values:
        """Read rows of one shard."""
        return read_shard(
            self._cache, self, array, shard, rows_per_shard=self._spec.rows_per_shard
        )(rows)

    def read_rows_plainly(
        self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]
    ) -> Values:
        """Read rows of one shard through h5py, which knows no checksums of values."""
        import h5py

        inside = rows - self._rows(array, shard).start
        distinct, position = np.unique(inside, return_inverse=True)
        try:
            with h5py.File(self._cache / self.shard_file(array, shard), "r") as opened:
                values = np.asarray(opened[DATASET_NAME][distinct])
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise self.damage(array, shard, str(error)) from error
        return values[position]

    def damage(self, array: ArraySpec, shard: int, reason: str) -> CacheCorruptError:
        """Make the error of a shard whose bytes cannot be trusted."""
        return damaged_shard(self._cache, self.shard_file(array, shard), array, shard, reason)

    def stored_shards(self, array: ArraySpec) -> tuple[int, ...]:
        """Give the shards that have a file."""
        folder = self._folder / array.name
        if not folder.is_dir():
            return ()
        names = (item.name.split(".") for item in folder.iterdir())
        found = {int(name[0]) for name in names if name[0].isdigit() and name[1:2] == ["h5"]}
        return tuple(sorted(found))

    def _leftovers(self, array: ArraySpec, shard: int) -> list[Path]:
        return sorted((self._folder / array.name).glob(f"{shard}.h5.*{_PARTIAL}"))

    def remove_shard(self, array: ArraySpec, shard: int) -> None:
        """Remove a shard's file and what a killed writer left of it."""
        for file in (self._cache / self.shard_file(array, shard), *self._leftovers(array, shard)):
            file.unlink(missing_ok=True)

    def remove_leftovers(self, array: ArraySpec, shard: int) -> tuple[str, ...]:
        """Remove unfinished files of a shard."""
        leftovers = self._leftovers(array, shard)
        for file in leftovers:
            file.unlink()
        return tuple(file.relative_to(self._cache).as_posix() for file in leftovers)


def _write_dataset(file: Path, values: Values, attributes: Mapping[str, str]) -> None:
    import h5py

    rows, row_bytes = len(values), values[0].nbytes
    with h5py.File(file, "w", libver="latest") as opened:
        settings: Any = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, *values.shape[1:]))
        # All chunks at once, in their order, and never written twice.
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        settings.set_obj_track_times(False)
        dataset: Any = h5py.h5d.create(
            opened.id,
            DATASET_NAME.encode(),
            h5py.h5t.py_create(values.dtype, logical=True),
            h5py.h5s.create_simple(values.shape),
            settings,
        )
        for name, text in attributes.items():
            h5py.Dataset(dataset).attrs[name] = np.bytes_(text)
        for row in range(rows):
            dataset.write_direct_chunk((row, *(0 for _ in values.shape[1:])), values[row].tobytes())
        chunks = (dataset.get_chunk_info(row) for row in range(rows))
        offsets = {chunk.chunk_offset[0]: chunk.byte_offset for chunk in chunks}
    wanted = {row: HDF5_HEADER_BYTES + row * row_bytes for row in range(rows)}
    size = file.stat().st_size
    if offsets != wanted or size != HDF5_HEADER_BYTES + rows * row_bytes:
        # A property of the library, not of the data: nothing that a retry could mend.
        raise RuntimeError(
            f"{file}: HDF5 {h5py.version.hdf5_version} lays files out in a way that this version "
            "does not know (rows do not follow a header of 2048 bytes). Use the other format: "
            "efficient-medsam2 precompute --set cache.format=zarr"
        )
