"""Small files of every format, and the real sample data where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from efficient_medsam2.images import Case, Provenance

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
