import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cache import (
    CacheCorruptError,
    CacheReader,
    CacheStaleError,
    CacheWriter,
    describe,
    verify,
)
from cache.checksum import row_checksums
from cache.durable import canonical_json, sha256_of_bytes
from cache.layout import read_complete_mark, read_header, write_complete_mark
from cache.ledger import load_ledger, open_ledger, publish_entry, read_entry
from cache.ledger_seal import SealedEntries, seal_path
from tests.cache.example import ARRAYS, make_cache, make_index, make_spec, values_of


def open_it(path):
    return open_ledger(path, read_header(path), read_complete_mark(path))


def age(path, seconds=100):
    """Make the entries older than the table, as they are when a cache took a while to write."""
    for file in (path / "ledger").glob("*.json"):
        times = file.stat()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns - seconds * 10**9))


def one_line(file):
    """Rewrite an entry as the first version wrote it."""
    first, second = map(json.loads, file.read_text().splitlines())
    record = first["entry"] | {"sums": second["entry"]["sums"]}
    for stored in record["arrays"].values():
        del stored["row_crc32c"]
    content = {"sha256": sha256_of_bytes(canonical_json(record)), "entry": record}
    file.write_text(json.dumps(content))


def test_an_entry_tells_every_rows_checksum(finished):
    entry = read_entry(finished / "ledger" / "slices-000005.json", read_header(finished))
    assert (entry.start, entry.stop) == (25, 28)
    for array in ARRAYS[:5]:
        expected = row_checksums(values_of(array, range(25, 28)))
        assert entry.arrays[array.name].row_crc32c.tolist() == expected.tolist()
    assert set(entry.sums) == {"features_s4", "features_s8", "features_s16"}


@pytest.mark.parametrize("place", range(0, 2400, 37))
def test_every_flip_in_an_entry_is_found(copy, place):
    file = copy / "ledger" / "slices-000001.json"
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 4
    file.write_bytes(content)
    assert [problem.name for problem in load_ledger(copy, read_header(copy)).problems] == [
        file.name
    ]


def test_sums_of_another_shard_are_refused(copy):
    first, second = (copy / "ledger" / f"slices-00000{k}.json" for k in (0, 1))
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(lines[0] + second.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(CacheCorruptError, match="its channel sums are of shard 1"):
        read_entry(first, read_header(copy))


def test_caches_of_the_first_version_read_and_say_what_they_lack(copy, finished):
    for file in (copy / "ledger").glob("*.json"):
        one_line(file)
    seal_path(copy).unlink()
    write_complete_mark(copy, replace(read_complete_mark(copy), seal_sha256=None))
    reader = CacheReader(copy)
    assert reader.complete
    assert reader.digest() == CacheReader(finished).digest()
    rows = [3, 27, 8]
    np.testing.assert_array_equal(reader.read("image", rows), values_of(ARRAYS[0], rows))
    assert verify(copy).ok
    assert describe(copy).shards_without_row_checksums == 11
    assert describe(finished).shards_without_row_checksums == 0
    with CacheWriter.create_or_resume(copy, make_spec(), make_index()) as writer:
        writer.finish()
    assert CacheReader(copy).complete
    age(copy)
    assert open_it(copy).shards_without_row_checksums() == 11


def test_the_sealed_table_says_what_the_entries_say(copy):
    age(copy)
    sealed, plain = open_it(copy), load_ledger(copy, read_header(copy))
    assert sealed.sealed
    assert isinstance(sealed.entries, SealedEntries)
    assert list(sealed.entries) == sorted(plain.entries)
    for key, entry in plain.entries.items():
        other = sealed.entries[key]
        assert (other.start, other.stop, other.fingerprint) == (
            entry.start,
            entry.stop,
            entry.fingerprint,
        )
        for name, file in entry.arrays.items():
            found = sealed.shard_file(*key, name)
            assert (found.file, found.bytes, found.sha256) == (file.file, file.bytes, file.sha256)
            assert found.row_crc32c.tolist() == file.row_crc32c.tolist()
    for space in ("slices", "prompts", "tracks"):
        assert sealed.shards(space).tolist() == plain.shards(space).tolist()
    assert sealed.shard_file("slices", 6, "image") is None
    with pytest.raises(KeyError):
        sealed.entries["slices", 6]
    reader = CacheReader(copy)
    assert reader.complete
    np.testing.assert_array_equal(reader.read("label", [27]), values_of(ARRAYS[1], [27]))
    assert reader.finished_rows("tracks").tolist() == list(range(12))


def test_the_table_does_not_speak_for_entries_that_are_gone_or_changed(copy, tmp_path):
    age(copy)
    (copy / "ledger" / "slices-000000.json").unlink()
    ledger = open_it(copy)
    assert not ledger.sealed
    assert ledger.shards("slices").tolist() == [1, 2, 3, 4, 5]
    assert not CacheReader(copy).complete
    other = make_cache(tmp_path / "other.cache", data_sha256="e" * 64).path
    shutil.copy(other / "ledger" / "slices-000002.json", copy / "ledger")
    with pytest.raises(CacheStaleError, match="belongs to another cache"):
        CacheReader(copy)


def test_a_damaged_table_is_not_believed_and_is_written_again(copy, finished):
    age(copy)
    file = seal_path(copy)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert not open_it(copy).sealed
    assert CacheReader(copy).complete
    assert "sealed.parquet: has other bytes" in str(verify(copy).bad[0])
    with CacheWriter.create_or_resume(copy, make_spec(), make_index()) as writer:
        writer.finish()
    assert file.read_bytes() == seal_path(finished).read_bytes()
    assert verify(copy).ok
    file.unlink()
    assert not open_it(copy).sealed
    assert "sealed.parquet: is missing" in str(verify(copy).bad[0])


def test_row_checksums_must_be_as_many_as_rows(copy):
    header = read_header(copy)
    entry = read_entry(copy / "ledger" / "slices-000000.json", header)
    file = entry.arrays["image"]
    wrong = replace(file, row_crc32c=file.row_crc32c[:-1])
    publish_entry(copy, replace(entry, arrays={**entry.arrays, "image": wrong}))
    with pytest.raises(CacheCorruptError, match="image has 4 row checksums, not 5"):
        CacheReader(copy)
