import gc
import multiprocessing
import shutil
import threading
import weakref

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache import CacheCorruptError, CacheReader
from cache.native_library import native_library
from tests.cache.example import ARRAYS, values_of


@pytest.fixture(autouse=True, params=["native", "portable"])
def way(request, monkeypatch):
    """Both ways of reading; the first where the library was built."""
    if request.param == "portable":
        monkeypatch.setattr("cache.direct_read.native_library", lambda: None)
    elif native_library() is None:
        pytest.skip("no library was built, or this processor lacks an instruction")


BY_NAME = {array.name: array for array in ARRAYS}
LEVELS = ("features_s4", "features_s8", "features_s16")


def memory(names, count):
    return {
        name: np.zeros((count, *BY_NAME[name].shape), dtype=BY_NAME[name].dtype) for name in names
    }


def test_several_arrays_go_into_the_callers_memory(reader):
    rows = [27, 3, 4, 5, 3, 0, 26, 14]
    outs = memory(LEVELS, len(rows))
    reader.read_into(outs, rows)
    for name, out in outs.items():
        np.testing.assert_array_equal(out, values_of(BY_NAME[name], rows))


def test_what_plain_zarr_reads_is_what_the_reader_gives(reader, finished):
    group = zarr.open_group(finished / "arrays", mode="r")
    for array in ARRAYS:
        count = reader.counts[array.rows]
        assert group[array.name][:].tobytes() == reader.read(array.name, range(count)).tobytes()


def test_wrong_memory_is_refused(reader):
    good = memory(("image",), 2)["image"]
    for out, message in (
        (good[:1], r"needs memory of uint8 \(2, 3, 16, 16\)"),
        (good.astype(np.int8), "not int8"),
        (np.asfortranarray(good), "contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read_into({"image": out}, [1, 2])
    with pytest.raises(ValueError, match="mask_iou has rows of prompts, not slices"):
        reader.read_into({"image": good, "mask_iou": np.zeros((2, 1), np.float32)}, [1, 2])
    reader.read_into({}, [1])


def test_exchanged_rows_and_stale_files_are_told_from_damage(copy):
    # Rows 5 and 6 exchanged with their checksums: everything in the file fits.
    file = copy / "arrays/features_s4/c/1/0/0/0"
    content = file.read_bytes()
    size = 2 * 4 * 4 * 2 + 4
    file.write_bytes(content[size : 2 * size] + content[:size] + content[2 * size :])
    with pytest.raises(CacheCorruptError, match=r"row 5 has not the checksum that was recorded"):
        CacheReader(copy).read("features_s4", [5])
    content = bytearray(content)
    content[size - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheCorruptError, match=r"row 5 does not fit the checksum beside it"):
        CacheReader(copy).read("features_s4", [6, 5])


def test_every_flipped_bit_of_a_shard_is_found(copy):
    file = copy / "arrays/features_s16/c/2/0/0/0"
    content = file.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(CacheCorruptError):
            CacheReader(copy).read("features_s16", range(10, 15))


def test_a_file_cut_while_it_is_open_is_named(copy):
    reader = CacheReader(copy)
    reader.read("image", [0])
    with (copy / "arrays/image/c/0/0/0/0").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CacheCorruptError, match="ends too early"):
        reader.read("image", [3])


def test_an_array_of_another_layout_is_read_by_zarr_and_still_verified(copy):
    folder = copy / "arrays" / "label"
    shutil.rmtree(folder)
    values = values_of(BY_NAME["label"], range(28))
    # Another order of bytes in the file and no checksums beside the rows.
    array = zarr.create_array(
        folder,
        shape=values.shape,
        chunks=(1, 16, 16),
        shards=(5, 16, 16),
        dtype="uint16",
        compressors=Crc32cCodec(),
        filters=None,
        fill_value=7,
        serializer=BytesCodec(endian="big"),
    )
    array[:] = values
    reader = CacheReader(copy)
    np.testing.assert_array_equal(reader.read("label", [9, 3]), values[[9, 3]])
    array[3] = 1
    with pytest.raises(CacheCorruptError, match="not those that were written"):
        CacheReader(copy).read("label", [9, 3])


def test_more_shards_than_files_may_be_open(finished, monkeypatch):
    monkeypatch.setattr("cache.open_shards._OPEN_FILES", 3)
    reader = CacheReader(finished)
    rows = np.random.default_rng(0).permutation(28).tolist()
    for row in rows:
        reader.read_into(outs := memory(LEVELS, 1), [row])
        np.testing.assert_array_equal(outs["features_s4"], values_of(BY_NAME["features_s4"], [row]))
    assert len(reader._direct._files.known) <= 3


def test_files_are_closed_with_the_last_reference_to_the_reader(finished):
    gc.disable()
    try:
        reader = CacheReader(finished)
        reader.read("features_s8", range(28))
        files = weakref.ref(reader._direct._files)
        assert len(files().known) == 6
        del reader
        assert files() is None
    finally:
        gc.enable()


def test_threads_share_a_reader(finished, monkeypatch):
    monkeypatch.setattr("cache.open_shards._OPEN_FILES", 4)
    reader, wrong = CacheReader(finished), []

    def work(seed):
        for rows in np.random.default_rng(seed).integers(0, 28, (40, 8)).tolist():
            values = reader.read("features_s8", rows)
            if not np.array_equal(values, values_of(BY_NAME["features_s8"], rows)):
                wrong.append(rows)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _child(reader, queue):
    queue.put(reader.read("features_s8", [20, 1]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_reader_works_in_another_process(reader, method):
    reader.read("features_s8", [1])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_child, args=(reader, queue))
    process.start()
    values = queue.get(timeout=300)
    process.join()
    np.testing.assert_array_equal(values, values_of(BY_NAME["features_s8"], [20, 1]))
