"""Ledger entries of shards that workers have uploaded, published by the writer of the cache.

The writer alone, who holds the cache's lock, writes the ledger of a cache on an object store.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cache.durable import write_durably
from cache.errors import CacheCorruptError, CacheMissingError, CacheStaleError
from cache.layout import CacheHeader
from cache.ledger_entry import EntryReader, LedgerEntry, entry_path, without_sums
from cache.remote_claims import made_entry, remove_claims
from cache.remote_lock import WORKERS_FOLDER, RemoteLock
from cache.schema import ROW_SPACES, RowSpace

if TYPE_CHECKING:
    from cache.mirror import Mirror

__all__ = ["publish_made", "take_over_made"]

_CLAIM_NAME = re.compile(
    rf"^{WORKERS_FOLDER}/([0-9a-f]+)/({'|'.join(ROW_SPACES)})-(\d{{6,}})\.json$"
)


def publish_made(
    mirror: "Mirror", lock: RemoteLock, reader: EntryReader, space: RowSpace, shards: Sequence[int]
) -> list[LedgerEntry]:
    """Publish shards that workers of this writer say they have uploaded.

    Args:
        mirror: the writer's.
        lock: of the cache, held.
        reader: of its ledger entries.
        space: the row space.
        shards: of it.

    Returns:
        Their entries, without channel sums.

    Raises:
        CacheMissingError: no worker has handed in an entry.
        CacheCorruptError, CacheStaleError: an entry cannot be trusted.
        CacheLockedError: another process took the lock.
        CacheUnreachableError: the store does not answer.
    """

    def publish(k: int) -> LedgerEntry:
        content = made_entry(mirror.remote, lock.token, space, k)
        if content is None:
            raise CacheMissingError(
                f"{mirror.remote.url}: no worker has handed in {space} shard {k}, though one said "
                "so. It has another store at that address: look at cache.store_options and AWS_* "
                "in the environment of the workers"
            )
        lock.check()
        return _publish(mirror, reader, space, k, content)

    return list(mirror.pool.map(publish, shards))


def take_over_made(mirror: "Mirror", header: CacheHeader) -> None:
    """Publish what workers of a killed writer have uploaded, and remove their claims.

    The cache's lock must be held, and the mirror be up to date.

    Args:
        mirror: the writer's.
        header: of the cache.

    Raises:
        CacheUnreachableError: the store does not answer.
    """
    claims = [match for name in mirror.remote.list(WORKERS_FOLDER) if (match := _found(name))]
    reader = EntryReader(header)
    for token, space, k in claims:
        if not entry_path(mirror.path, space, k).exists():
            content = made_entry(mirror.remote, token, space, k)
            if content is not None:
                # An entry of another cache, which was here before, is nobody's any more.
                with suppress(CacheCorruptError, CacheStaleError):
                    _publish(mirror, reader, space, k, content)
    remove_claims(mirror.remote)


def _found(name: str) -> tuple[str, RowSpace, int] | None:
    match = _CLAIM_NAME.match(name)
    if match is None:
        return None
    space = next(space for space in ROW_SPACES if space == match[2])
    return match[1], space, int(match[3])


def _publish(
    mirror: "Mirror", reader: EntryReader, space: RowSpace, k: int, content: bytes
) -> LedgerEntry:
    place = entry_path(mirror.path, space, k)
    entry = reader.parse(place, content)
    name = place.relative_to(mirror.path).as_posix()
    e_tag = mirror.remote.put(name, content)
    place.parent.mkdir(exist_ok=True)
    write_durably(place, content)
    mirror.files.remember(name, e_tag)
    return without_sums(entry)
