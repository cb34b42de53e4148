"""Small files of every format, and the real sample data where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from efficient_medsam2.images import Case, Provenance

CT_SERIES = generate_uid(entropy_srcs=["series"])
_AXIAL = (1, 0, 0, 0, 1, 0)
DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the real sample data is not beside this checkout")
    return DATA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels as a picture under tmp_path."""

    def write(name: str, pixels: np.ndarray | None = None) -> Path:
        if pixels is None:
            pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        return file

    return write


@pytest.fixture
def mask() -> np.ndarray:
    """One object on (6, 8), values 0/255."""
    pixels = np.zeros((6, 8), np.uint8)
    pixels[2:4, 3:6] = 255
    return pixels


@pytest.fixture
def nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write values as NIfTI under tmp_path."""

    def write(name: str, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), file)
        return file

    return write


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays as npz under tmp_path."""

    def write(name: str, **arrays: object) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **arrays)
        return file

    return write


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """Build a case in memory."""

    def make(image: np.ndarray, label: np.ndarray | None = None, **changes: object) -> Case:
        values: dict[str, object] = {
            "case_id": "one",
            "patient_id": "one",
            "image": image,
            "label": label,
            "boxes": None,
            "spacing_mm": (1.0, 1.0, 1.0),
            "modality": "other",
            "affine": None,
            "source": Provenance(files=(Path("one.npz"),), format="npz"),
        }
        return Case(**(values | changes))

    return make


def _save_dicom(file: Path, dataset: Dataset, storage: str, pixels: np.ndarray) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelRepresentation = 0
    dataset.SamplesPerPixel = 1
    dataset.PixelData = pixels.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


@pytest.fixture
def ct_series() -> str:
    """UID of the series that ``ct_slice`` writes."""
    return CT_SERIES


@pytest.fixture
def ct_slice(tmp_path: Path) -> Callable[..., Path]:
    """Write one CT slice whose stored values are 1024 + its height in mm."""

    def write(name: str, z_mm: float, pixels: np.ndarray | None = None, **changes: object) -> Path:
        dataset = Dataset()
        dataset.Modality = "CT"
        dataset.PatientID = "P7"
        dataset.SeriesInstanceUID = CT_SERIES
        dataset.ImagePositionPatient = [-10.0, -20.0, z_mm]
        dataset.ImageOrientationPatient = list(_AXIAL)
        dataset.PixelSpacing = [0.8, 0.5]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        for key, value in changes.items():
            setattr(dataset, key, value)
        if pixels is None:
            pixels = np.full((8, 16), 1024 + round(z_mm), np.uint16)
            pixels[0, 0] = 0
        return _save_dicom(tmp_path / name, dataset, CTImageStorage, pixels)

    return write


@pytest.fixture
def segmentation(tmp_path: Path) -> Callable[..., Path]:
    """Write a binary DICOM SEG: frames of (segment number, z in mm, mask)."""

    def write(
        name: str, frames: list[tuple[int, float, np.ndarray]], series: str | None = CT_SERIES
    ) -> Path:
        dataset = Dataset()
        dataset.Modality = "SEG"
        dataset.SeriesInstanceUID = generate_uid()
        dataset.SegmentationType = "BINARY"
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 1, 0
        dataset.NumberOfFrames = len(frames)
        referenced, shared, orientation = Dataset(), Dataset(), Dataset()
        if series is not None:
            referenced.SeriesInstanceUID = series
            dataset.ReferencedSeriesSequence = Sequence([referenced])
        orientation.ImageOrientationPatient = list(_AXIAL)
        shared.PlaneOrientationSequence = Sequence([orientation])
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        segments, groups = [], []
        for number in sorted({number for number, _, _ in frames}):
            segment = Dataset()
            segment.SegmentNumber = number
            segments.append(segment)
        for number, z_mm, _ in frames:
            group, identification, position = Dataset(), Dataset(), Dataset()
            identification.ReferencedSegmentNumber = number
            position.ImagePositionPatient = [-10.0, -20.0, z_mm]
            group.SegmentIdentificationSequence = Sequence([identification])
            group.PlanePositionSequence = Sequence([position])
            groups.append(group)
        dataset.SegmentSequence = Sequence(segments)
        dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
        masks = np.stack([mask for _, _, mask in frames])
        file = _save_dicom(
            tmp_path / name,
            dataset,
            SegmentationStorage,
            np.packbits(masks.ravel(), bitorder="little")[None],
        )
        dataset.Rows, dataset.Columns = masks.shape[1:]
        dataset.save_as(file, enforce_file_format=True)
        return file

    return write
