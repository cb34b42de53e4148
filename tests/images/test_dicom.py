import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import Case, IntensityConfig, find_cases, to_uint8, write_label
from efficient_medsam2.images.dicom import read_dicom


def read(files: list[Path], segmentations: tuple[Path, ...] = ()) -> Case:
    return read_dicom(files, segmentations, case_id="a", patient_id="a")


def test_slices_are_ordered_by_position_and_in_hounsfield_units(ct_slice):
    case = read([ct_slice(f"{i}.dcm", z) for i, z in enumerate((30.0, 10.0, 20.0))])
    assert (case.image.dtype, case.modality) == (np.int16, "CT")
    assert case.image[:, 1, 1].tolist() == [10, 20, 30]
    assert case.image[0, 0, 0] == -1024
    assert case.spacing_mm == (10.0, 0.8, 0.5)
    # DICOM is LPS, the affine RAS: x and y change sign.
    np.testing.assert_allclose(case.affine @ [1, 2, 4, 1], [10 - 2.0, 20 - 1.6, 20, 1])
    assert nibabel.aff2axcodes(case.affine) == ("S", "P", "L")


def test_fractional_rescale_and_inverted_greys(ct_slice):
    case = read([ct_slice("a.dcm", 10.0, RescaleSlope=0.5)])
    assert case.image.dtype == np.float32
    assert case.image[0, 1, 1] == 517 - 1024
    inverted = read([ct_slice("b.dcm", 10.0, PhotometricInterpretation="MONOCHROME1")])
    assert inverted.image[0, 1, 1] == 4095 - 1034 - 1024


def test_segments_go_where_their_frames_lie(ct_slice, segmentation):
    files = [ct_slice(f"{i}.dcm", z) for i, z in enumerate((30.0, 10.0, 20.0))]
    liver, spleen = np.zeros((2, 8, 16), np.uint8)
    liver[1:4, 1:9], spleen[5:7, 10:14] = 1, 1
    seg = segmentation("seg.dcm", [(1, 20.0, liver), (1, 30.0, liver), (4, 10.0, spleen)])
    label = read(files, (seg,)).label
    np.testing.assert_array_equal(label[0], 2 * spleen)
    np.testing.assert_array_equal(label[1], liver)
    np.testing.assert_array_equal(label[2], liver)


def test_segmentation_on_another_grid(ct_slice, segmentation):
    files = [ct_slice(f"{i}.dcm", z) for i, z in enumerate((10.0, 20.0))]
    mask = np.ones((8, 16), np.uint8)
    for z_mm in (15.0, 30.0):
        seg = segmentation("seg.dcm", [(1, z_mm, mask)])
        with pytest.raises(DataError, match=r"seg\.dcm: a frame of .* is not a slice"):
            read(files, (seg,))
    with pytest.raises(DataError, match=r"seg\.dcm: a frame of \(8, 8\)"):
        read(files, (segmentation("seg.dcm", [(1, 10.0, mask[:, :8])]),))


def test_series_that_make_no_volume(ct_slice):
    one, two = ct_slice("1.dcm", 10.0), ct_slice("2.dcm", 20.0)
    with pytest.raises(DataError, match="at the same position"):
        read([one, two, ct_slice("3.dcm", 20.0)])
    with pytest.raises(DataError, match="A slice is missing"):
        read([one, two, ct_slice("3.dcm", 30.0), ct_slice("5.dcm", 50.0)])
    with pytest.raises(DataError, match="size or orientation differs"):
        read([one, ct_slice("3.dcm", 30.0, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])])
    with pytest.raises(DataError, match="at the same position"):
        read([ct_slice("3.dcm", 30.0, NumberOfFrames=4)])
    unplaced = ct_slice("4.dcm", 30.0)
    dataset = pydicom.dcmread(unplaced)
    del dataset.ImagePositionPatient
    dataset.save_as(unplaced)
    with pytest.raises(DataError, match=r"4\.dcm: no ImagePositionPatient"):
        read([one, unplaced])
    case = read([unplaced])
    assert (case.affine, case.spacing_mm) == (None, (1.0, 0.8, 0.5))


def enhanced(ct_slice, rng, heights_mm, **changes):
    """Write an enhanced CT of frames at these heights, each rescaled on its own; the pixels."""
    pixels = rng.integers(0, 4000, (len(heights_mm), 8, 16)).astype(np.uint16)
    file = ct_slice("many.dcm", 0.0, pixels, NumberOfFrames=len(heights_mm), **changes)
    dataset = pydicom.dcmread(file)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del dataset[tag]
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.5], 2.5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    groups = []
    for index, z_mm in enumerate(heights_mm):
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-10.0, -20.0, z_mm]
        values.RescaleSlope, values.RescaleIntercept = 1, -1000 - index
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.save_as(file)
    return file, pixels


def test_enhanced_multi_frame_image(tmp_path, ct_slice, segmentation, rng):
    file, pixels = enhanced(ct_slice, rng, (30.0, 10.0, 20.0))
    case = read([file])
    offsets = 1000 + np.arange(3)[:, None, None]
    np.testing.assert_array_equal(case.image, (pixels.astype(int) - offsets)[[1, 2, 0]])
    assert (case.image.dtype, case.spacing_mm) == (np.int16, (10.0, 0.8, 0.5))
    assert case.source.files == (file,)
    np.testing.assert_allclose(case.affine @ [0, 0, 0, 1], [10, 20, 10, 1])
    mask = np.zeros((8, 16), np.uint8)
    mask[2:5, 3:9] = 1
    segmentation("seg.dcm", [(1, 20.0, mask)])
    (source,) = find_cases(tmp_path)
    slices = source.open()
    np.testing.assert_array_equal(slices.labels(0, 3)[1], mask)
    expected = to_uint8(source.load(), IntensityConfig())
    for index in (2, 0, 1):
        shown = slices.pictures(index, index + 1, IntensityConfig())
        np.testing.assert_array_equal(shown[0], expected[index])
    slices.close()
    with pytest.raises(DataError, match="at the same position"):
        read([enhanced(ct_slice, rng, (30.0, 10.0, 10.0))[0]])


def test_cine_loop_keeps_its_order(ct_slice, rng):
    pixels = rng.integers(0, 4000, (5, 8, 16)).astype(np.uint16)
    file = ct_slice("loop.dcm", 0.0, pixels, NumberOfFrames=5, Modality="XA")
    dataset = pydicom.dcmread(file)
    for tag in ("ImagePositionPatient", "ImageOrientationPatient"):
        del dataset[tag]
    dataset.save_as(file)
    case = read([file])
    np.testing.assert_array_equal(case.image, pixels.astype(int) - 1024)
    assert (case.affine, case.modality, case.spacing_mm) == (None, "XR", (1.0, 0.8, 0.5))


def test_truncated_dicom(tmp_path, ct_slice):
    file = ct_slice("a.dcm", 10.0)
    content = file.read_bytes()
    file.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"a\.dcm: cannot be read as DICOM"):
        read([file])
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"a\.dcm: cannot be read as DICOM"):
        find_cases(tmp_path)


def test_series_and_its_segmentation_are_found(tmp_path, ct_slice, segmentation, ct_series):
    ct_slice("ct/without_suffix", 10.0)
    ct_slice("ct/2.dcm", 20.0)
    mask = np.ones((8, 16), np.uint8)
    with pytest.raises(DataError, match="without mask: no DICOM SEG refers to it"):
        find_cases(tmp_path)
    assert len(find_cases(tmp_path, labels="optional").sources[0].image_files) == 2
    segmentation("seg/s.dcm", [(1, 20.0, mask)])
    (source,) = find_cases(tmp_path)
    assert (source.case_id, source.patient_id) == (ct_series, "P7")
    assert source.load().label.any(axis=(1, 2)).tolist() == [False, True]
    listing = tmp_path / "cases.csv"
    listing.write_text("image,label,case\nct,seg/s.dcm,mine\n")
    (listed,) = find_cases(listing)
    assert (listed.case_id, listed.patient_id) == ("mine", "P7")
    assert listed.load().object_ids == (1,)
    segmentation("seg/other.dcm", [(1, 20.0, mask)], series=generate_uid())
    with pytest.raises(DataError, match=r"other\.dcm: a segmentation without image"):
        find_cases(tmp_path)


def test_real_series_agrees_with_its_independent_label_map(data, tmp_path):
    folder = data / "dicom_ct_liver"
    case = find_cases(folder).sources[0].load()
    assert case.image.shape == (3, 512, 512)
    content = (folder / "seg" / "liver_spine_seg.nrrd").read_bytes()
    header, body = content.split(b"\n\n", 1)
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    raw = gzip.decompress(body) if fields["encoding"].startswith("gz") else body
    kind = {"unsigned char": np.uint8, "short": np.int16, "unsigned short": np.uint16}
    xyz = [int(size) for size in fields["sizes"].split()]
    nrrd = np.frombuffer(raw, kind[fields["type"]]).reshape(xyz[::-1])
    np.testing.assert_array_equal(case.label, nrrd == 1)
    origin = [float(value) for value in fields["space origin"].strip("()").split(",")]
    np.testing.assert_allclose(case.affine[:3, 3], [-origin[0], -origin[1], origin[2]], atol=1e-3)
    assert 30 < np.median(case.image[case.label > 0]) < 80  # liver without contrast, HU
    # The topmost slice has most lung: its own label holds less of it than the lowest one's.
    lung = case.image[2] < -500
    assert lung[case.label[2] > 0].sum() < 0.7 * lung[case.label[0] > 0].sum()
    assert to_uint8(case, IntensityConfig()).max() == 255
    write_label(case.label, case, tmp_path / "a.nii.gz")
    written = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(written.affine, case.affine[:, [2, 1, 0, 3]], atol=1e-5)
    np.testing.assert_array_equal(written.get_fdata().T, case.label)
