"""Small data sets on disk, and what can be wrong with them."""

import nibabel
import numpy as np
from PIL import Image


def volume(seed, *, depth=4, side=32):
    """An image with two bright discs through all slices, and its label."""
    rows, columns = np.mgrid[:side, :side]
    label = np.zeros((depth, side, side), dtype=np.uint8)
    for index in range(depth):
        label[index, (rows - 10) ** 2 + (columns - 10 - index) ** 2 < 30] = 1
        label[index, (rows - 22) ** 2 + (columns - 20 + index) ** 2 < 36] = 2
    noise = np.random.default_rng(seed).integers(0, 40, label.shape)
    return (noise + 90 * label).astype(np.uint8), label


def write_npz(folder, name, *, image=None, label=None, seed=0, depth=4):
    folder.mkdir(parents=True, exist_ok=True)
    made = volume(seed, depth=depth)
    image, label = made[0] if image is None else image, made[1] if label is None else label
    np.savez_compressed(folder / f"{name}.npz", imgs=image, gts=label, spacing=np.array([1, 1, 3]))
    return folder / f"{name}.npz"


def write_npz_folder(folder, count=4):
    for number in range(count):
        write_npz(folder, f"3D_case{number}", seed=number)
    return folder


def write_nifti(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(
        nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0])), path
    )
    return path


def write_nifti_pair(folder, name, *, image=None, label=None):
    made = volume(1)
    write_nifti(folder / "images" / f"{name}.nii.gz", made[0] if image is None else image)
    return write_nifti(folder / "labels" / f"{name}.nii.gz", made[1] if label is None else label)


def write_pictures(folder, count=4):
    for number in range(count):
        image, label = volume(number, depth=1)
        for part, values in (("images", image), ("masks", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[0]).save(folder / part / f"eye{number}.png")
    return folder
