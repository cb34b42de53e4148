"""The end of writing: statistics, the sealed ledger and the completion mark, in this order."""

import json
from collections.abc import Mapping
from pathlib import Path

from cache.durable import canonical_json, sha256_of_bytes, write_durably
from cache.layout import STATISTICS_NAME, CacheHeader, CompleteMark, write_complete_mark
from cache.ledger import LedgerEntry, cache_digest, entry_path, read_entry
from cache.ledger_seal import encode_seal, seal_path
from cache.schema import RowSpace
from cache.side_files import side_files_sha256
from cache.sizes import space_errors
from cache.statistics import merge_sums

__all__ = ["declare_complete"]


def declare_complete(
    path: Path, header: CacheHeader, finished: Mapping[tuple[RowSpace, int], LedgerEntry]
) -> str:
    """Write what a complete cache has beside its shards; only under the cache's lock.

    Args:
        path: the cache folder.
        header: its header.
        finished: (row space, shard) → ledger entry, of every shard.

    Returns:
        The cache's digest, as ``CacheReader.digest`` gives it.

    Raises:
        CacheSpaceError: the disk is full.
    """
    statistics = _statistics(path, header)
    digest = cache_digest(header, finished)
    sizes = {key: entry_path(path, *key).stat().st_size for key in finished}
    seal = encode_seal(finished, sizes)
    with space_errors(path, len(statistics) + len(seal)):
        write_durably(path / STATISTICS_NAME, statistics)
        write_durably(seal_path(path), seal)
        write_complete_mark(
            path,
            CompleteMark(
                cache_digest=digest,
                statistics_sha256=sha256_of_bytes(statistics),
                seal_sha256=sha256_of_bytes(seal),
                side_files_sha256=side_files_sha256(path),
            ),
        )
    return digest


def _statistics(path: Path, header: CacheHeader) -> bytes:
    merged = {}
    for array in header.spec.arrays:
        shards = header.spec.shard_count(header.counts[array.rows])
        if array.has_channel_statistics and shards:
            merged[array.name] = merge_sums(
                read_entry(entry_path(path, array.rows, k), header).sums[array.name]
                for k in range(shards)
            )
    record = {name: statistics.to_json() for name, statistics in merged.items()}
    return json.dumps(json.loads(canonical_json(record)), indent=1).encode() + b"\n"
