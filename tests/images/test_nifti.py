import nibabel
import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images.nifti import read_nifti, stored_label, to_stored_axes

IDS = {"case_id": "a", "patient_id": "a"}
# Columns: stored axis i, j, k; the numbers are voxel sizes in mm.
ORIENTATIONS = {
    "RAS": np.diag([0.5, 0.6, 3.0, 1.0]),
    "LPS": np.diag([-0.5, -0.6, 3.0, 1.0]),
    "LAI": np.diag([-0.5, 0.6, -3.0, 1.0]),
    "ASL": np.array([[0, 0, -3.0, 7], [0.5, 0, 0, 8], [0, 0.6, 0, 9], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_orientation_becomes_head_back_left(nifti, rng, name):
    values = rng.normal(size=(3, 4, 5)).astype(np.float32)
    case = read_nifti(nifti("a.nii.gz", values, ORIENTATIONS[name]), **IDS)
    assert np.diag(case.affine[[2, 1, 0], :3]).round(1).tolist() in (
        [3.0, -0.6, -0.5],
        [0.6, -0.5, -3.0],
    )
    assert nibabel.aff2axcodes(case.affine) == ("S", "P", "L")
    sizes = np.linalg.norm(case.affine[:3, :3], axis=0)
    np.testing.assert_allclose(case.spacing_mm, sizes)
    # The same place in the patient holds the same value.
    inverse = np.linalg.inv(ORIENTATIONS[name])
    for d, h, w in [(0, 0, 0), (1, 2, 0), tuple(n - 1 for n in case.image.shape)]:
        i, j, k = np.rint(inverse @ case.affine @ [d, h, w, 1])[:3].astype(int)
        assert case.image[d, h, w] == values[i, j, k]
    np.testing.assert_array_equal(to_stored_axes(case.image, case.source), values)


def test_oblique_volume_keeps_its_grid(nifti, rng):
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    affine = np.eye(4)
    affine[:2, :3] = turn
    values = rng.integers(0, 99, (3, 4, 5), np.int16)
    case = read_nifti(nifti("a.nii", values, affine), **IDS)
    np.testing.assert_allclose(case.spacing_mm, 1)
    np.testing.assert_array_equal(to_stored_axes(case.image, case.source), values)


def test_dtype_and_modality(nifti):
    ct = np.full((2, 2, 2), -1000, np.int16)
    case = read_nifti(nifti("a.nii.gz", ct), **IDS)
    assert (case.image.dtype, case.modality) == (np.int16, "CT")
    mr = read_nifti(nifti("b.nii.gz", np.ones((2, 2, 2), np.float64)), **IDS)
    assert (mr.image.dtype, mr.modality) == (np.float32, "MR")


def test_one_slice_and_two_dimensions(nifti):
    assert read_nifti(nifti("a.nii", np.ones((4, 5, 1), np.int16)), **IDS).image.shape == (1, 5, 4)
    assert read_nifti(nifti("b.nii", np.ones((4, 5), np.int16)), **IDS).image.shape == (1, 5, 4)
    four = nifti("c.nii", np.ones((4, 5, 2, 1), np.int16))
    assert read_nifti(four, **IDS).image.shape == (2, 5, 4)


def test_float_labels_are_ids(nifti):
    label = np.zeros((2, 3, 4), np.float32)
    label[1, 2, 3] = 4
    image = nifti("a.nii.gz", np.ones((2, 3, 4), np.int16))
    case = read_nifti(image, (nifti("b.nii.gz", label),), **IDS)
    assert case.object_ids == (4,)
    np.testing.assert_array_equal(to_stored_axes(case.label, case.source), label)


def test_several_masks_become_ids_by_name(nifti):
    image = nifti("a.nii.gz", np.ones((2, 3, 4), np.int16))
    liver, spleen = np.zeros((2, 2, 3, 4), np.uint8)
    liver[0], spleen[1] = 1, 1
    files = (nifti("spleen.nii.gz", spleen), nifti("liver.nii.gz", liver))
    case = read_nifti(image, files, **IDS)
    np.testing.assert_array_equal(to_stored_axes(case.label, case.source), liver + 2 * spleen)


def test_label_on_another_grid(nifti):
    image = nifti("a.nii.gz", np.ones((2, 3, 4), np.int16))
    with pytest.raises(DataError, match=r"b\.nii\.gz: the label's shape.*never resized"):
        read_nifti(image, (nifti("b.nii.gz", np.ones((2, 3, 5), np.uint8)),), **IDS)
    flipped = nifti("c.nii.gz", np.ones((2, 3, 4), np.uint8), np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(DataError, match=r"c\.nii\.gz: the label lies up to .* mm away"):
        read_nifti(image, (flipped,), **IDS)
    rounded = nifti("d.nii.gz", np.ones((2, 3, 4), np.uint8), np.diag([1.001, 1, 1, 1]))
    assert read_nifti(image, (rounded,), **IDS).object_ids == (1,)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.8])
def test_truncated_nifti(nifti, rng, name, kept):
    file = nifti(name, rng.normal(size=(9, 9, 9)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{name}: cannot be read as NIfTI.*copy it again"):
        read_nifti(file, **IDS)


def test_volumes_that_are_no_case(nifti):
    with pytest.raises(DataError, match=r"not one 3D volume"):
        read_nifti(nifti("a.nii", np.ones((2, 3, 4, 5), np.int16)), **IDS)
    values = np.ones((2, 3, 4), np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"b\.nii.*1 of 24 image values are NaN"):
        read_nifti(nifti("b.nii", values), **IDS)
    volume = nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.eye(4))
    volume.header.set_xyzt_units("meter")
    file = nifti("c.nii", np.ones((1, 1, 1), np.int16))
    nibabel.save(volume, file)
    with pytest.raises(DataError, match="lengths are in meter"):
        read_nifti(file, **IDS)


def test_stored_label_keeps_the_stored_axes(nifti):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    ids, affine = stored_label(nifti("a.nii", values, ORIENTATIONS["LAI"]))
    np.testing.assert_array_equal(ids, values)
    np.testing.assert_allclose(affine, ORIENTATIONS["LAI"])


def test_flipped_byte_in_compressed_nifti_is_noticed(nifti, rng):
    file = nifti("a.nii.gz", rng.normal(size=(9, 9, 9)))
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_nifti(file, **IDS)
