"""Every real data set loads as its description says, or is refused with a way out."""

import numpy as np
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import IntensityConfig, find_cases, squash_slices, to_uint8

# Folder, cases, patients, labels of the first case, shape of the first case.
EXPECTED = [
    ("ct_lesion_npz", 4, 3, (1,), (16, 512, 512)),
    ("msd_hippocampus", 12, 12, (1, 2), (35, 51, 35)),
    ("polyp/TrainDataset", 152, 152, (1,), (1, 529, 619, 3)),
    ("polyp/TestDataset", 46, 46, (1,), (1, 966, 1225, 3)),
    ("busi", 14, 14, (1,), (1, 416, 416, 3)),
    ("acdc_npz", 10, 5, (1, 2, 3), (10, 256, 232)),
    ("bus_uc", 10, 10, (1,), (1, 512, 512, 3)),
    ("chase_db1", 14, 7, (1,), (1, 960, 999, 3)),
    ("covid_cxr", 15, 15, (1, 2), (1, 631, 790, 3)),
    ("dsb2018", 13, 13, tuple(range(1, 28)), (1, 256, 256, 3)),
    ("wbc/dataset1", 12, 12, (1, 2), (1, 120, 120, 3)),
    ("wbc/dataset2", 10, 10, (1, 2), (1, 300, 300, 3)),
    ("pyradiomics_tumour", 2, 2, (1,), (25, 256, 256)),
    ("dicom_ct_liver", 1, 1, (1,), (3, 512, 512)),
    ("xray_pneumothorax_npz", 4, 4, (2,), (1, 1024, 1024, 3)),
    ("biomedparse_demo", 8, 8, (1,), (1, 1024, 1024, 3)),
    ("sammed2d_demo", 2, 2, (1, 2, 3), (1, 512, 512, 3)),
    ("isic2017", 2, 2, (1,), (1, 2000, 3008, 3)),
    ("ham10000", 2, 2, (1,), (1, 450, 600, 3)),
    ("fives", 1, 1, (1,), (1, 2048, 2048, 3)),
]


@pytest.mark.parametrize(("folder", "cases", "patients", "objects", "shape"), EXPECTED)
def test_folder(data, folder, cases, patients, objects, shape):
    found = find_cases(data / folder)
    assert len(found) == cases
    assert len({source.patient_id for source in found}) == patients
    case = found.sources[0].load()
    assert case.object_ids == objects
    assert case.image.shape == shape
    grey = to_uint8(case, IntensityConfig())
    assert squash_slices(grey[:1], 64).std() > 1


@pytest.mark.slow
@pytest.mark.parametrize("folder", [row[0] for row in EXPECTED if row[0] != "biomedparse_demo"])
def test_every_case_of_a_folder(data, folder):
    for source in find_cases(data / folder):
        assert source.load().object_ids


def test_masks_that_cover_each_other_are_refused_and_a_listing_mends_it(data, tmp_path):
    root = data / "biomedparse_demo"
    sources = {source.case_id: source for source in find_cases(root)}
    for case_id in ("06_CT_abdomen", "15_X-Ray_chest"):
        with pytest.raises(DataError, match="wholly covered"):
            sources.pop(case_id).load()
    for source in sources.values():
        assert source.load().object_ids
    listing = tmp_path / "cases.csv"
    masks = f"{root}/masks/06_CT_abdomen_liver.png;{root}/masks/06_CT_abdomen_spleen.png"
    listing.write_text(f"image,label\n{root}/images/06_CT_abdomen.png,{masks}\n")
    assert find_cases(listing).sources[0].load().object_ids == (1, 2)


def test_two_sets_with_equal_file_names(data):
    with pytest.raises(DataError, match=r"case '001' comes from .*dataset1.* and .*dataset2"):
        find_cases(data / "wbc")


def test_brain_tumour_needs_a_listing(data, tmp_path):
    root = data / "brats2013"
    with pytest.raises(DataError, match="write a listing"):
        find_cases(root)
    patient = root / "brats_2013_pat0005_1"
    listing = tmp_path / "cases.csv"
    listing.write_text(
        "image,label,case\n"
        f"{patient}/Flair_subtrMeanDivStd.nii.gz,{patient}/OTMultiClass.nii.gz,pat0005\n"
    )
    case = find_cases(listing).sources[0].load()
    assert case.image.shape == (155, 240, 240)
    assert set(case.object_ids) <= {1, 2, 3, 4}
    assert to_uint8(case, IntensityConfig()).max() == 255


def test_challenge_file_without_labels(data):
    folder = data / "cvpr24_demo_npz"
    with pytest.raises(DataError, match="no array `gts`"):
        find_cases(folder)
    case = find_cases(folder, labels="optional").sources[0].load()
    assert case.boxes.shape == (4, 4)
    assert case.image.shape == (1, 2604, 1726, 3)


def test_lesion_spacing_is_slices_first(data):
    for source in find_cases(data / "ct_lesion_npz"):
        case = source.load()
        assert case.spacing_mm[0] == 5.0
        assert case.spacing_mm[1] == case.spacing_mm[2] < 1
        np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), case.spacing_mm)
