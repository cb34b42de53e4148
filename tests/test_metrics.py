"""DSC and NSD against values computed by hand."""

from math import hypot, sqrt

import numpy as np
import pytest

from efficient_medsam2.metrics import dsc, nsd, official_nsd


def box(shape, start, size):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def box_surface(size, spacing):
    """Marching-cubes area of a box of voxels: faces, bevelled edges and corner triangles."""
    a, b, c = (n - 1 for n in size)
    d, h, w = spacing
    faces = 2 * (a * d * b * h + a * d * c * w + b * h * c * w)
    edges = 4 * (
        a * d * hypot(h / 2, w / 2) + b * h * hypot(d / 2, w / 2) + c * w * hypot(d / 2, h / 2)
    )
    return faces + edges + 8 * corner(spacing)


def corner(spacing):
    a, b, c = (s / 2 for s in spacing)
    return sqrt((a * b) ** 2 + (b * c) ** 2 + (c * a) ** 2) / 2


def test_dsc_counts_voxels():
    truth = box((4, 8, 8), (0, 0, 0), (2, 4, 4))
    prediction = box((4, 8, 8), (1, 0, 0), (2, 4, 4))
    assert dsc(prediction, truth) == 0.5
    assert dsc(truth, truth) == 1.0
    assert dsc(box((4, 8, 8), (3, 0, 0), (1, 1, 1)), truth) == 0.0


def test_dsc_of_labels_takes_every_value_but_zero_as_inside():
    assert dsc(np.array([0, 3, 3], np.uint16), np.array([0, 1, 0], np.uint8)) == pytest.approx(
        2 / 3
    )


def test_empty_masks():
    empty = np.zeros((3, 8, 8), bool)
    full = box((3, 8, 8), (0, 2, 2), (3, 3, 3))
    assert dsc(empty, empty) == 1.0
    assert dsc(full, empty) == dsc(empty, full) == 0.0
    spacing = (1.0, 1.0, 1.0)
    assert nsd(empty, empty, spacing_mm=spacing) == 1.0
    assert nsd(full, empty, spacing_mm=spacing) == 0.0
    assert nsd(empty, full, spacing_mm=spacing) == 0.0
    assert official_nsd(empty, empty, spacing_xyz_mm=spacing) == 1.0
    assert official_nsd(full, empty, spacing_xyz_mm=spacing) == 0.0


def test_equal_masks_agree_even_where_the_array_cuts_them():
    truth = box((4, 8, 8), (0, 0, 3), (4, 8, 5))
    assert nsd(truth, truth, spacing_mm=(5.0, 0.7, 0.7), tolerance_mm=0.0) == 1.0


def test_a_cube_shifted_by_three_voxels_keeps_its_sides():
    """Along W: sides coincide where they overlap; a cap agrees only near the other's walls."""
    n, shift = 12, 3
    truth = box((16, 16, 24), (2, 2, 2), (n, n, n))
    prediction = box((16, 16, 24), (2, 2, 2 + shift), (n, n, n))
    spacing = (1.0, 1.0, 1.0)
    ring = 4 * (n - 1) + 4 * hypot(0.5, 0.5)
    rim = 4 * (n - 1) * hypot(0.5, 0.5) + 4 * corner(spacing)
    inner_cap = (n - 1) ** 2
    total = 2 * (inner_cap + rim) + (n - 1) * ring
    assert total == pytest.approx(box_surface((n, n, n), spacing))

    # Sides: of the levels 1..n-1 along W, only level 1 is farther than 1 from the prediction's
    # nearest level, 3. Caps: the far one lies inside the prediction's walls, which reach one
    # surface element inwards; the near one is 3 away from everything.
    near_sides = (n - 2) * ring
    near_cap = rim + (n - 1) ** 2 - (n - 3) ** 2
    expected = (near_sides + near_cap) / total
    assert nsd(prediction, truth, spacing_mm=spacing, tolerance_mm=1.0) == pytest.approx(
        expected, abs=1e-6
    )
    assert nsd(prediction, truth, spacing_mm=spacing, tolerance_mm=3.0) == 1.0


def test_axis_order_decides_a_shift_by_one_thick_slice():
    """Slices of 5 mm: the true NSD is low, but spacing in the order x, y, z hides it."""
    m, n = 3, 24
    spacing = (5.0, 1.0, 1.0)
    truth = box((8, 32, 32), (2, 4, 4), (m, n, n))
    prediction = box((8, 32, 32), (3, 4, 4), (m, n, n))
    ring = 4 * (n - 1) * 5 + 4 * 5 * hypot(0.5, 0.5)
    rim = 4 * (n - 1) * hypot(2.5, 0.5) + 4 * corner(spacing)
    total = 2 * ((n - 1) ** 2 + rim) + (m - 1) * ring
    assert total == pytest.approx(box_surface((m, n, n), spacing))
    # One cap is a slice away from everything; the other lies inside the wall of the other box, of
    # which 2 mm reach two surface elements inwards.
    near = (m - 1) * ring + rim + (n - 1) ** 2 - (n - 5) ** 2
    assert nsd(prediction, truth, spacing_mm=spacing) == pytest.approx(near / total, abs=1e-6)
    assert near / total < 0.7

    assert official_nsd(prediction, truth, spacing_xyz_mm=(1.0, 1.0, 5.0)) == 1.0


def test_official_nsd_is_zero_where_dsc_is_at_most_a_fifth():
    """Thin plates a voxel apart: near surfaces, no overlap."""
    truth = box((8, 16, 16), (3, 2, 2), (1, 10, 10))
    prediction = box((8, 16, 16), (4, 2, 2), (1, 10, 10))
    assert nsd(prediction, truth, spacing_mm=(1.0, 1.0, 1.0)) == 1.0
    assert official_nsd(prediction, truth, spacing_xyz_mm=(1.0, 1.0, 1.0)) == 0.0


def test_a_picture_is_one_slice_with_spacing_one():
    truth = box((1, 32, 32), (0, 4, 4), (1, 20, 20))
    prediction = box((1, 32, 32), (0, 4, 9), (1, 20, 20))
    value = nsd(prediction[0], truth[0])
    assert value == nsd(prediction, truth, spacing_mm=(1.0, 1.0, 1.0))
    assert 0 < value < 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "needs spacing_mm"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three positive lengths"),
        ({"spacing_mm": (1.0, 1.0, 1.0), "tolerance_mm": -1.0}, "tolerance -1.0 mm"),
    ],
)
def test_lengths_are_checked(kwargs, message):
    mask = np.ones((2, 4, 4), bool)
    with pytest.raises(ValueError, match=message):
        nsd(mask, mask, **kwargs)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="differ in shape"):
        dsc(np.ones((2, 4, 4), bool), np.ones((2, 4, 5), bool))
    with pytest.raises(ValueError, match="not \\(D, H, W\\)"):
        nsd(np.ones(4, bool), np.ones(4, bool), spacing_mm=(1.0, 1.0, 1.0))
