import hashlib

import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import find_cases


def ids(found):
    return [source.case_id for source in found]


def test_side_by_side_folders(tmp_path, picture, mask):
    for name in ("b", "a"):
        picture(f"set/images/{name}.jpg")
        picture(f"set/masks/{name}.png", mask)
    found = find_cases(tmp_path)
    assert ids(found) == ["a", "b"]
    assert found.sources[0].names == ("set/images/a.jpg", "set/masks/a.png")
    assert found.sources[0].load().object_ids == (1,)
    assert (found.skipped, found.notes) == ((), ())


@pytest.mark.parametrize("folder", ["labels", "instance_labels", "lung_labels", "Masks", "x_masks"])
def test_names_of_label_folders(tmp_path, picture, mask, folder):
    picture("images/a.png")
    picture(f"{folder}/a.png", mask)
    assert ids(find_cases(tmp_path)) == ["a"]


def test_several_masks_of_one_image_go_to_the_longest_stem(tmp_path, picture, mask):
    for name in ("scan_1", "scan_1_b"):
        picture(f"images/{name}.png")
    other = np.roll(mask, 3, axis=0)
    picture("masks/scan_1_liver_000.png", mask)
    picture("masks/scan_1_aorta_000.png", other)
    picture("masks/scan_1_b_liver_000.png", mask)
    first, second = find_cases(tmp_path)
    assert [file.name for file in first.label_files] == [
        "scan_1_aorta_000.png",
        "scan_1_liver_000.png",
    ]
    np.testing.assert_array_equal(first.load().label[0], (other > 0) + 2 * (mask > 0))
    assert [file.name for file in second.label_files] == ["scan_1_b_liver_000.png"]


def test_second_label_folder_and_stray_files_are_told(tmp_path, picture, mask):
    picture("images/a.png")
    picture("masks/a.png", mask)
    picture("edge_masks/a.png", mask)
    picture("overlays/a.png")
    (tmp_path / "more.nrrd").write_bytes(b"")
    found = find_cases(tmp_path)
    assert ids(found) == ["a"]
    assert len(found.notes) == 3
    assert any("edge_masks: 1 files left unread" in note for note in found.notes)
    assert any("overlays: 1 files left unread" in note for note in found.notes)
    assert any("more.nrrd" in note for note in found.notes)


def test_flat_folder_by_endings(tmp_path, picture, mask, nifti):
    picture("benign (1).png")
    picture("benign (1)_mask.png", mask)
    picture("benign (1)_mask_1.png", np.roll(mask, 3, axis=0))
    picture("Image_01L.jpg")
    picture("Image_01L_1stHO.png", mask)
    picture("Image_01L_2ndHO.png", mask)
    nifti("brain_image.nii.gz", np.ones((2, 3, 4), np.int16))
    nifti("brain_label.nii.gz", np.ones((2, 3, 4), np.uint8))
    found = find_cases(tmp_path)
    assert ids(found) == ["Image_01L", "benign (1)", "brain"]
    assert [source.load().object_ids for source in found] == [(1,), (1, 2), (1,)]
    assert "1 second annotations left unread" in found.notes[0]


def test_decathlon_and_nnunet_names(tmp_path, nifti):
    image, label = np.ones((2, 3, 4), np.int16), np.ones((2, 3, 4), np.uint8)
    for name in ("imagesTr/a_0000", "imagesTr/a_0001", "imagesTs/t"):
        nifti(f"{name}.nii.gz", image)
    nifti("labelsTr/a.nii.gz", label)
    (tmp_path / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"hidden")
    found = find_cases(tmp_path)
    assert ids(found) == ["a"]
    assert found.sources[0].names == ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    assert any("first channel" in note for note in found.notes)
    assert any("1 test images without labels" in note for note in found.notes)
    assert ids(find_cases(tmp_path, labels="optional")) == ["a", "t"]


def test_empty_folder_and_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"no case found\. It must hold npz"):
        find_cases(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        find_cases(tmp_path / "nowhere")
    (tmp_path / "a.nrrd").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.nrrd. Convert them to NIfTI"):
        find_cases(tmp_path)


def test_image_without_mask_and_mask_without_image(tmp_path, picture, mask):
    picture("images/a.png")
    picture("masks/a.png", mask)
    lonely = picture("images/lonely.png")
    with pytest.raises(DataError, match=r"lonely\.png: an image without mask\. Add a mask"):
        find_cases(tmp_path)
    assert ids(find_cases(tmp_path, labels="optional")) == ["a", "lonely"]
    found = find_cases(tmp_path, on_error="skip")
    assert ids(found) == ["a"]
    assert [skipped.name for skipped in found.skipped] == [str(lonely)]
    lonely.unlink()
    picture("masks/orphan.png", mask)
    for labels in ("required", "optional"):
        with pytest.raises(DataError, match=r"orphan\.png: a mask without image"):
            find_cases(tmp_path, labels=labels)
    assert "mask without image" in find_cases(tmp_path, on_error="skip").skipped[0].reason


def test_no_masks_at_all(tmp_path, picture):
    picture("images/a.png")
    picture("images/b.png")
    with pytest.raises(DataError, match="none of the 2 images here has a mask"):
        find_cases(tmp_path)
    assert len(find_cases(tmp_path, labels="optional")) == 2


def test_nothing_left_after_skipping_is_an_error(tmp_path, picture):
    picture("images/a.png")
    with pytest.raises(DataError, match="no case found"):
        find_cases(tmp_path, on_error="skip")


def test_two_files_with_one_case_name(tmp_path, npz):
    arrays = {"imgs": np.zeros((2, 3, 4), np.uint8), "gts": np.ones((2, 3, 4), np.uint8)}
    npz("one/a.npz", **arrays)
    npz("two/a.npz", **arrays)
    npz("two/b.npz", **arrays)
    with pytest.raises(DataError, match=r"case 'a' comes from .*one/a\.npz and .*two/a\.npz"):
        find_cases(tmp_path)
    found = find_cases(tmp_path, on_error="skip")
    assert ids(found) == ["b"]
    assert len(found.skipped) == 1


def test_label_map_without_object(tmp_path, npz):
    arrays = {"imgs": np.zeros((2, 3, 4), np.uint8), "gts": np.zeros((2, 3, 4), np.uint8)}
    npz("a.npz", **arrays)
    with pytest.raises(DataError, match=r"case a \(.*a\.npz\): the label map has no object"):
        find_cases(tmp_path).sources[0].load()
    assert find_cases(tmp_path, labels="optional").sources[0].load().object_ids == ()


def test_one_slice_volume_and_object_in_one_slice(tmp_path, npz):
    npz("a.npz", imgs=np.zeros((1, 3, 4), np.uint8), gts=np.ones((1, 3, 4), np.uint8))
    gts = np.zeros((5, 3, 4), np.uint8)
    gts[3, 1, 1] = 9
    npz("b.npz", imgs=np.zeros((5, 3, 4), np.uint8), gts=gts)
    first, second = (source.load() for source in find_cases(tmp_path))
    assert (first.image.shape[0], first.object_ids) == (1, (1,))
    assert second.object_ids == (9,)
    assert np.flatnonzero(second.label.any(axis=(1, 2))).tolist() == [3]


def test_npz_with_boxes_only_is_for_inference(tmp_path, npz):
    npz("2D_a.npz", imgs=np.zeros((3, 4, 3), np.uint8), boxes=np.array([[0, 1, 2, 3]]))
    with pytest.raises(DataError, match=r"2D_a\.npz: no array `gts`"):
        find_cases(tmp_path)
    case = find_cases(tmp_path, labels="optional").sources[0].load()
    np.testing.assert_array_equal(case.boxes, [[0, 1, 2, 3]])
    assert case.label is None
    npz("c.npz", segs=np.zeros(2))
    with pytest.raises(DataError, match=r"c\.npz: no array `imgs` \(it holds segs\)"):
        find_cases(tmp_path, labels="optional")


def test_patients(tmp_path, npz):
    arrays = {"imgs": np.zeros((2, 3, 4), np.uint8), "gts": np.ones((2, 3, 4), np.uint8)}
    for name in ("MR_ACDC_patient002_frame01", "CT_Lesion_000015_01_01_081-093", "x_1"):
        npz(f"{name}.npz", **arrays)
    assert [source.patient_id for source in find_cases(tmp_path)] == [
        "CT_Lesion_000015",
        "MR_ACDC_patient002",
        "x_1",
    ]
    found = find_cases(tmp_path, patient_pattern=r"(x)_")
    assert [source.patient_id for source in found][2] == "x"
    assert "does not match 2 of 3" in found.notes[0]
    with pytest.raises(DataError, match="matches none of 3 case ids"):
        find_cases(tmp_path, patient_pattern=r"(nobody)")
    with pytest.raises(DataError, match="has 0 groups"):
        find_cases(tmp_path, patient_pattern="x")
    with pytest.raises(DataError, match="not a regular expression"):
        find_cases(tmp_path, patient_pattern="(")


def test_digests_are_of_the_content(tmp_path, picture, mask):
    image = picture("images/a.png")
    picture("masks/a.png", mask)
    source = find_cases(tmp_path).sources[0]
    digests = source.digests()
    assert list(digests) == ["images/a.png", "masks/a.png"]
    assert digests["images/a.png"] == hashlib.sha256(image.read_bytes()).hexdigest()
    image.unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        source.digests()


def test_searching_loads_nothing(tmp_path, picture, mask):
    picture("images/a.png").write_bytes(b"not a picture")
    picture("masks/a.png", mask)
    found = find_cases(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        found.sources[0].load()


def test_one_file_is_a_source(npz, nifti):
    file = npz("a.npz", imgs=np.zeros((2, 3, 4), np.uint8), gts=np.ones((2, 3, 4), np.uint8))
    assert ids(find_cases(file)) == ["a"]
    volume = nifti("b.nii.gz", np.ones((2, 3, 4), np.int16))
    assert ids(find_cases(volume, labels="optional")) == ["b"]


def test_links_that_run_in_a_circle_end(tmp_path, picture, mask):
    picture("images/a.png")
    picture("masks/a.png", mask)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert ids(find_cases(tmp_path)) == ["a"]
