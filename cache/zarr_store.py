"""Arrays as a standard Zarr v3 group: sharded, one row an inner chunk, crc32c and no compression.

Any Zarr v3 reader opens ``arrays/``. Lossless codecs are left out on purpose: they save a fifth
of such features at best and cost several times the reading speed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore, MemoryStore

from cache.checksum import CRC_BYTES, row_checksums
from cache.direct_read import read_shard
from cache.durable import flush_folder, write_durably, write_pieces
from cache.encoding import ENCODING_ATTRIBUTES
from cache.errors import CacheCorruptError
from cache.layout import ARRAYS_FOLDER
from cache.schema import ArraySpec, CacheSpec, RowSpace
from cache.shard_index import (
    ROW_ALIGNMENT,
    ShardIndex,
    read_zarr_index,
    zarr_index,
    zarr_row_stride,
)
from cache.store import damaged_shard

__all__ = ["ZarrStore"]

Values = npt.NDArray[np.generic]

_PARTIAL = ".partial"


class ZarrStore:
    """The ``arrays`` group of one cache; see ``cache.store.ArrayStore``.

    Args:
        cache: the cache folder.
        spec: its spec.
        counts: rows of each row space.
        row_alignment: bytes at a multiple of which long rows start in the shards that it writes.
    """

    def __init__(
        self,
        cache: Path,
        spec: CacheSpec,
        counts: Mapping[RowSpace, int],
        *,
        row_alignment: int = ROW_ALIGNMENT,
    ) -> None:
        self._cache = cache
        self._folder = cache / ARRAYS_FOLDER
        self._spec = spec
        self._counts = counts
        self._row_alignment = row_alignment
        self._readable: dict[str, zarr.Array[Any]] = {}
        self._direct: dict[str, bool] = {}
        self._written: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Write the group's and the arrays' metadata where it is missing or wrong."""
        self._folder.mkdir(exist_ok=True)
        wrong = {array.name for array in self._spec.arrays if self.problem(array)}
        for key, content in self.metadata().items():
            file = self._folder / key
            name = file.parent.name
            if name in wrong or (file.parent == self._folder and not _same(file, content)):
                file.parent.mkdir(exist_ok=True)
                write_durably(file, content)
        flush_folder(self._folder)
        flush_folder(self._cache)
        self._readable.clear()
        self._direct.clear()

    def metadata(self) -> dict[str, bytes]:
        """Give the content of the group's metadata files by their path in ``arrays/``."""
        # Made in memory, so that it reaches the disk in our durable way and never touches shards.
        memory: dict[str, Any] = {}
        group = zarr.open_group(MemoryStore(memory), mode="w", zarr_format=3)
        for array in self._spec.arrays:
            self._create(group, array)
        return {key: buffer.to_bytes() for key, buffer in memory.items()}

    def _create(self, group: zarr.Group, array: ArraySpec) -> "zarr.Array[Any]":
        return group.create_array(
            array.name,
            shape=(self._counts[array.rows], *array.shape),
            dtype=array.dtype,
            chunks=(1, *array.shape),
            shards=(self._spec.rows_per_shard, *array.shape),
            filters=None,
            compressors=Crc32cCodec(),
            serializer=BytesCodec(),
            fill_value=0,
            attributes=dict(ENCODING_ATTRIBUTES.get(array.encoding, {})),
        )

    def _wanted(self, array: ArraySpec) -> "zarr.Array[Any]":
        """The array as it would be made now, spelt by the zarr that reads the stored one."""
        memory: dict[str, Any] = {}
        return self._create(zarr.open_group(MemoryStore(memory), mode="w", zarr_format=3), array)

    def problem(self, array: ArraySpec) -> str | None:
        """Say why an array's metadata is not what the spec asks, or give ``None``."""
        problem = self._layout_problem(array)
        if problem:
            return problem
        found = self._open(array).metadata.to_dict()
        written = self._written.get(array.name)
        if written is None:
            written = self._written[array.name] = self._wanted(array).metadata.to_dict()
        # Codecs were compared by what they do; versions of zarr spell them differently.
        for key in sorted((found.keys() | written.keys()) - {"codecs"}):
            if found.get(key) != written.get(key):
                return f"has {key} {found.get(key)}, not {written.get(key)}"
        return None

    def _layout_problem(self, array: ArraySpec) -> str | None:
        """Say why rows do not lie where we would look for them, or give ``None``."""
        try:
            found = _properties(self._open(array))
        except Exception as error:  # noqa: BLE001 - zarr raises anything on damaged metadata
            return f"cannot be opened ({type(error).__name__}: {error})"
        wanted = {
            "shape": (self._counts[array.rows], *array.shape),
            "dtype": array.dtype,
            "shards": (self._spec.rows_per_shard, *array.shape),
            "chunks": (1, *array.shape),
            "codecs": [
                "index at end",
                *("index little-endian", "index Crc32cCodec"),
                *("little-endian", "Crc32cCodec"),
            ],
            "shard file": self._key(array, 0),
            "encoding": array.encoding,
        }
        for key, value in wanted.items():
            if found[key] != value:
                return f"has {key} {found[key]}, not {value}"
        return None

    def group_problem(self) -> str | None:
        """Say why the group itself does not open with Zarr, or give ``None``."""
        try:
            record = json.loads((self._folder / "zarr.json").read_bytes())
        except (OSError, ValueError) as error:
            return f"cannot be opened ({type(error).__name__}: {error})"
        wanted = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        if not isinstance(record, dict) or {**record, **wanted} != record:
            return "arrays/zarr.json does not describe a Zarr v3 group"
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
        """Write a whole shard under a temporary name, flush it, and rename it.

        The rows stand in order, each followed by its crc32c and zeros up to where the next one
        starts, then the index, which any reader of Zarr follows. Shards of zeros are stored too:
        an absent file must mean an absent shard.
        """
        plain = np.ascontiguousarray(values)
        rows = plain.reshape(len(plain), -1).view(np.uint8)
        file = self._cache / self.shard_file(array, shard)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
        with partial.open("wb", buffering=0) as opened:
            alignment = self._row_alignment
            gap = zarr_row_stride(array.row_bytes, alignment) - array.row_bytes
            trailers = np.zeros((len(plain), gap), dtype=np.uint8)
            checksums = row_checksums(plain).astype("<u4").view(np.uint8)
            trailers[:, :CRC_BYTES] = checksums.reshape(-1, CRC_BYTES)
            pairs = zip(rows, trailers, strict=True)
            write_pieces(opened.fileno(), [piece for pair in pairs for piece in pair])
            index = zarr_index(
                array.row_bytes, len(plain), self._spec.rows_per_shard, alignment=alignment
            )
            write_pieces(opened.fileno(), [np.frombuffer(index, dtype=np.uint8)])
            os.fsync(opened.fileno())
        partial.replace(file)
        folder = file.parent
        while folder != self._folder:
            flush_folder(folder)
            folder = folder.parent

    def reads_directly(self, array: ArraySpec) -> bool:
        """Whether the array's metadata is what this version writes, or says the same."""
        known = self._direct.get(array.name)
        if known is None:
            known = self._direct[array.name] = self._layout_problem(array) is None
        return known

    def read_index(self, array: ArraySpec, shard: int, descriptor: int, size: int) -> ShardIndex:
        """Read and check the index at the end of a shard's file."""
        return read_zarr_index(
            descriptor,
            size,
            row_bytes=array.row_bytes,
            rows=len(self._spec.shard_rows(shard, self._counts[array.rows])),
            slots=self._spec.rows_per_shard,
        )

    def read_rows(self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]) -> Values:
        """Read rows of one shard."""
        if not self.reads_directly(array):
            return self.read_rows_plainly(array, shard, rows)
        return read_shard(
            self._cache, self, array, shard, rows_per_shard=self._spec.rows_per_shard
        )(rows)

    def read_rows_plainly(
        self, array: ArraySpec, shard: int, rows: npt.NDArray[np.int64]
    ) -> Values:
        """Read rows of one shard through zarr; neighbouring rows are read in one piece."""
        distinct, position = np.unique(rows, return_inverse=True)
        pieces = np.split(distinct, np.flatnonzero(np.diff(distinct) != 1) + 1)
        try:
            opened = self._readable.get(array.name)
            if opened is None:
                opened = self._readable[array.name] = self._open(array)
            values = [np.asarray(opened[int(piece[0]) : int(piece[-1]) + 1]) for piece in pieces]
        except Exception as error:
            raise self.damage(array, shard, str(error)) from error
        together = values[0] if len(values) == 1 else np.concatenate(values)
        if together.shape[1:] != array.shape or together.dtype != np.dtype(array.dtype):
            raise self.damage(
                array,
                shard,
                f"rows are {together.dtype} {together.shape[1:]}, not {array.dtype} {array.shape}",
            )
        return together if len(rows) == len(distinct) and _ascending(rows) else together[position]

    def damage(self, array: ArraySpec, shard: int, reason: str) -> CacheCorruptError:
        """Make the error of a shard whose bytes cannot be trusted."""
        return damaged_shard(self._cache, self.shard_file(array, shard), array, shard, reason)

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
        """Remove unfinished ``*.partial`` files of a shard, ours and zarr's."""
        leftovers = sorted(self._shard_folder(array, shard).rglob(f"*{_PARTIAL}"))
        for file in leftovers:
            file.unlink()
        return tuple(file.relative_to(self._cache).as_posix() for file in leftovers)

    def _open(self, array: ArraySpec) -> "zarr.Array[Any]":
        store = LocalStore(self._folder, read_only=True)
        return zarr.open_array(store, path=array.name, mode="r", zarr_format=3)


def _properties(opened: "zarr.Array[Any]") -> dict[str, Any]:
    return {
        "shape": opened.shape,
        "dtype": opened.dtype.name,
        "shards": opened.shards,
        "chunks": opened.chunks,
        "codecs": _codec_names(opened),
        "shard file": opened.metadata.encode_chunk_key((0,) * opened.ndim),
        "encoding": opened.attrs.get("encoding", "plain"),
    }


def _ascending(rows: npt.NDArray[np.int64]) -> bool:
    return bool((np.diff(rows) > 0).all())


def _codec_names(opened: "zarr.Array[Any]") -> list[str]:
    (codec, *others) = getattr(opened.metadata, "codecs", ()) or (None,)
    if others or not isinstance(codec, ShardingCodec):
        return [type(item).__name__ for item in (codec, *others)]
    return [
        f"index at {codec.index_location.value}",
        *(f"index {_codec_name(item)}" for item in codec.index_codecs),
        *map(_codec_name, codec.codecs),
    ]


def _codec_name(codec: object) -> str:
    if isinstance(codec, BytesCodec):
        # One byte has no order, and none is stored.
        return "little-endian" if codec.endian is None else f"{codec.endian.value}-endian"
    return type(codec).__name__


def _same(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content
