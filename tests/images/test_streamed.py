"""Cases read slice by slice are the cases that loading gives, in memory that stays flat."""

import gc
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from efficient_medsam2.errors import DataError
from efficient_medsam2.images import CaseSource, IntensityConfig, find_cases, to_uint8
from efficient_medsam2.images.slices import CaseSlices
from efficient_medsam2.images.streamed import StreamedSlices

CONFIGS = (IntensityConfig(), IntensityConfig(ct_window="lung", percentiles=(2, 90)))
ORIENTATIONS = {
    "RAS": np.diag([0.5, 0.6, 3.0, 1.0]),
    "LAI": np.diag([-0.5, 0.6, -3.0, 1.0]),
    "ASL": np.array([[0, 0, -3.0, 7], [0.5, 0, 0, 8], [0, 0.6, 0, 9], [0, 0, 0, 1.0]]),
    "SPR": np.array([[0, 0, 3.0, 7], [0, -0.5, 0, 8], [0.6, 0, 0, 9], [0, 0, 0, 1.0]]),
}


def check_equal(source: CaseSource) -> CaseSlices:
    """Compare an open case with the loaded one in every order of reading; returned closed."""
    case = source.load()
    slices = source.open()
    assert slices.shape == case.image.shape[:3]
    assert slices.channels == (3 if case.image.ndim == 4 else 1)
    assert slices.modality == case.modality
    assert slices.spacing_mm == case.spacing_mm
    assert slices.object_ids == case.object_ids
    assert slices.notes == case.notes
    depth = len(case.image)
    upward = [(start, min(start + 2, depth)) for start in range(0, depth, 2)]
    for config in CONFIGS:
        expected = to_uint8(case, config)
        for start, stop in [*upward, (0, depth), *reversed(upward), *upward]:
            pictures = slices.pictures(start, stop, config)
            assert pictures.dtype == np.uint8
            np.testing.assert_array_equal(pictures, expected[start:stop])
            if case.label is not None:
                labels = slices.labels(start, stop)
                assert labels.dtype == np.uint16
                np.testing.assert_array_equal(labels, case.label[start:stop])
    if case.label is None:
        with pytest.raises(DataError, match="it has no label"):
            slices.labels(0, 1)
    if case.recist is None:
        assert slices.recist(0, 1) is None
    else:
        np.testing.assert_array_equal(slices.recist(0, depth), case.recist)
    slices.close()
    slices.close()
    return slices


@pytest.fixture
def small_blocks(monkeypatch):
    """Read two or three slices of the tests' volumes at a time, as of large ones."""
    monkeypatch.setattr("efficient_medsam2.images.planes.BLOCK_BYTES", 100)


def ids_like(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 4, shape, np.uint8)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "i2", ">i2", "f4", "f8"])
def test_npz(tmp_path, rng, small_blocks, kind, order, compress):
    image = np.asarray(rng.normal(size=(7, 5, 6)) * 60 + 90, kind, order=order)
    gts = np.asarray(ids_like(rng, image.shape), order=order)
    recist = np.asarray(gts == 2, np.uint8)
    save = np.savez_compressed if compress else np.savez
    save(tmp_path / "a.npz", imgs=image, gts=gts, recist=recist, spacing=np.array([0.5, 0.7, 5]))
    slices = check_equal(find_cases(tmp_path).sources[0])
    assert isinstance(slices, StreamedSlices)


def test_npz_ct_and_colour(tmp_path, npz, rng, small_blocks):
    npz("ct.npz", imgs=rng.integers(-1024, 900, (4, 5, 6), np.int16), gts=np.ones((4, 5, 6), bool))
    for order in "CF":
        frames = np.asarray(rng.integers(0, 255, (4, 5, 6, 3), np.uint8), order=order)
        npz(f"rgb_{order}.npz", imgs=frames, gts=np.ones((4, 5, 6), np.int64))
    found = [check_equal(source) for source in find_cases(tmp_path)]
    assert [slices.modality for slices in found] == ["CT", "RGB", "RGB"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8"])
def test_nifti(tmp_path, nifti, rng, small_blocks, suffix, name, kind):
    values = (rng.normal(size=(5, 6, 7)) * 60 + 90).astype(kind)
    affine = ORIENTATIONS[name]
    nifti(f"images/a{suffix}", values, affine)
    nifti(f"labels/a{suffix}", ids_like(rng, values.shape), affine)
    slices = check_equal(find_cases(tmp_path).sources[0])
    assert isinstance(slices, StreamedSlices)


def test_nifti_with_slope_and_several_masks(tmp_path, rng, small_blocks):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    volume = nibabel.Nifti1Image(rng.normal(size=(5, 6, 7)), np.eye(4), dtype=np.int16)
    volume.header.set_slope_inter(0.013, -1.7)
    nibabel.save(volume, tmp_path / "images" / "a.nii.gz")
    organ, lesion = np.zeros((2, 5, 6, 7), np.uint8)
    organ[1:4, 1:5, 1:6], lesion[2:3, 2:4, 2:4] = 1, 1
    for stem, mask in (("a_organ", organ), ("a_lesion", lesion)):
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "masks" / f"{stem}.nii.gz")
    (source,) = find_cases(tmp_path)
    assert len(check_equal(source).notes) == 1
    nibabel.save(nibabel.Nifti1Image(lesion * 0, np.eye(4)), tmp_path / "masks/a_lesion.nii.gz")
    with pytest.raises(DataError, match="must hold exactly one object, this one holds 0"):
        source.open()


def test_dicom(tmp_path, rng, ct_slice, segmentation):
    for index, z_mm in enumerate((30.0, 10.0, 20.0, 0.0)):
        pixels = rng.integers(0, 4000, (8, 16)).astype(np.uint16)
        ct_slice(f"{index}.dcm", z_mm, pixels)
    liver, spleen = np.zeros((2, 8, 16), np.uint8)
    liver[1:6, 1:9], spleen[5:7, 7:14] = 1, 1
    segmentation("seg.dcm", [(1, 20.0, liver), (4, 20.0, spleen), (1, 30.0, liver)])
    slices = check_equal(find_cases(tmp_path).sources[0])
    assert isinstance(slices, StreamedSlices)
    assert len(slices.notes) == 1


@pytest.mark.parametrize(
    ("folder", "cases"),
    [
        ("ct_lesion_npz", 1),
        ("acdc_npz", 2),
        ("msd_hippocampus", 3),
        ("pyradiomics_tumour", 2),
        ("dicom_ct_liver", 1),
        ("busi", 2),
        ("covid_cxr", 2),
        ("dsb2018", 2),
        ("wbc/dataset1", 2),
        ("polyp/TrainDataset", 1),
        ("xray_pneumothorax_npz", 1),
        ("sammed2d_demo", 1),
    ],
)
def test_real_data(data, folder, cases):
    for source in list(find_cases(data / folder))[:cases]:
        check_equal(source)


def damaged(file: Path, at: float, by: int) -> None:
    content = bytearray(file.read_bytes())
    content[int(len(content) * at)] ^= by
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgs": np.full((2, 3, 4), np.nan)}, "24 of 24 image values are NaN"),
        ({"gts": np.ones((2, 3, 5), np.uint8)}, r"label's shape \(2, 3, 5\) differs"),
        ({"gts": np.full((2, 3, 4), -1)}, "0..65535"),
        ({"gts": np.full((2, 3, 4), 0.5)}, "fractions"),
        ({"gts": np.zeros((2, 3, 4), np.uint8)}, "has no object"),
        ({"gts": np.array([{}])}, "pickled"),
        ({"recist": np.zeros((2, 3, 3), np.uint8)}, "`recist` differs"),
        ({"spacing": np.ones(4)}, "`spacing` has 4 numbers"),
        ({"spacing": np.array([1, 1, -1])}, "not three positive numbers"),
        ({"imgs": np.zeros((2, 3, 4), np.complex64)}, "not real numbers"),
        ({"imgs": np.zeros((2, 3, 4), np.longdouble)}, "not real numbers"),
        ({"imgs": np.zeros((0, 3, 4), np.uint8)}, "is empty"),
        ({"imgs": np.zeros((2, 3, 4, 5), np.uint8)}, r"neither \(D,H,W\)"),
    ],
)
def test_opening_refuses_what_loading_refuses(npz, arrays, message):
    good = {"imgs": np.zeros((2, 3, 4), np.uint8), "gts": np.ones((2, 3, 4), np.uint8)}
    (source,) = find_cases(npz("a.npz", **(good | arrays)))
    for read in (source.load, source.open):
        with pytest.raises(DataError, match=message) as caught:
            read()
        assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_damage_in_the_last_slices_is_met_on_opening(tmp_path, npz, nifti, rng, at):
    image = rng.integers(0, 255, (30, 20, 20), np.uint8)
    file = npz("a.npz", imgs=image)
    damaged(file, at, 0xFF)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as npz"):
        find_cases(file, labels="optional").sources[0].open()
    volume = nifti("a.nii.gz", image)
    damaged(volume, at, 0xFF)
    with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be read as NIfTI"):
        find_cases(volume, labels="optional").sources[0].open()
    raw = nifti("b.nii", image)
    raw.write_bytes(raw.read_bytes()[: int(at * raw.stat().st_size)])
    with pytest.raises(DataError, match=r"b\.nii: cannot be read as NIfTI"):
        find_cases(raw, labels="optional").sources[0].open()


def test_a_full_temporary_folder_is_told(nifti, monkeypatch):
    file = nifti("a.nii", np.ones((3, 4, 5), np.int16), ORIENTATIONS["ASL"])

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        find_cases(file, labels="optional").sources[0].open()


def test_findings_spare_the_first_pass(tmp_path, npz, rng, monkeypatch):
    npz("a.npz", imgs=rng.integers(1, 99, (6, 5, 4), np.int16), gts=np.ones((6, 5, 4), np.uint8))
    (source,) = find_cases(tmp_path)
    first = source.open()
    expected = first.pictures(0, 6, CONFIGS[0])
    first.close()
    monkeypatch.setattr(StreamedSlices, "_find", None)
    monkeypatch.setattr(StreamedSlices, "_survey_image", None)
    again = source.open(first.findings)
    assert again.object_ids == (1,)
    np.testing.assert_array_equal(again.pictures(0, 6, CONFIGS[0]), expected)
    again.close()


def peak_of(source: CaseSource) -> int:
    """Most bytes held while a case is opened and read to the end."""
    gc.collect()  # what earlier tests left does not decide when the collector comes next
    tracemalloc.start()
    slices = source.open()
    for start in range(0, slices.shape[0], 4):
        slices.pictures(start, min(start + 4, slices.shape[0]), CONFIGS[0])
        if slices.object_ids:
            slices.labels(start, min(start + 4, slices.shape[0]))
    slices.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("layout", ["npz", "npz F", "RAS", "LAI", "ASL", "png"])
def test_memory_does_not_grow_with_length(tmp_path, npz, nifti, picture, monkeypatch, layout):
    monkeypatch.setattr("efficient_medsam2.images.planes.BLOCK_BYTES", 1 << 16)
    peaks = []
    for depth in (20, 20, 120):
        root = tmp_path / str(depth)
        label = np.ones((depth, 64, 64), np.uint8)
        image = np.arange(label.size, dtype=np.int32).astype(np.int16).reshape(label.shape)
        if layout.startswith("npz"):
            order = "F" if layout.endswith("F") else "C"
            npz(f"{depth}/a.npz", imgs=np.asarray(image, order=order), gts=label)
        elif layout == "png":
            for index in range(depth):
                picture(f"{depth}/images/v/{index}.png", image[index].astype(np.uint8))
                picture(f"{depth}/masks/v/{index}.png", label[index])
        else:
            axes = (0, 1, 2) if layout == "ASL" else (2, 1, 0)
            affine = ORIENTATIONS[layout]
            nifti(f"{depth}/images/a.nii.gz", image.transpose(axes), affine)
            nifti(f"{depth}/labels/a.nii.gz", label.transpose(axes), affine)
        peaks.append(peak_of(find_cases(root).sources[0]))
    # The first one also pays for what a first use imports; two names for each picture are kept.
    names = 400 * 120 if layout == "png" else 0
    assert peaks[2] - names < 1.05 * peaks[1] + 20_000, peaks


@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_memory_of_dicom_does_not_grow_with_length(tmp_path, ct_slice, monkeypatch, is_multi_frame):
    monkeypatch.setattr("efficient_medsam2.images.planes.BLOCK_BYTES", 1 << 16)
    peaks = []
    for depth in (6, 6, 36):
        pixels = np.arange(depth * 96 * 96, dtype=np.uint32).astype(np.uint16) % 4000
        pixels = pixels.reshape(depth, 96, 96)
        if is_multi_frame:
            ct_slice(f"{depth}/all.dcm", 0.0, pixels, NumberOfFrames=depth)
            dataset = pydicom.dcmread(tmp_path / str(depth) / "all.dcm")
            del dataset["ImagePositionPatient"]
            dataset.save_as(tmp_path / str(depth) / "all.dcm")
        else:
            for index in range(depth):
                ct_slice(f"{depth}/{index}.dcm", float(index), pixels[index])
        (source,) = find_cases(tmp_path / str(depth), labels="optional")
        peaks.append(peak_of(source))
    assert peaks[2] < 1.05 * peaks[1], peaks
