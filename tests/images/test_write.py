import nibabel
import numpy as np
import pytest
from PIL import Image

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Provenance, write_label
from efficient_medsam2.images.nifti import read_nifti

LAI = np.array([[-0.5, 0, 0, 7], [0, 0.6, 0, 8], [0, 0, -3.0, 9], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["out.nii.gz", "out.nii"])
def test_nifti_goes_back_to_the_files_grid(nifti, rng, tmp_path, name):
    stored = rng.integers(0, 4, (3, 4, 5), np.uint8)
    image = nifti("a.nii.gz", rng.normal(size=(3, 4, 5)).astype(np.float32), LAI)
    case = read_nifti(image, (nifti("b.nii.gz", stored, LAI),), case_id="a", patient_id="a")
    write_label(case.label, case, tmp_path / name)
    written = nibabel.load(tmp_path / name)
    np.testing.assert_array_equal(written.get_fdata(), stored)
    np.testing.assert_allclose(written.affine, nibabel.load(image).affine)
    assert written.get_data_dtype() == np.uint8


def test_equal_labels_give_equal_bytes(make_case, tmp_path):
    case = make_case(np.zeros((2, 3, 4), np.uint8))
    label = np.ones((2, 3, 4), bool)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label(label, case, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nifti_of_a_case_without_affine_has_its_spacing(make_case, tmp_path):
    case = make_case(np.zeros((2, 3, 4), np.uint8), spacing_mm=(5.0, 0.7, 0.5))
    label = np.arange(24).reshape(2, 3, 4)
    write_label(label, case, tmp_path / "a.nii")
    again = read_nifti(tmp_path / "a.nii", case_id="a", patient_id="a")
    np.testing.assert_array_equal(again.image, label)
    np.testing.assert_allclose(again.spacing_mm, (5.0, 0.7, 0.5), rtol=1e-6)


def test_npz_has_the_challenges_shape(make_case, tmp_path):
    label = np.zeros((1, 3, 4), np.uint16)
    label[0, 1, 1] = 300
    volume = make_case(np.zeros((1, 3, 4), np.uint8))
    write_label(label, volume, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as written:
        assert written.files == ["segs"]
        np.testing.assert_array_equal(written["segs"], label)
    flat = make_case(
        np.zeros((1, 3, 4), np.uint8),
        source=Provenance(files=(tmp_path,), format="npz", stored_ndim=2),
    )
    write_label(label, flat, tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as written:
        np.testing.assert_array_equal(written["segs"], label[0])


@pytest.mark.parametrize("highest", [3, 300])
def test_png(make_case, tmp_path, highest):
    label = np.zeros((1, 3, 4), np.uint16)
    label[0, 1, 1] = highest
    write_label(label, make_case(np.zeros((1, 3, 4), np.uint8)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        np.testing.assert_array_equal(np.array(written), label[0])


def test_what_cannot_be_written_leaves_nothing(make_case, tmp_path):
    case = make_case(np.zeros((2, 3, 4), np.uint8))
    label = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(DataError, match="not on the grid"):
        write_label(label[:1], case, tmp_path / "a.nii")
    with pytest.raises(DataError, match="whole numbers"):
        write_label(label + 0.5, case, tmp_path / "a.nii")
    with pytest.raises(DataError, match="has 2 slices, and PNG holds one"):
        write_label(label, case, tmp_path / "a.png")
    with pytest.raises(DataError, match=r"written as \.nii\.gz"):
        write_label(label, case, tmp_path / "a.mha")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(make_case, tmp_path, monkeypatch):
    case = make_case(np.zeros((2, 3, 4), np.uint8))
    file = tmp_path / "a.npz"
    file.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_label(np.zeros((2, 3, 4), np.uint8), case, file)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
