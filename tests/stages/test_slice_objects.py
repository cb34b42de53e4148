"""Objects of a label plane, and the marks drawn on them."""

import numpy as np

from stages.slice_objects import drawn_marks, objects_on


def test_every_object_has_its_area_and_box():
    source = np.random.default_rng(0)
    for count in (1, 2, 40):
        label = np.zeros((60, 60), np.uint16)
        for _ in range(count):
            x, y = source.integers(0, 55, 2)
            label[y : y + source.integers(1, 9), x : x + 5] = source.integers(1, 60000)
        found = objects_on(label)
        assert found.object_id.tolist() == sorted({int(v) for v in label[label > 0]})
        for place, object_id in enumerate(found.object_id):
            rows, columns = np.nonzero(label == object_id)
            assert found.area[place] == len(rows)
            box = [columns.min(), rows.min(), columns.max(), rows.max()]
            assert found.boxes_N4[place].tolist() == box
            window, (left, top) = found.window(place)
            assert window.sum() == len(rows)
            rows_in, columns_in = np.nonzero(window)
            assert (rows_in + top == rows).all()
            assert (columns_in + left == columns).all()


def test_an_empty_plane_has_no_object():
    found = objects_on(np.zeros((5, 5), np.uint16))
    assert len(found.object_id) == len(found.area) == len(found.boxes_N4) == 0


def test_the_window_has_background_around_the_object():
    label = np.zeros((40, 40), np.uint16)
    label[10:20, 0:4] = 2
    window, origin = objects_on(label).window(0)
    assert origin == (0, 5)
    assert window.shape == (20, 6)


def test_a_mark_belongs_to_the_object_that_it_lies_on_most():
    label = np.zeros((40, 80), np.uint16)
    label[5:20, 5:30] = 4
    label[5:20, 30:60] = 9
    drawn = np.zeros(label.shape, bool)
    drawn[10, 8:28] = True  # on 4
    drawn[15, 40:64] = True  # leaves 9 by a little
    drawn[18, 41:44] = True  # a shorter one on 9
    drawn[30, 10:20] = True  # on nothing
    marks = drawn_marks(drawn, label, size=40, pixel_xy=(1.0, 1.0))
    assert sorted(marks) == [4, 9]
    assert sorted(marks[4].long.tolist()) == [[4.0, 10.0], [13.5, 10.0]]
    assert sorted(marks[9].long.tolist()) == [[20.0, 15.0], [31.5, 15.0]]
    assert not drawn_marks(drawn & False, label, size=40, pixel_xy=(1.0, 1.0))
