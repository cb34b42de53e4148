"""Smooth fields and bent coordinates."""

import numpy as np
import pytest

from efficient_medsam2.synthetic.noise import smooth_noise, warped_coordinates


def roughness(field):
    return float(np.square(np.diff(field, axis=2)).mean())


def test_noise_is_standardised_and_smoother_with_fewer_cells():
    coarse = smooth_noise(np.random.default_rng(0), (4, 48, 48), (1, 3, 3))
    fine = smooth_noise(np.random.default_rng(0), (4, 48, 48), (1, 20, 20))
    for field in (coarse, fine):
        assert field.shape == (4, 48, 48)
        assert field.dtype == np.float32
        assert float(field.mean()) == pytest.approx(0, abs=1e-5)
        assert float(field.std()) == pytest.approx(1, abs=1e-4)
    assert roughness(fine) > 10 * roughness(coarse)


def test_the_spline_has_no_seams():
    """A cubic B-spline has continuous first differences: no step between cells stands out."""
    field = smooth_noise(np.random.default_rng(1), (1, 16, 240), (1, 1, 6))
    second = np.abs(np.diff(field, n=2, axis=2))
    assert float(second.max()) < 0.02


def test_coordinates_without_strength_are_the_plain_grid():
    shape = (2, 4, 8)
    z, y, x = warped_coordinates(
        np.random.default_rng(0), shape, thickness=3.0, strength=0.0
    ).reshape(3, *shape)
    assert np.allclose(x[0, 0], np.linspace(-0.875, 0.875, 8))
    assert np.allclose(y[0, :, 0], [-0.375, -0.125, 0.125, 0.375])
    assert np.allclose(z[:, 0, 0], [-0.375, 0.375])


def test_strength_bends_coordinates():
    shape = (4, 32, 32)
    plain, bent = (
        warped_coordinates(np.random.default_rng(0), shape, thickness=1.0, strength=strength)
        for strength in (0.0, 0.1)
    )
    moved = np.abs(plain - bent)
    assert 0.01 < float(moved.mean()) < 0.2
