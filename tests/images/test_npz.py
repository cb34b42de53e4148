import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import find_cases
from efficient_medsam2.images.npz import read_npz

IDS = {"case_id": "a", "patient_id": "a"}


class Trap:
    """Unpickling it raises."""

    def __reduce__(self):
        return (pytest.fail, ("the archive was unpickled",))


def test_spacing_is_turned_from_xyz_to_dhw(npz):
    file = npz(
        "a.npz",
        imgs=np.zeros((3, 4, 5), np.uint8),
        gts=np.ones((3, 4, 5), np.uint8),
        spacing=np.array([0.5, 0.7, 5.0]),
    )
    case = read_npz(file, **IDS)
    assert case.spacing_mm == (5.0, 0.7, 0.5)
    assert case.image.shape == (3, 4, 5)
    assert case.label.dtype == np.uint16
    assert case.affine is None


def test_affine_comes_from_simpleitk_origin_and_direction(npz):
    # SimpleITK: a volume whose x index grows to the left and y to the back (LPS identity).
    file = npz(
        "a.npz",
        imgs=np.zeros((3, 4, 5), np.uint8),
        spacing=np.array([0.5, 0.7, 5.0]),
        origin=np.array([10.0, 20.0, 30.0]),
        direction=np.eye(3).ravel(),
    )
    affine = read_npz(file, **IDS).affine
    np.testing.assert_allclose(affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(affine @ [2, 1, 3, 1], [-10 - 1.5, -20 - 0.7, 40, 1])


def test_colour_picture_and_grey_picture_and_thin_volume(npz):
    rgb = read_npz(npz("a.npz", imgs=np.zeros((4, 5, 3), np.uint8)), **IDS)
    assert rgb.image.shape == (1, 4, 5, 3)
    assert rgb.modality == "RGB"
    grey = read_npz(npz("b.npz", imgs=np.zeros((4, 5), np.uint8)), **IDS)
    assert grey.image.shape == (1, 4, 5)
    assert grey.modality == "uint8"
    arrays = {"imgs": np.zeros((4, 5, 3), np.uint8), "gts": np.ones((4, 5, 3), np.uint8)}
    assert read_npz(npz("c.npz", **arrays), **IDS).image.shape == (4, 5, 3)
    boxes = {"imgs": np.zeros((4, 5, 3), np.uint8), "boxes": np.array([[0, 0, 0, 1, 1, 1]])}
    assert read_npz(npz("d.npz", **boxes), **IDS).image.shape == (4, 5, 3)


def test_modality_is_guessed_from_values(npz):
    ct = npz("a.npz", imgs=np.full((1, 2, 2), -1000, np.int16))
    assert read_npz(ct, **IDS).modality == "CT"
    assert read_npz(npz("b.npz", imgs=np.ones((1, 2, 2), np.int16)), **IDS).modality == "other"
    assert read_npz(ct, modality="MR", **IDS).modality == "MR"


def test_labels_beginning_at_2_stay(npz):
    gts = np.zeros((4, 5), np.uint8)
    gts[1, 1], gts[2, 2] = 2, 3
    case = read_npz(npz("a.npz", imgs=np.zeros((4, 5, 3), np.uint8), gts=gts), **IDS)
    assert case.object_ids == (2, 3)


@pytest.mark.parametrize("key", ["imgs", "gts"])
def test_pickles_are_refused_and_never_run(npz, key):
    arrays = {"imgs": np.zeros((4, 5), np.uint8), "gts": np.ones((4, 5), np.uint8)}
    arrays[key] = np.array([Trap()], dtype=object)
    file = npz("a.npz", **arrays)
    with pytest.raises(DataError, match=r"a\.npz.*pickled.*savez_compressed"):
        find_cases(file).sources[0].load()


def test_a_bare_pickle_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    np.save(file.with_suffix(".npy"), np.array([Trap()], dtype=object))
    file.with_suffix(".npy").rename(file)
    with pytest.raises(DataError, match=r"a\.npz"):
        read_npz(file, **IDS)


@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_truncated_npz(npz, rng, kept):
    file = npz("a.npz", imgs=rng.integers(0, 255, (2, 30, 30), np.uint8))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=r"a\.npz.*truncated or damaged.*copy it again"):
        find_cases(file, labels="optional")


def test_flipped_byte_is_noticed(npz, rng):
    file = npz("a.npz", imgs=rng.integers(0, 255, (2, 30, 30), np.uint8))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz.*damaged"):
        read_npz(file, **IDS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(2)}, "no array `imgs` .it holds other"),
        ({"imgs": np.zeros((2, 3, 4)), "spacing": np.ones(4)}, "`spacing` has 4 numbers"),
        ({"imgs": np.zeros((2, 3, 4)), "gts": np.full((2, 3, 4), -1)}, "0..65535"),
        ({"imgs": np.zeros((2, 3, 4)), "gts": np.full((2, 3, 4), 0.5)}, "fractions"),
        ({"imgs": np.zeros((2, 3, 4)), "gts": np.ones((2, 3, 5), np.uint8)}, "differs"),
        ({"imgs": np.full((2, 3, 4), np.nan)}, "NaN"),
    ],
)
def test_arrays_that_make_no_case(npz, arrays, message):
    with pytest.raises(DataError, match=message):
        read_npz(npz("a.npz", **arrays), **IDS)
