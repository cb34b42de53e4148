import numpy as np
import pytest
from PIL import Image

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.pictures import read_picture

IDS = {"case_id": "a", "patient_id": "a"}


def test_grey_colour_and_16_bit(picture):
    grey = read_picture(picture("a.png"), **IDS)
    assert (grey.image.shape, grey.modality, grey.affine) == ((1, 6, 8), "uint8", None)
    rgba = np.full((6, 8, 4), 9, np.uint8)
    colour = read_picture(picture("b.png", rgba), **IDS)
    assert (colour.image.shape, colour.modality) == ((1, 6, 8, 3), "RGB")
    deep = read_picture(picture("c.png", np.full((6, 8), 40000, np.uint16)), **IDS)
    assert (deep.image.dtype, deep.modality, deep.image.max()) == (np.uint16, "other", 40000)
    palette = picture("d.png")
    Image.fromarray(np.full((6, 8, 3), 7, np.uint8)).quantize(4).save(palette)
    assert read_picture(palette, **IDS).image.shape == (1, 6, 8, 3)


def read_mask(picture, mask, name="m.png"):
    return read_picture(picture("a.png"), (picture(name, mask),), **IDS).label[0]


def test_0_255_and_one_bit_and_rgb_masks_are_one_object(picture, mask):
    expected = mask > 0
    np.testing.assert_array_equal(read_mask(picture, mask), expected)
    np.testing.assert_array_equal(read_mask(picture, mask > 0), expected)
    np.testing.assert_array_equal(read_mask(picture, np.stack([mask] * 3, -1)), expected)
    opaque = np.dstack([mask, mask, mask, np.full_like(mask, 255)])
    np.testing.assert_array_equal(read_mask(picture, opaque), expected)


def test_grey_coded_classes_become_1_2(picture):
    values = np.zeros((6, 8), np.uint8)
    values[0], values[1] = 128, 255
    label = read_mask(picture, values)
    assert (label[0] == 1).all()
    assert (label[1] == 2).all()
    assert not label[2:].any()


@pytest.mark.parametrize("ids", [(1, 2), (2, 3), (5,), (1, 7, 300)])
def test_label_maps_keep_their_ids(picture, ids):
    values = np.zeros((6, 8), np.uint16 if max(ids) > 255 else np.uint8)
    for row, object_id in enumerate(ids):
        values[row] = object_id
    assert tuple(np.unique(read_mask(picture, values))[1:]) == ids


def test_jpeg_mask_is_thresholded(picture, mask):
    big = np.kron(mask, np.ones((16, 16), np.uint8))
    image = picture("a.png", np.zeros_like(big))
    case = read_picture(image, (picture("m.jpg", big),), **IDS)
    np.testing.assert_array_equal(case.label[0], big > 0)


def test_smoothed_mask_is_refused(picture):
    soft = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)
    soft = np.kron(soft, np.ones((2, 2), np.uint8))
    soft[::2] |= 1
    image = picture("a.png", np.zeros_like(soft))
    with pytest.raises(DataError, match=r"m\.png: \d+ distinct values.*Threshold"):
        read_picture(image, (picture("m.png", soft),), **IDS)


def test_coloured_mask_is_refused(picture):
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[0, :, 0], colours[1, :, 1] = 255, 255
    with pytest.raises(DataError, match=r"m\.png: a mask drawn in colours.*label map"):
        read_mask(picture, colours)


def test_several_masks_become_ids_by_name_and_small_lies_on_top(picture):
    organ, lesion = np.zeros((2, 6, 8), np.uint8)
    organ[1:5, 1:7], lesion[2:4, 2:4] = 255, 255
    files = (picture("m_lesion.png", lesion), picture("m_organ.png", organ))
    case = read_picture(picture("a.png"), files, **IDS)
    np.testing.assert_array_equal(case.label[0], np.where(lesion, 1, np.where(organ, 2, 0)))
    assert len(case.notes) == 1
    assert "m_organ.png: smaller objects lie on 17% of it" in case.notes[0]


def test_masks_that_cannot_share_a_map(picture, mask):
    with pytest.raises(DataError, match=r"m1\.png: the object is wholly covered"):
        read_picture(picture("a.png"), (picture("m1.png", mask), picture("m2.png", mask)), **IDS)
    with pytest.raises(DataError, match=r"m3\.png: one of 2 masks.*holds 0"):
        read_picture(
            picture("a.png"), (picture("m1.png", mask), picture("m3.png", mask * 0)), **IDS
        )


def test_mask_of_another_size(picture, mask):
    with pytest.raises(DataError, match=r"m\.png: the mask's shape \(6, 7\).*never resized"):
        read_mask(picture, mask[:, :7])


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_truncated_picture(picture, rng, name, kept):
    file = picture(name, rng.integers(0, 255, (40, 40), np.uint8))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{name}: cannot be read as a picture.*copy it again"):
        read_picture(file, **IDS)


def test_stack_of_pages_is_refused(picture):
    file = picture("a.tif")
    page = Image.fromarray(np.zeros((6, 8), np.uint8))
    page.save(file, save_all=True, append_images=[page])
    with pytest.raises(DataError, match="2 pages in one picture"):
        read_picture(file, **IDS)
