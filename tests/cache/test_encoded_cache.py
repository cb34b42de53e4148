"""A whole cache whose arrays are encoded, in both formats, through every way of reading it."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from cache import (
    CacheCorruptError,
    CacheDataError,
    CacheReader,
    CacheWriter,
    describe,
    verify,
)
from cache.dataset import read_slices, read_tracks
from cache.encoding import array_specs, decode, encode
from cache.levels import level_of
from cache.loader import BatchLoader
from cache.schema import HDF5_HEADER_BYTES
from cache.shuffle import ShuffledRows
from cache.statistics import merge_sums, sum_channels
from cache.stored import TileMaps, read_stored, to_stored
from tests.cache.example import ARRAYS, SPACES, make_index, make_spec, values_of

WORDS = {
    "features_s4": "int8",
    "features_s8": "bf16",
    "features_s16": "int8",
    "mask_logits": "int8",
    "track_conditioned_s16": "fp32",
    "track_memory_s16": "bf16",
    "track_mask_logits": "int8",
}
PLAIN = {array.name: array for array in ARRAYS}


def encoded_spec(**changes):
    arrays = [
        spec
        for array in ARRAYS
        for spec in (
            array_specs(array.name, array.rows, array.shape, WORDS[array.name])
            if array.name in WORDS
            else (array,)
        )
    ]
    return make_spec(arrays=tuple(arrays), **changes)


def encoded_rows(spec, array, rows):
    """What rows of an array, and its scales, are stored as."""
    return encode(spec.array(array), values_of(PLAIN[array], rows))


def shard(writer, space, k):
    rows = writer.rows_of_shard(space, k)
    made = {}
    for array in writer.spec.arrays_of(space):
        if array.name in PLAIN:
            made |= encoded_rows(writer.spec, array.name, rows)
    return made


def meant(spec, name, rows):
    array = spec.array(name)
    stored = encoded_rows(spec, name, rows)
    return decode(array, stored[name], stored.get(array.scale_name))


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def encoded(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "encoded.cache"
    spec = encoded_spec(format=request.param)
    with CacheWriter.create_or_resume(path, spec, make_index()) as writer:
        for space in SPACES:
            for k in writer.missing_shards(space):
                writer.write_shard(space, k, shard(writer, space, k))
        writer.finish()
    return CacheReader(path)


def test_every_way_of_reading_gives_what_was_stored(encoded):
    for array in ARRAYS:
        rows = [6, 2, 6, 0]
        wanted = meant(encoded.spec, array.name, rows)
        np.testing.assert_array_equal(encoded.read_decoded(array.name, rows), wanted)
        stored = encoded_rows(encoded.spec, array.name, rows)
        for name, values in stored.items():
            assert encoded.read(name, rows).tobytes() == values.tobytes()
        numbers = to_stored(read_stored(encoded, array.name, rows), "cpu")
        np.testing.assert_array_equal(numbers.float().numpy(), wanted.astype(np.float32))


def test_the_cache_is_whole_and_newer_than_a_plain_one(encoded):
    assert encoded.complete
    assert encoded.spec.schema_version == 2
    assert make_spec().schema_version == 1
    assert verify(encoded.path).ok
    record = json.loads((encoded.path / "cache.json").read_text())
    encodings = {array["name"]: array.get("encoding") for array in record["spec"]["arrays"]}
    assert encodings["features_s4"] == "int8_tile16"
    assert encodings["features_s4_scale"] == "scale_tile16"
    assert encodings["features_s8"] == "bf16"
    assert encodings["image"] is None


def test_statistics_are_those_of_the_numbers_meant(encoded):
    names = {name for name in WORDS if len(PLAIN[name].shape) == 3}
    assert set(encoded.statistics) == names
    for name in names:
        rows = range(encoded.counts[PLAIN[name].rows])
        wanted = merge_sums([sum_channels(meant(encoded.spec, name, rows))])
        np.testing.assert_allclose(encoded.statistics[name].mean, wanted.mean, rtol=1e-12)
        np.testing.assert_allclose(encoded.statistics[name].std, wanted.std, rtol=1e-9)


def test_other_libraries_read_the_values_and_what_they_mean(encoded):
    rows = range(5)
    stored = encoded_rows(encoded.spec, "features_s8", rows)
    folder = encoded.path / "arrays"
    if encoded.spec.format == "zarr":
        group = zarr.open_group(folder, mode="r")
        bits, said = group["features_s8"][:5], group["features_s8"].attrs["encoding"]
        meaning = group["features_s4"].attrs["meaning"]
        assert dict(group["image"].attrs) == {}
    else:
        with h5py.File(folder / "features_s8" / "0.h5") as file:
            bits, said = file["values"][:], file["values"].attrs["encoding"].decode()
        with h5py.File(folder / "features_s4" / "0.h5") as file:
            meaning = file["values"].attrs["meaning"].decode()
    np.testing.assert_array_equal(bits, stored["features_s8"])
    assert said == "bf16"
    assert "scale" in meaning


def test_batches_carry_values_and_scales(encoded):
    rows = [17, 2, 17]
    batch = read_slices(encoded, rows)
    assert isinstance(batch.features.s4, TileMaps)
    assert batch.features.s8.dtype == torch.bfloat16
    for level in ("s4", "s8", "s16"):
        numbers = to_stored(getattr(batch.features, level), "cpu", torch.float32)
        assert numbers.dtype == torch.float32
        np.testing.assert_array_equal(numbers, meant(encoded.spec, f"features_{level}", rows))
    tracks = read_tracks(encoded, [1, 0], length=3, features=True)
    steps = [4, 5, 6, 0, 1, 2]
    assert tracks.mask_logits.shape == (2, 3, 4, 4)
    for field, name in (
        ("mask_logits", "track_mask_logits"),
        ("memory_s16", "track_memory_s16"),
        ("conditioned_s16", "track_conditioned_s16"),
    ):
        numbers = to_stored(getattr(tracks, field), "cpu", torch.float32).flatten(0, 1)
        np.testing.assert_array_equal(numbers, meant(encoded.spec, name, steps))


def test_the_loader_brings_scales_along(encoded):
    names = ("features_s4", "features_s8", "image")
    with BatchLoader(encoded, names, ShuffledRows(range(28), 6, seed=3)) as loader:
        for _ in range(3):
            batch = next(loader)
            assert set(batch.arrays) == set(names)
            there = batch.to("cpu")
            rows = batch.rows.tolist()
            assert there["features_s8"].dtype == torch.bfloat16
            for name in names:
                np.testing.assert_array_equal(
                    there[name].float(), meant(encoded.spec, name, rows).astype(np.float32)
                )


def test_a_flipped_bit_of_a_scale_is_found(encoded, tmp_path):
    path = Path(shutil.copytree(encoded.path, tmp_path / "damaged.cache"))
    first = {"zarr": "c/1/0/0/0", "hdf5": "1.h5"}[encoded.spec.format]
    file = path / "arrays" / "features_s4_scale" / first
    content = bytearray(file.read_bytes())
    content[{"zarr": 2, "hdf5": HDF5_HEADER_BYTES + 2}[encoded.spec.format]] ^= 1
    file.write_bytes(content)
    reader = CacheReader(path)
    with pytest.raises(CacheCorruptError, match="features_s4_scale"):
        read_slices(reader, [5], levels=("s4",))
    read_slices(reader, [6, 4], levels=("s4",))
    assert [part.array for part in verify(path).bad] == ["features_s4_scale"]


@pytest.mark.parametrize("name", ["features_s4_scale", "features_s8"])
def test_the_writer_refuses_numbers_that_are_not_finite(name, tmp_path):
    path = tmp_path / "new.cache"
    with CacheWriter.create_or_resume(path, encoded_spec(), make_index()) as writer:
        made = shard(writer, "slices", 0)
        bad = made[name].copy()
        bad[3].flat[1] = np.inf if bad.dtype == np.float32 else 0x7F80
        with pytest.raises(CacheDataError, match=rf"{name} row 3 of slices.*not finite"):
            writer.write_shard("slices", 0, made | {name: bad})


def test_info_gives_bytes_by_level_and_encoding(encoded):
    info = describe(encoded.path)
    assert list(info.levels) == [
        "image",
        "label",
        "s4",
        "s8",
        "s16",
        "logits",
        "tracks",
        "answers",
        "whole",
    ]
    assert info.levels["s4"].encoding == "int8"
    assert info.levels["s8"].encoding == "bf16"
    assert info.levels["tracks"].encoding == "bf16, fp32"
    sizes = info.array_bytes
    assert info.levels["s4"].bytes == sizes["features_s4"] + sizes["features_s4_scale"]
    assert info.levels["s4"].bytes_per_slice == info.levels["s4"].bytes / 28
    parts = [level.bytes for name, level in info.levels.items() if name != "whole"]
    assert sum(parts) == info.levels["whole"].bytes == sizes["total"]


def test_levels_of_arrays():
    assert level_of("features_s4") == "s4"
    assert level_of("track_mask_logits") == "logits"
    assert level_of("track_memory_s16") == "tracks"
    assert level_of("track_object_pointer") is None
    assert level_of("image") is None
