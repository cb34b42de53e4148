"""Overlap and surface agreement of two masks: DSC and NSD.

NSD is the surface Dice at a tolerance of Nikolov et al. (2018) in DeepMind's surface-element form:
each 2 x 2 x 2 neighbourhood that the border passes contributes the area of its marching-cubes
triangles. MONAI computes it; a form that counts border voxels instead gives other numbers.

Shape letters: D, H, W volume axes.
"""

import warnings

import numpy as np
import numpy.typing as npt

__all__ = ["dsc", "nsd", "official_nsd"]

Mask = npt.NDArray[np.bool_] | npt.NDArray[np.integer]

_OFFICIAL_SMALLEST_DSC = 0.2


def dsc(prediction: Mask, truth: Mask) -> float:
    """Dice similarity coefficient, 2 |P and T| / (|P| + |T|).

    Args:
        prediction: mask of any shape; non-zero is inside.
        truth: mask of the same shape.

    Returns:
        0..1; 1.0 where both masks are empty, since they agree.

    Raises:
        ValueError: the shapes differ.

    """
    predicted, true = _as_masks(prediction, truth)
    total = int(predicted.sum()) + int(true.sum())
    if total == 0:
        return 1.0
    return 2 * int((predicted & true).sum()) / total


def nsd(
    prediction: Mask,
    truth: Mask,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    tolerance_mm: float = 2.0,
) -> float:
    """Normalised surface Dice: the share of both surfaces that lies near the other one.

    Beyond the border of the array counts as outside, so a mask that the border cuts off has a
    surface there, and a single slice has one on both of its sides.

    Args:
        prediction: mask (D, H, W), or (H, W) for one slice; non-zero is inside.
        truth: mask of the same shape.
        spacing_mm: voxel size in the order of the axes D, H, W. A mask (H, W) is one slice and may
            leave it out: spacing is then 1 mm on all axes, as the CVPR 2024 challenge has it.
        tolerance_mm: largest distance that still counts as near, itself included.

    Returns:
        0..1; 1.0 where both masks are empty and 0.0 where one is.

    Raises:
        ValueError: shapes differ, a volume comes without spacing, or a length is not positive.

    """
    predicted, true = _as_masks(prediction, truth)
    if predicted.ndim == 2:
        predicted, true = predicted[None], true[None]
        spacing_mm = spacing_mm or (1.0, 1.0, 1.0)
    if predicted.ndim != 3:
        raise ValueError(f"masks of shape {np.shape(prediction)} are not (D, H, W) or (H, W)")
    if spacing_mm is None:
        raise ValueError("a volume needs spacing_mm=(D, H, W): distances are in millimetres")
    if len(spacing_mm) != 3 or not min(spacing_mm) > 0 or not tolerance_mm >= 0:
        raise ValueError(
            f"spacing {spacing_mm} mm must be three positive lengths, tolerance {tolerance_mm} mm "
            "at least 0"
        )
    if not predicted.any() or not true.any():
        return float(predicted.any() == true.any())

    import torch
    from monai.metrics import compute_surface_dice

    with warnings.catch_warnings():
        # MONAI calls one of its own functions with an argument that it has deprecated.
        warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)
        value = compute_surface_dice(
            torch.from_numpy(predicted[None, None]),
            torch.from_numpy(true[None, None]),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing_mm),
            use_subvoxels=True,
        )
    return float(value.item())


def official_nsd(
    prediction: Mask,
    truth: Mask,
    *,
    spacing_xyz_mm: tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> float:
    """NSD by the rule of the public CVPR 2024 "MedSAM on Laptop" script, for comparison only.

    It differs from :func:`nsd` in two ways. The script passes the spacing of its files, which is in
    the order x, y, z, unchanged to arrays in the order z, y, x: on anisotropic volumes distances
    along D are taken with the spacing of x, so a shift by one 5 mm slice can score 1.00. And NSD is
    0 where DSC is at most 0.2, however near the surfaces are.

    Args:
        prediction: mask (D, H, W); non-zero is inside.
        truth: mask of the same shape.
        spacing_xyz_mm: voxel size in the order x, y, z, as the challenge's ``spacing`` holds it.
        tolerance_mm: largest distance that still counts as near; the script has 2.0.

    Returns:
        0..1; 1.0 where both masks are empty.

    Raises:
        ValueError: as :func:`nsd` does.

    """
    if dsc(prediction, truth) <= _OFFICIAL_SMALLEST_DSC:
        return 0.0
    return nsd(prediction, truth, spacing_mm=spacing_xyz_mm, tolerance_mm=tolerance_mm)


def _as_masks(prediction: Mask, truth: Mask) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Turn both into bool arrays of one shape."""
    if np.shape(prediction) != np.shape(truth):
        raise ValueError(
            f"prediction {np.shape(prediction)} and truth {np.shape(truth)} differ in shape: "
            "resample one to the grid of the other"
        )
    return np.asarray(prediction, dtype=np.bool_), np.asarray(truth, dtype=np.bool_)
