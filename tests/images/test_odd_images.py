"""Images at the edge of what a case can be go the whole way to the network's input."""

import numpy as np
import pytest
import torch
from PIL import Image

from efficient_medsam2.images import (
    CaseSource,
    IntensityConfig,
    find_cases,
    squash_labels,
    squash_slices,
    to_network_input,
)

SIZE = 32


def through(source: CaseSource) -> tuple[np.ndarray, np.ndarray]:
    """Every slice's picture and label map at the network's size, read one at a time."""
    slices = source.open()
    pictures, labels = [], []
    for index in range(slices.shape[0]):
        picture = slices.pictures(index, index + 1, IntensityConfig())
        pictures.append(squash_slices(picture, SIZE))
        labels.append(squash_labels(slices.labels(index, index + 1), SIZE))
        assert pictures[-1].shape == (1, slices.channels, SIZE, SIZE)
        assert torch.isfinite(to_network_input(torch.from_numpy(pictures[-1]))).all()
    slices.close()
    return np.concatenate(pictures), np.concatenate(labels)


@pytest.mark.parametrize("layout", ["npz", "nifti"])
@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 9, 7), (3, 35, 50), (4, 9, 1), (4, 1, 9)])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_short_small_and_narrow_volumes(tmp_path, npz, nifti, rng, layout, shape, kind):
    image = rng.integers(1, 200, shape).astype(kind)
    label = np.zeros(shape, np.uint8)
    label[-1, : (shape[1] + 1) // 2] = 1
    if layout == "npz":
        npz("3D_a.npz", imgs=image, gts=label)
    else:
        # D, H, W of the case are the stored axes 2, 1 and 0 where W and H run to left and back.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        nifti("images/a.nii.gz", image.T, affine)
        nifti("labels/a.nii.gz", label.T, affine)
    (source,) = find_cases(tmp_path)
    pictures, labels = through(source)
    assert len(pictures) == shape[0]
    assert labels.reshape(shape[0], -1).any(axis=1).tolist() == [False] * (shape[0] - 1) + [True]
    assert pictures.max() > 0


def test_a_volume_three_columns_wide_is_no_colour_picture(tmp_path, npz, rng):
    image = rng.integers(1, 200, (5, 6, 3), np.uint8)
    npz("a.npz", imgs=image, gts=np.ones((5, 6, 3), np.uint8))
    slices = find_cases(tmp_path).sources[0].open()
    assert (slices.shape, slices.channels) == ((5, 6, 3), 1)
    slices.close()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_empty_slices_and_an_object_that_comes_back(tmp_path, npz, rng, kind):
    image = rng.integers(1, 200, (9, 12, 10)).astype(kind)
    image[[0, 4, 8]] = 0
    label = np.zeros(image.shape, np.uint8)
    label[2:4, 2:6, 2:6], label[6:8, 2:6, 2:6] = 3, 3
    npz("a.npz", imgs=image, gts=label)
    pictures, labels = through(find_cases(tmp_path).sources[0])
    shown = labels.reshape(9, -1).any(axis=1)
    assert np.flatnonzero(shown).tolist() == [2, 3, 6, 7]
    assert not pictures[[0, 4, 8]].any()
    assert set(np.unique(labels)) == {0, 3}


def test_pictures_of_every_mode(tmp_path, rng):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    mask = np.zeros((35, 50), np.uint8)
    mask[5:20, 10:30] = 255
    grey = rng.integers(1, 255, (35, 50), np.uint8)
    colour = rng.integers(0, 255, (35, 50, 3), np.uint8)
    rgba = Image.fromarray(np.dstack([colour, np.full((35, 50), 9, np.uint8)]))
    modes = {
        "grey": Image.fromarray(grey),
        "rgb": Image.fromarray(colour),
        "rgba": rgba,
        "palette": Image.fromarray(colour).quantize(16),
        "deep": Image.fromarray(grey.astype(np.uint16) * 200),
        "bits": Image.fromarray(mask > 0),
        "grey_alpha": Image.fromarray(grey).convert("LA"),
    }
    for name, picture in modes.items():
        picture.save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    channels = {}
    for source in find_cases(tmp_path):
        pictures, labels = through(source)
        channels[source.case_id] = pictures.shape[1]
        assert pictures.std() > 1
        assert 0.1 < (labels == 1).mean() < 0.3
    assert channels == {
        "bits": 1,
        "deep": 1,
        "grey": 1,
        "grey_alpha": 1,
        "palette": 3,
        "rgb": 3,
        "rgba": 3,
    }


def test_recist_diameters_of_an_npz(tmp_path, npz):
    label = np.zeros((3, 8, 9), np.uint8)
    label[1, 2:6, 2:7] = 1
    drawn = np.zeros_like(label)
    drawn[1, 3, 2:7] = 1
    npz("a.npz", imgs=np.ones((3, 8, 9), np.uint8), gts=label, recist=drawn)
    (source,) = find_cases(tmp_path)
    case = source.load()
    assert case.recist.dtype == np.bool_
    np.testing.assert_array_equal(case.recist, drawn)
    slices = source.open()
    np.testing.assert_array_equal(slices.recist(1, 3), drawn[1:3])
    slices.close()
    npz("a.npz", imgs=np.ones((8, 9), np.uint8), gts=label[1], recist=drawn[1])
    np.testing.assert_array_equal(source.open().recist(0, 1)[0], drawn[1])
