"""Bytes of everything in a cache that is not a row: index, ledger, metadata, statistics.

In a small cache they are a good part of it. All are counted on what would be written, before
anything is; only the digits of the channel sums are not known in advance.

Letters: C channels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache.durable import sha256_of_bytes
from cache.index import CacheIndex
from cache.index_files import encode_index
from cache.layout import CacheHeader, encode_header
from cache.ledger_entry import LedgerEntry, ShardFile, encode_entry
from cache.schema import ROW_SPACES, CacheSpec, RowSpace
from cache.statistics import ChannelSums
from cache.zarr_store import ZarrStore

__all__ = ["ledger_bytes", "overhead_bytes"]

_DIGEST = "0" * 64
_TYPICAL_SUM = -123.4567890123456
"""Sums of float16 values take some 18 characters."""

_COMPLETE_BYTES = 345

_SEAL_BYTES = 5000
"""Of the sealed table's schema and statistics."""

_SEALED_BYTES = 50
"""Of the sealed table a file, besides 4 bytes a row."""

_STATISTICS_DIGITS = 18 + 5
"""Of a mean or deviation in ``statistics.json``: digits, indent, comma, line end."""


def overhead_bytes(spec: CacheSpec, index: CacheIndex) -> dict[str, int]:
    """Give the bytes of a finished cache's files besides its shards.

    Args:
        spec: the planned cache.
        index: all its rows.

    Returns:
        ``index`` (Parquet tables), ``ledger`` (one file a shard) and ``metadata`` (header, Zarr
        metadata, statistics, end mark).
    """
    files = encode_index(index)
    header = CacheHeader(
        spec=spec,
        counts=index.counts(),
        index_sha256=_DIGEST,
        index_files={
            name: {"bytes": len(content), "sha256": sha256_of_bytes(content)}
            for name, content in files.items()
        },
    )
    store = ZarrStore(Path(), spec, header.counts)
    metadata = sum(len(content) for content in store.metadata().values())
    return {
        "index": sum(len(content) for content in files.values()),
        "ledger": ledger_bytes(spec, header.counts),
        "metadata": len(encode_header(header))
        + metadata
        + _statistics_bytes(header)
        + _COMPLETE_BYTES,
    }


def ledger_bytes(spec: CacheSpec, counts: Mapping[RowSpace, int]) -> int:
    """Give the bytes of all ledger files of a finished cache.

    The files of one row space differ by digits of numbers alone.
    """
    total, store = _SEAL_BYTES, ZarrStore(Path(), spec, counts)
    for space in ROW_SPACES:
        arrays, shards = spec.arrays_of(space), spec.shard_count(counts[space])
        if not shards:
            continue
        rows = spec.shard_rows(shards // 2, counts[space])
        entry = LedgerEntry(
            space=space,
            shard=shards // 2,
            start=rows.start,
            stop=rows.stop,
            fingerprint=_DIGEST,
            arrays={
                array.name: ShardFile(
                    file=store.shard_file(array, shards // 2),
                    bytes=spec.shard_file_bytes(array, len(rows)),
                    sha256=_DIGEST,
                    row_crc32c=np.zeros(len(rows), dtype=np.uint32),
                )
                for array in arrays
            },
            sums={
                array.name: ChannelSums(
                    count=len(rows) * array.shape[1] * array.shape[2],
                    total=np.full(array.shape[0], _TYPICAL_SUM),
                    squares=np.full(array.shape[0], _TYPICAL_SUM),
                )
                for array in arrays
                if array.has_channel_statistics
            },
        )
        sealed = len(arrays) * (_SEALED_BYTES + 4 * len(rows))
        total += shards * (len(encode_entry(entry)) + sealed)
    return total


def _statistics_bytes(header: CacheHeader) -> int:
    channels = sum(
        array.shape[0]
        for array in header.spec.arrays
        if array.has_channel_statistics and header.counts[array.rows]
    )
    return 2 * channels * _STATISTICS_DIGITS
