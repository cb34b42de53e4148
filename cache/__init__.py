"""The embedding cache: what a teacher said about every slice, kept to train students from.

``CacheWriter`` fills a cache shard by shard and can be killed at any time; ``CacheReader`` gives
rows by number and never a silent zero; ``verify`` compares every byte; ``cache.dataset`` makes
torch batches and is imported on its own, so that looking into a cache does not load torch.
"""

from cache.errors import (
    CacheCorruptError,
    CacheDataError,
    CacheError,
    CacheLockedError,
    CacheMissingError,
    CacheSpaceError,
    CacheStaleError,
    CacheUnreachableError,
)
from cache.index import CacheIndex
from cache.info import CacheInfo, describe
from cache.reader import CacheReader
from cache.records import IDENTITY_AFFINE, CaseRow, PromptRow, SliceRow, TrackRow
from cache.repair import discard_bad
from cache.schema import SCHEMA_VERSION, ArraySpec, CacheSpec, TeacherIdentity
from cache.sizes import required_bytes
from cache.statistics import ChannelStatistics
from cache.verify import BadPart, VerifyReport, verify
from cache.writer import CacheWriter

__all__ = [
    "IDENTITY_AFFINE",
    "SCHEMA_VERSION",
    "ArraySpec",
    "BadPart",
    "CacheCorruptError",
    "CacheDataError",
    "CacheError",
    "CacheIndex",
    "CacheInfo",
    "CacheLockedError",
    "CacheMissingError",
    "CacheReader",
    "CacheSpaceError",
    "CacheSpec",
    "CacheStaleError",
    "CacheUnreachableError",
    "CacheWriter",
    "CaseRow",
    "ChannelStatistics",
    "PromptRow",
    "SliceRow",
    "TeacherIdentity",
    "TrackRow",
    "VerifyReport",
    "describe",
    "discard_bad",
    "required_bytes",
    "verify",
]
