"""Ledgers that say another thing than the completion mark, though both can be read."""

import shutil
from pathlib import Path

import pytest

from cache import CacheCorruptError, CacheWriter, discard_bad, verify
from cache.layout import read_complete_mark, read_header, write_complete_mark
from cache.ledger import cache_digest, load_ledger
from cache.repair import mend
from tests.cache import example
from tests.cache.test_verify import places


@pytest.fixture(scope="module")
def other_values(tmp_path_factory):
    """A cache of the same settings in which one shard holds other values."""
    path = tmp_path_factory.mktemp("other") / "other.cache"
    with CacheWriter.create_or_resume(path, example.make_spec(), example.make_index()) as writer:
        arrays = example.shard_values(writer, "prompts", 1)
        writer.write_shard("prompts", 1, {**arrays, "mask_iou": arrays["mask_iou"] + 1})
        example.fill(writer)
    return path


@pytest.fixture
def mixed(copy, other_values):
    """A finished cache with a shard of the other one, entry and files: each fits the other."""
    names = ("ledger/prompts-000001.json", "arrays/mask_logits/c/1/0/0", "arrays/mask_iou/c/1/0")
    for name in names:
        shutil.copy(other_values / name, copy / name)
    return copy


def digest_of(path: Path) -> str:
    header = read_header(path)
    return cache_digest(header, load_ledger(path, header).entries)


def test_the_shard_is_named_and_made_again(mixed, finished):
    assert digest_of(mixed) != digest_of(finished)
    report = verify(mixed)
    assert places(report) == [("prompts", 1, "all")]
    assert "not the one that the cache was finished with" in report.bad[0].reason
    mended = mend(mixed, report)
    assert (mended.complete, mended.missing["prompts"]) == (False, (1,))
    with CacheWriter.create_or_resume(mixed, example.make_spec(), example.make_index()) as writer:
        example.fill(writer)
    assert example.content_of(mixed) == example.content_of(finished)


def test_a_writer_does_not_sign_it(mixed):
    before = example.content_of(mixed)
    with pytest.raises(CacheCorruptError, match=r"prompts shard 1: not those.*cache repair"):
        CacheWriter.create_or_resume(mixed, example.make_spec(), example.make_index())
    assert example.content_of(mixed) == before


def test_what_cannot_be_told_apart_is_refused(mixed):
    """Without a sealed ledger nobody knows which entry is the wrong one."""
    (mixed / "ledger" / "sealed.parquet").unlink()
    before = example.content_of(mixed)
    report = verify(mixed)
    assert ("cache", None, "complete.json") in places(report)
    for attempt in (mend, discard_bad):
        with pytest.raises(CacheCorruptError, match=r"cannot be told here.*--force precompute"):
            attempt(mixed, report)
    with pytest.raises(CacheCorruptError, match="cannot be told here"):
        CacheWriter.create_or_resume(mixed, example.make_spec(), example.make_index())
    assert example.content_of(mixed) == before


def test_a_mark_that_fits_is_written_as_before(copy, finished):
    (copy / "statistics.json").write_text("{}")
    assert mend(copy, verify(copy)).complete
    assert example.content_of(copy) == example.content_of(finished)


def test_a_mark_of_another_content_is_no_reason_to_sign(copy):
    mark = read_complete_mark(copy)
    write_complete_mark(copy, type(mark)(**{**vars(mark), "cache_digest": "0" * 64}))
    with pytest.raises(CacheCorruptError, match="cannot be told here"):
        mend(copy, verify(copy))
