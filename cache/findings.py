"""What checking a cache found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.address import place_of
from cache.errors import CacheCorruptError
from cache.mending import repair_command
from cache.schema import RowSpace

__all__ = ["BadPart", "VerifyReport"]


@dataclass(frozen=True, kw_only=True)
class BadPart:
    """Something in a cache that is not as it was written.

    Attributes:
        space: ``slices``, ``prompts``, ``tracks``; or ``index``, ``ledger``, ``arrays``, ``cache``,
            ``files`` (beside the rows).
        shard: number of the shard, ``None`` where the part is not a shard's.
        array: name of the array or file.
        reason: what is wrong.
    """

    space: str
    shard: int | None
    array: str
    reason: str

    def __str__(self) -> str:
        shard = "" if self.shard is None else f" shard {self.shard}"
        return f"{self.space}{shard}, {self.array}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of ``verify``.

    Attributes:
        checked: shard files whose every byte was compared.
        total: shard files in the ledger.
        missing: row space → shards that are not written; no damage while a cache is unfinished.
        bad: what is wrong, in order of place.
        shards: row space → shards that the whole cache has.
        finished: whether the cache was declared complete.
        side_files: files beside the rows that were compared; ``None`` in caches of versions that
            kept no digests of them.
    """

    checked: int
    total: int
    missing: Mapping[RowSpace, int]
    bad: tuple[BadPart, ...]
    shards: Mapping[RowSpace, int]
    finished: bool
    side_files: int | None

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.bad

    def raise_if_bad(self, path: Path) -> None:
        """Turn findings into an error.

        Raises:
            CacheCorruptError: something is bad; names the first parts and the mend.
        """
        if self.bad:
            first = "; ".join(str(part) for part in self.bad[:3])
            raise CacheCorruptError(
                f"{place_of(path)}: {len(self.bad)} bad parts: {first}. Make exactly these again: "
                f"{repair_command(path)}"
            )
