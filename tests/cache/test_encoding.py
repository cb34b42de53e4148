"""Encodings: how far numbers come back, and that numpy and torch give the same bits."""

import numpy as np
import pytest
import torch

from cache import ArraySpec
from cache.encoding import (
    STORED_WORDS,
    all_finite,
    array_specs,
    bf16_bits,
    decode,
    dequantise_tiles,
    encode,
    from_bf16_bits,
    quantise_tiles,
    stored_word,
)
from cache.stored import TileMaps, as_stored, dequantise, encode_maps, quantise, to_stored

SHAPES = [(2, 3, 32, 48), (2, 3, 40, 33), (3, 7, 5), (2, 1, 1)]


def draw(shape, seed=0):
    """Heavy-tailed numbers with a tile of zeros and one of a constant."""
    values = np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)
    values[0, ..., :16, :16] = 0
    values[-1, ..., :16, :16] = -1024
    return values


def relative(decoded, values):
    error = decoded.astype(np.float64) - values
    return float(np.sqrt((error**2).sum() / (values.astype(np.float64) ** 2).sum()))


def specs(word, shape):
    return array_specs("features_s8", "slices", shape[1:], word)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("word", STORED_WORDS)
def test_torch_gives_numpys_bits_and_both_come_back(word, shape):
    values = draw(shape)
    (array, *_) = specs(word, shape)
    ours = encode(array, values)
    theirs = encode_maps(array, torch.from_numpy(values))
    assert set(ours) == set(theirs) == {spec.name for spec in specs(word, shape)}
    for spec in specs(word, shape):
        assert ours[spec.name].dtype == spec.dtype
        assert ours[spec.name].shape == (shape[0], *spec.shape)
        assert theirs[spec.name].numpy().tobytes() == ours[spec.name].tobytes()
    decoded = decode(array, ours[array.name], ours.get(array.scale_name))
    back = to_stored(as_stored(array, ours), "cpu", torch.float32)
    np.testing.assert_array_equal(back.numpy(), decoded.astype(np.float32))
    np.testing.assert_array_equal(decoded[0, ..., :16, :16], 0)
    np.testing.assert_allclose(decoded[-1, ..., :16, :16], -1024, rtol=1e-6)


def test_a_tile_is_within_half_a_step_of_its_largest_value():
    values = draw((4, 8, 40, 33))
    tiles, scales = quantise_tiles(values)
    assert tiles.dtype == np.int8
    assert scales.shape == (4, 8, 3, 3)
    assert tiles.min() >= -127
    steps = np.repeat(np.repeat(scales, 16, -2), 16, -1)[..., :40, :33]
    assert (np.abs(dequantise_tiles(tiles, scales) - values) <= 0.5001 * steps).all()
    largest = np.abs(values[..., 16:32, 16:32]).max(axis=(-2, -1))
    np.testing.assert_allclose(scales[..., 1, 1], largest / 127, rtol=1e-6)


def test_relative_errors_of_noise_and_of_smooth_maps():
    """Independent noise is the worst case of a tile; a network's maps are smooth."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2, 16, 64, 64)).astype(np.float32)
    heavy = rng.standard_t(3, (2, 16, 64, 64)).astype(np.float32)
    channels = rng.normal(0, 10, (1, 16, 1, 1)).astype(np.float32)
    errors = {
        name: relative(dequantise_tiles(*quantise_tiles(values)), values)
        for name, values in (("noise", noise), ("heavy", heavy), ("smooth", noise + channels))
    }
    assert 5e-3 < errors["noise"] < 8e-3
    assert errors["smooth"] < 3e-3
    assert errors["heavy"] < 2.5e-2
    assert relative(from_bf16_bits(bf16_bits(noise)), noise) < 1.8e-3


def test_halves_are_rounded_to_even():
    # The scale is 1: steps are whole numbers.
    row = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49], np.float32)
    tiles, scales = quantise_tiles(row[None])
    assert scales.tolist() == [[1.0]]
    assert tiles.tolist() == [[127, 0, 2, 2, 0, -2, -2, 3]]
    even = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert from_bf16_bits(bf16_bits(even)).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]


def test_tiny_values_do_not_vanish_or_overflow():
    for magnitude in (1e-9, 1e-38, 1e30):
        values = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 16, 16) * magnitude
        values = values.astype(np.float32)
        tiles, scales = quantise_tiles(values)
        assert relative(dequantise_tiles(tiles, scales), values) < 5e-3
        torch_tiles, torch_scales = quantise(torch.from_numpy(values))
        assert torch_tiles.numpy().tobytes() == tiles.tobytes()
        assert torch.equal(torch_scales, torch.from_numpy(scales))
    nothing, scales = quantise_tiles(np.full((1, 2, 2), 1e-45, np.float32))
    assert np.isfinite(dequantise_tiles(nothing, scales)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("word", STORED_WORDS)
def test_values_that_are_not_finite_are_refused(word, bad):
    values = draw((2, 3, 32, 48))
    values[1, 2, 20, 3] = bad
    (array, *_) = specs(word, values.shape)
    with pytest.raises(ValueError, match="not finite"):
        encode(array, values)
    # On a device nothing is asked: what comes out tells the writer.
    made = {name: part.numpy() for name, part in encode_maps(array, torch.tensor(values)).items()}
    finite = [all_finite(spec, made[spec.name]) for spec in specs(word, values.shape)]
    assert not all(finite)


def test_values_beyond_the_type_are_refused():
    values = np.full((1, 2, 2), 3.4e38, np.float32)
    for word, fits in (("fp16", False), ("bf16", False), ("fp32", True), ("int8", True)):
        (array, *_) = specs(word, values.shape)
        if fits:
            encode(array, values)
        else:
            with pytest.raises(ValueError, match=f"too large for {word}"):
                encode(array, values)


def test_tile_maps_are_used_like_a_tensor():
    values = draw((6, 3, 40, 33))
    tiles, scales = quantise_tiles(values)
    (array, _) = specs("int8", values.shape)
    maps = as_stored(array, {array.name: tiles, array.scale_name: scales})
    assert isinstance(maps, TileMaps)
    assert maps.shape == values.shape
    assert maps.tiles.data_ptr() == tiles.ctypes.data
    whole = dequantise_tiles(tiles, scales)
    np.testing.assert_array_equal(maps.to("cpu").numpy(), whole)
    assert maps.to("cpu").dtype == torch.float32
    assert maps.to("cpu", torch.float16).dtype == torch.float16
    rows = torch.tensor([[5, 0], [2, 2]])
    np.testing.assert_array_equal(maps[rows].to("cpu").numpy(), whole[rows.numpy()])
    fast = dequantise(torch.zeros(2, 16, 32, dtype=torch.int8), torch.ones(2, 1, 2))
    assert fast.shape == (2, 16, 32)


def test_bfloat16_is_a_view_of_the_stored_bits():
    values = draw((2, 3, 8, 8))
    (array,) = specs("bf16", values.shape)
    bits = encode(array, values)[array.name]
    tensor = as_stored(array, {array.name: bits})
    assert tensor.dtype == torch.bfloat16
    assert tensor.data_ptr() == bits.ctypes.data


def test_words_name_encodings():
    for word in STORED_WORDS:
        assert {stored_word(array) for array in specs(word, (1, 2, 3, 4))} == {word}
    assert stored_word(ArraySpec(name="a", rows="slices", shape=(1,), dtype="uint8")) == "uint8"
