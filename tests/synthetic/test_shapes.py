"""Random solids."""

import numpy as np
import pytest

from efficient_medsam2.synthetic.shapes import (
    Shape,
    draw_shape,
    mirrored,
    moved,
    split_in_two,
)


def ball(radius, center=(0.0, 0.0, 0.3)):
    return Shape(
        kind="ball",
        center=center,
        reach=radius,
        contains=lambda points: np.square(points).sum(axis=0) < radius**2,
    )


def cloud(seed=0, count=20000, reach=2.5):
    points = np.random.default_rng(seed).uniform(-reach, reach, (3, count))
    return points.astype(np.float32)


def test_every_family_is_drawn_and_lies_within_its_reach():
    generator = np.random.default_rng(0)
    points = cloud()
    kinds = set()
    solid = 0
    for _ in range(80):
        shape = draw_shape(generator, center=(0.0, 0.0, 0.0), size=0.4, depth=0.5)
        inside = shape.contains(points)
        kinds.add(shape.kind)
        # A thin or pulsing solid may slip between the points.
        solid += bool(inside.any())
        outside_reach = np.abs(points).max(axis=0) > shape.reach
        assert (inside & outside_reach).sum() <= 0.02 * inside.sum()
    assert kinds == {"ellipsoid", "blob", "tube", "ring", "shell", "sheet"}
    assert solid > 70


def test_mirrored_reflects_the_center_and_the_solid():
    generator = np.random.default_rng(3)
    shape = draw_shape(generator, center=(0.0, 0.1, 0.4), size=0.3, depth=0.5)
    twin = mirrored(shape, plane_x=0.1)
    assert twin.center == pytest.approx((0.0, 0.1, -0.2))
    points = cloud(reach=0.8)
    reflected = points * np.array([[1], [1], [-1]], np.float32)
    assert np.array_equal(twin.contains(reflected), shape.contains(points))


def test_moved_shifts_the_center_and_keeps_the_solid():
    generator = np.random.default_rng(5)
    shape = draw_shape(generator, center=(0.1, 0.2, 0.3), size=0.3, depth=1.0)
    other = moved(shape, down=0.5, right=-0.25)
    assert other.center == pytest.approx((0.1, 0.7, 0.05))
    points = generator.uniform(-0.4, 0.4, (3, 500)).astype(np.float32)
    assert np.array_equal(other.contains(points), shape.contains(points))


def test_split_in_two_partitions_the_solid():
    first, second = split_in_two(np.random.default_rng(0), ball(0.5))
    points = cloud(reach=0.5)
    a, b = first.contains(points), second.contains(points)
    assert not (a & b).any()
    assert np.array_equal(a | b, ball(0.5).contains(points))
    assert min(a.sum(), b.sum()) > 0.1 * (a | b).sum()
