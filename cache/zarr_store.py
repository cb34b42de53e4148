"""Arrays as a standard Zarr v3 group: sharded, one row an inner chunk, crc32c and no compression.

Any Zarr v3 reader opens ``arrays/``. Lossless codecs are left out on purpose: they save a fifth
of such features at best and cost several times the reading speed.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore, MemoryStore

from cache.durable import flush_file, flush_folder, write_durably
from cache.errors import CacheCorruptError
from cache.layout import ARRAYS_FOLDER
from cache.schema import ArraySpec, CacheSpec, RowSpace

__all__ = ["ZarrStore"]

Values = npt.NDArray[np.generic]


class ZarrStore:
    """The ``arrays`` group of one cache; see ``cache.store.ArrayStore``.

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
        self._readable: dict[str, zarr.Array[Any]] = {}

    def prepare(self) -> None:
        """Write the group's and the arrays' metadata where it is missing or wrong."""
        self._folder.mkdir(exist_ok=True)
        wrong = {array.name for array in self._spec.arrays if self.problem(array)}
        for key, content in self._metadata().items():
            file = self._folder / key
            name = file.parent.name
            if name in wrong or (file.parent == self._folder and not _same(file, content)):
                file.parent.mkdir(exist_ok=True)
                write_durably(file, content)
        flush_folder(self._folder)
        flush_folder(self._cache)
        self._readable.clear()

    def _metadata(self) -> dict[str, bytes]:
        # Made in memory, so that it reaches the disk in our durable way and never touches shards.
        memory: dict[str, Any] = {}
        group = zarr.open_group(MemoryStore(memory), mode="w", zarr_format=3)
        for array in self._spec.arrays:
            chunk = (1, *array.shape)
            group.create_array(
                array.name,
                shape=(self._counts[array.rows], *array.shape),
                dtype=array.dtype,
                chunks=chunk,
                shards=(self._spec.rows_per_shard, *array.shape),
                filters=None,
                compressors=Crc32cCodec(),
                serializer=BytesCodec(),
                fill_value=0,
            )
        return {key: buffer.to_bytes() for key, buffer in memory.items()}

    def problem(self, array: ArraySpec) -> str | None:
        """Say why an array's metadata is not what the spec asks, or give ``None``."""
        try:
            opened = self._open(array)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            return f"cannot be opened ({type(error).__name__}: {error})"
        found = {
            "shape": opened.shape,
            "dtype": opened.dtype.name,
            "shards": opened.shards,
            "chunks": opened.chunks,
            "codecs": _codec_names(opened),
            "shard file": opened.metadata.encode_chunk_key((0,) * opened.ndim),
        }
        wanted = {
            "shape": (self._counts[array.rows], *array.shape),
            "dtype": array.dtype,
            "shards": (self._spec.rows_per_shard, *array.shape),
            "chunks": (1, *array.shape),
            "codecs": ["ShardingCodec", "BytesCodec", "Crc32cCodec"],
            "shard file": self._key(array, 0),
        }
        for key, value in wanted.items():
            if found[key] != value:
                return f"has {key} {found[key]}, not {value}"
        return None

    def shard_file(self, array: ArraySpec, shard: int) -> str:
        """Give ``arrays/<name>/c/<shard>/0/...``."""
        return f"{ARRAYS_FOLDER}/{array.name}/{self._key(array, shard)}"

    @staticmethod
    def _key(array: ArraySpec, shard: int) -> str:
        return "/".join(["c", str(shard), *("0" for _ in array.shape)])

    def _shard_folder(self, array: ArraySpec, shard: int) -> Path:
        return self._folder / array.name / "c" / str(shard)

    def write_shard(self, array: ArraySpec, shard: int, values: Values) -> None:
        """Write a whole shard and flush the file and every folder above it.

        Shards of zeros are stored too: an absent file must mean an absent shard.
        """
        rows = self._spec.shard_rows(shard, self._counts[array.rows])
        store = LocalStore(self._folder)
        opened = zarr.open_array(store, path=array.name, mode="r+", zarr_format=3)
        # A setting of the open array, not of the stored one; ``open_array`` ignores it.
        opened = opened.with_config({"write_empty_chunks": True})
        opened[rows.start : rows.stop] = values
        file = self._cache / self.shard_file(array, shard)
        flush_file(file)
        folder = file.parent
        while folder != self._folder:
            flush_folder(folder)
            folder = folder.parent

    def read_rows(self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]) -> Values:
        """Read rows of one shard; neighbouring rows are read in one piece."""
        distinct, position = np.unique(rows, return_inverse=True)
        pieces = np.split(distinct, np.flatnonzero(np.diff(distinct) != 1) + 1)
        try:
            opened = self._readable.get(array.name)
            if opened is None:
                opened = self._readable[array.name] = self._open(array)
            values = [np.asarray(opened[int(piece[0]) : int(piece[-1]) + 1]) for piece in pieces]
        except (ValueError, RuntimeError, OSError) as error:
            raise CacheCorruptError(
                f"{self._cache / self.shard_file(array, shard)}: rows of {array.name}, shard "
                f"{shard} of {array.rows}, cannot be read: {error}. Find all damage and mend it: "
                f"efficient-medsam2 cache verify --repair {self._cache}, "
                "then efficient-medsam2 precompute"
            ) from error
        together = values[0] if len(values) == 1 else np.concatenate(values)
        return together if len(rows) == len(distinct) and _ascending(rows) else together[position]

    def stored_shards(self, array: ArraySpec) -> tuple[int, ...]:
        """Give the shards that have a folder."""
        folder = self._folder / array.name / "c"
        if not folder.is_dir():
            return ()
        return tuple(sorted(int(item.name) for item in folder.iterdir() if item.name.isdigit()))

    def remove_shard(self, array: ArraySpec, shard: int) -> None:
        """Remove a shard's folder."""
        folder = self._shard_folder(array, shard)
        if folder.exists():
            shutil.rmtree(folder)

    def remove_leftovers(self, array: ArraySpec, shard: int) -> tuple[str, ...]:
        """Remove zarr's unfinished ``*.partial`` files of a shard."""
        leftovers = sorted(self._shard_folder(array, shard).rglob("*.partial"))
        for file in leftovers:
            file.unlink()
        return tuple(file.relative_to(self._cache).as_posix() for file in leftovers)

    def _open(self, array: ArraySpec) -> "zarr.Array[Any]":
        store = LocalStore(self._folder, read_only=True)
        return zarr.open_array(store, path=array.name, mode="r", zarr_format=3)


def _ascending(rows: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(rows) > 0).all())


def _codec_names(opened: "zarr.Array[Any]") -> list[str]:
    codecs = getattr(opened.metadata, "codecs", ())
    names = [type(codec).__name__ for codec in codecs]
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            names += [type(inner).__name__ for inner in codec.codecs]
    return names


def _same(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content
