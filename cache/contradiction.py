"""A ledger that says another thing than the completion mark, though both can be read.

Every entry fits itself and its files, yet it is not the one that the cache was finished with: it
came from another run of the same settings, say. Nobody may put a new mark over that.
"""

from collections.abc import Mapping
from pathlib import Path

from cache.address import place_of
from cache.errors import CacheCorruptError
from cache.layout import COMPLETE_NAME, CacheHeader, CompleteMark, read_complete_mark
from cache.ledger import LedgerEntry, cache_digest
from cache.ledger_seal import read_seal
from cache.mending import precompute_command, repair_command
from cache.schema import ROW_SPACES, RowSpace

__all__ = ["contradicting_shards", "refuse_contradiction"]


def contradicting_shards(
    path: Path,
    header: CacheHeader,
    mark: CompleteMark,
    entries: Mapping[tuple[RowSpace, int], LedgerEntry],
) -> tuple[tuple[RowSpace, int], ...]:
    """Give the shards whose entries are not those that the cache was finished with.

    Args:
        path: the cache folder.
        header: its header.
        mark: its completion mark.
        entries: those that can be read; shards that have none contradict nothing.

    Raises:
        CacheCorruptError: they contradict the mark, and no sealed ledger tells which of them do.
    """
    whole = all(
        (space, shard) in entries
        for space in ROW_SPACES
        for shard in range(header.spec.shard_count(header.counts[space]))
    )
    if whole and mark.cache_digest == cache_digest(header, entries):
        return ()
    sealed: Mapping[tuple[RowSpace, int], LedgerEntry] = read_seal(path, header, mark) or {}
    others = tuple(
        key
        for key in sorted(entries.keys() & sealed.keys())
        if _digests(entries[key]) != _digests(sealed[key])
    )
    if whole and not others:
        raise CacheCorruptError(
            f"{place_of(path)}: {COMPLETE_NAME} can be read, and the ledger is not the one that "
            "the cache was finished with; which of the two is right cannot be told here. Copy both "
            "from where the cache is sound, or make it anew: "
            f"{precompute_command(path)} --force precompute"
        )
    return others


def refuse_contradiction(
    path: Path, header: CacheHeader, entries: Mapping[tuple[RowSpace, int], LedgerEntry]
) -> None:
    """Refuse to go on with a ledger that a readable completion mark contradicts.

    Raises:
        CacheCorruptError: it does; names the shards, where that can be told.
    """
    try:
        mark = read_complete_mark(path)
    except CacheCorruptError:
        return  # it says nothing, and is written again
    others = () if mark is None else contradicting_shards(path, header, mark, entries)
    if others:
        space, shard = others[0]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise CacheCorruptError(
            f"{place_of(path)}: {space} shard {shard}{more}: not those that the cache was finished "
            f"with. Make them again: {repair_command(path)}"
        )


def _digests(entry: LedgerEntry) -> dict[str, str]:
    return {name: file.sha256 for name, file in entry.arrays.items()}
