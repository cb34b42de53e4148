"""Where the numbers of a converted cache come from: what each level was stored as before.

A level that was coarser once stays rounded, whatever it is stored as now. The spec cannot tell:
its fingerprint is that of a cache which the teacher filled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.address import place_of
from cache.encoding import stored_word
from cache.errors import CacheCorruptError
from cache.levels import STORED_LEVELS, level_of
from cache.mending import precompute_command
from cache.schema import CacheSpec

__all__ = [
    "CONVERTED_NAME",
    "Origin",
    "encode_origins",
    "read_origins",
    "rounded_levels",
    "unknown_origin",
    "words_of",
]

CONVERTED_NAME = "converted.json"
"""In a converted cache: what it was made from. A conversion of another cache never goes on."""

_BITS = {"int8": 7, "bf16": 8, "fp16": 11, "fp32": 24}
"""Significant bits of a number, or of the largest one of its tile."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One cache that another one was converted from.

    Attributes:
        digest: its content identity.
        levels: level → how its numbers were stored; empty where an earlier version converted it.
        format: of its arrays.
    """

    digest: str
    levels: Mapping[str, str]
    format: str = ""

    def __str__(self) -> str:
        """Give one line for people."""
        alike = {*self.levels.values()}
        each = ", ".join(f"{level} {word}" for level, word in self.levels.items())
        words = (
            "stored types were not recorded"
            if not alike
            else alike.pop()
            if len(alike) == 1
            else each
        )
        return f"{self.digest[:12]} ({', '.join(filter(None, (self.format, words)))})"


def words_of(spec: CacheSpec) -> dict[str, str]:
    """Give level → how the arrays of a cache store it, of the levels that it has."""
    found = {level_of(array.name): stored_word(array) for array in spec.arrays}
    return {level: found[level] for level in STORED_LEVELS if level in found}


def encode_origins(origins: tuple[Origin, ...]) -> bytes:
    """Give the content of ``converted.json``.

    Args:
        origins: the caches that it comes from, the first one first.
    """
    record = {"source_digest": origins[-1].digest, "origins": [asdict(one) for one in origins]}
    return json.dumps(record, indent=1).encode() + b"\n"


def read_origins(cache: Path) -> tuple[Origin, ...]:
    """Give the caches that this one was converted from, the first one first.

    Raises:
        CacheCorruptError: ``converted.json`` is damaged.
    """
    file = cache / CONVERTED_NAME
    if not file.is_file():
        return ()
    try:
        record = json.loads(file.read_bytes())
        # Earlier versions named the last cache alone.
        kept = record.get("origins", [{"digest": record["source_digest"], "levels": {}}])
        return tuple(
            Origin(
                digest=str(one["digest"]),
                levels={str(level): str(word) for level, word in one["levels"].items()},
                format=str(one.get("format", "")),
            )
            for one in kept
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unknown_origin(cache, f"is damaged: {error!r}") from error


def unknown_origin(cache: Path, problem: str) -> CacheCorruptError:
    """Make the error of a cache whose ``converted.json`` cannot be trusted: nothing else tells."""
    return CacheCorruptError(
        f"{place_of(cache / CONVERTED_NAME)} {problem}: what this cache was converted from cannot "
        "be told. Convert once more into another folder, or make it anew: "
        f"{precompute_command(cache)} --force precompute"
    )


def rounded_levels(cache: Path, spec: CacheSpec) -> dict[str, str]:
    """Give the levels that were coarser once than they are stored now → the coarsest type.

    Raises:
        CacheCorruptError: ``converted.json`` is damaged.
    """
    origins = read_origins(cache)
    rounded = {}
    for level, now in words_of(spec).items():
        words = [one.levels[level] for one in origins if level in one.levels]
        coarsest = min(words, key=_bits, default=now)
        if _bits(coarsest) < _bits(now):
            rounded[level] = coarsest
    return rounded


def _bits(word: str) -> int:
    return _BITS.get(word, 24)
