"""The MNI152 brain as labelled slabs: a real MR volume that nilearn's wheel carries, no download.

The template (ICBM 2009a, nonlinear, symmetric; Fonov et al. 2011) and its tissue maps are read in
place. Structures come from rules on them, checked by eye. Coordinates in millimetres are MNI x, y
and z (right, anterior, superior). Volumes are LPS: slices ascend, rows run from anterior to
posterior and columns from the patient's right to the left.

Shape letters: X, Y, Z template axes (RAS, 1 mm); D, H, W volume axes.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficient_medsam2.errors import DataError, MissingExtraError
from efficient_medsam2.synthetic.record import Split, SyntheticVolume

__all__ = ["HEMISPHERES", "SLABS", "STRUCTURES", "LabelSet", "mni152_volumes", "template_digests"]

Mask = npt.NDArray[np.bool_]
LabelSet = Literal["structures", "hemispheres"]

STRUCTURES = {
    1: "white-matter-left",
    2: "white-matter-right",
    3: "deep-grey-left",
    4: "deep-grey-right",
    5: "lateral-ventricle-left",
    6: "lateral-ventricle-right",
    7: "cerebellum",
}
HEMISPHERES = {1: "cerebrum-left", 2: "cerebrum-right"}

SLABS: tuple[tuple[Split, int, int], ...] = (
    ("train", 8, 15),
    ("validation", 18, 25),
    ("train", 28, 37),
    ("test", 40, 51),
    ("train", 54, 59),
    ("validation", 62, 66),
    ("train", 69, 75),
    ("test", 78, 89),
    ("train", 92, 93),
    ("validation", 96, 98),
    ("train", 101, 107),
    ("test", 110, 121),
    ("train", 124, 148),
)
"""(split, first, last) template slices, last included; two guard slices lie between any two."""

_CEREBRUM, _CEREBELLUM, _BRAINSTEM, _OUTSIDE = 1, 2, 3, 4
_ORIGIN_MM = (-98, -134, -72)
_CROP_X_MM = (-64, 63)
_CROP_Y_MM = (-90, 37)


@dataclass(frozen=True, kw_only=True)
class _Template:
    """The template: uint8 (X, Y, Z) maps and open grids of their coordinates in millimetres."""

    t1: npt.NDArray[np.uint8]
    grey: npt.NDArray[np.uint8]
    white: npt.NDArray[np.uint8]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    z: npt.NDArray[np.int64]

    def box(self, x: tuple[int, int], y: tuple[int, int], z: tuple[int, int]) -> Mask:
        """Voxels with |x|, y and z in ranges given in millimetres, ends included."""
        side = abs(self.x)
        return np.asarray(
            ((side >= x[0]) & (side <= x[1]))
            & ((self.y >= y[0]) & (self.y <= y[1]))
            & ((self.z >= z[0]) & (self.z <= z[1]))
        )

    def ellipsoid(self, center: tuple[int, int, int], radii: tuple[int, int, int]) -> Mask:
        """Voxels inside an ellipsoid (|x|, y, z), in millimetres, on both sides."""
        offsets = (abs(self.x) - center[0], self.y - center[1], self.z - center[2])
        return np.asarray(sum((o / r) ** 2 for o, r in zip(offsets, radii, strict=True)) < 1)


def mni152_volumes(
    *, label_sets: tuple[LabelSet, ...] = ("structures", "hemispheres")
) -> list[SyntheticVolume]:
    """Cut the MNI152 brain into labelled axial slabs.

    The picture is a window of 128 x 128 mm around the deep structures, 128 x 128 pixels. Train,
    validation and test slabs are separated along z by guard slices that belong to none.

    Args:
        label_sets: "structures" labels white matter, deep grey nuclei and lateral ventricles of
            either side and the cerebellum; "hemispheres" labels the cerebrum, left and right. The
            two overlap, so each gives its own volumes of the same pictures.

    Returns:
        One volume per label set and slab, spacing 1 mm. Labels are complete: a structure
        may cover few pixels of a slice.

    Raises:
        MissingExtraError: nilearn is not installed.
        DataError: the bundled files are not the template that the rules were made for.

    """
    template = _load()
    structures, hemispheres = _label(template)
    maps = {"structures": (structures, STRUCTURES), "hemispheres": (hemispheres, HEMISPHERES)}
    image = _picture(template.t1)
    volumes = []
    for label_set in label_sets:
        label, names = maps[label_set]
        label = _crop(label)
        for split, first, last in SLABS:
            slab = label[first : last + 1]
            present = set(np.unique(slab).tolist())
            volumes.append(
                SyntheticVolume(
                    name=f"mni152-{label_set}-{split}-z{first:03d}",
                    split=split,
                    image=image[first : last + 1],
                    label=slab,
                    spacing_mm=(1.0, 1.0, 1.0),
                    object_names={value: name for value, name in names.items() if value in present},
                    modality="MR",
                )
            )
    return volumes


def _template_paths() -> dict[str, Path]:
    """Find the template next to nilearn, whose import would take seconds, without importing it."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "the MNI152 brain is read from the package nilearn, which is not installed; "
            "run: pip install 'efficient-medsam2[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0], "datasets", "data")
    paths = {
        kind: folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        for kind in ("t1", "gm", "wm")
    }
    for path in paths.values():
        if not path.is_file():
            raise DataError(
                f"{path} is missing: this nilearn does not bundle the MNI152 template; "
                "run: pip install 'nilearn>=0.11'"
            )
    return paths


def template_digests() -> dict[str, str]:
    """Give the SHA-256 of each of the template's files, by their name.

    Raises:
        MissingExtraError: nilearn is not installed.
        DataError: a file is missing.

    """
    digests = {}
    for path in _template_paths().values():
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _load() -> _Template:
    """Read the template and check that it is the one that the rules were made for."""
    maps = {}
    for kind, path in _template_paths().items():
        volume = nibabel.load(path)
        origin = tuple(np.asarray(volume.affine)[:3, 3].astype(int).tolist())
        if volume.shape != (197, 233, 189) or origin != _ORIGIN_MM:
            raise DataError(
                f"{path} has shape {volume.shape} and origin {origin} mm, not (197, 233, 189) and "
                f"{_ORIGIN_MM} mm; run: pip install --force-reinstall 'nilearn>=0.11'"
            )
        maps[kind] = np.asarray(volume.dataobj, dtype=np.uint8)
    x, y, z = np.ogrid[
        tuple(slice(o, o + n) for o, n in zip(_ORIGIN_MM, volume.shape, strict=True))
    ]
    return _Template(t1=maps["t1"], grey=maps["gm"], white=maps["wm"], x=x, y=y, z=z)


def _label(template: _Template) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Find all structures: uint16 (X, Y, Z) maps of ``STRUCTURES`` and of ``HEMISPHERES``."""
    tissue = template.grey.astype(np.uint16) + template.white >= 128
    cerebrum, cerebellum = _split_by_tentorium(template, tissue)
    ventricles = _lateral_ventricles(template)
    deep_grey = _deep_grey(template) & cerebrum & ~ventricles
    right = np.broadcast_to(template.x > 0, tissue.shape)

    structures = np.zeros(tissue.shape, np.uint16)
    for value, mask in (
        (1, cerebrum & (template.white > 128)),
        (3, deep_grey),
        (5, ventricles),
    ):
        structures[mask] = value + right[mask]
    structures[cerebellum] = 7
    hemispheres = np.zeros(tissue.shape, np.uint16)
    filled = (cerebrum & ~ventricles) | deep_grey
    hemispheres[filled] = 1 + right[filled]
    return structures, hemispheres


def _split_by_tentorium(template: _Template, tissue: Mask) -> tuple[Mask, Mask]:
    """Separate cerebrum and cerebellum along the dark fluid between them; drop the brainstem."""
    box, ellipsoid = template.box, template.ellipsoid
    markers = np.zeros(tissue.shape, np.int8)
    for region in (
        box((0, 98), (-134, 98), (8, 116)),
        box((0, 98), (-4, 98), (-72, 116)),
        box((0, 28), (-32, 0), (-6, 8)),
        box((16, 98), (-134, -40), (-6, 8)),
        box((26, 98), (-20, 0), (-72, 8)),
        box((18, 98), (-30, -4), (-12, -6)),
    ):
        markers[region & tissue] = _CEREBRUM
    for region in (
        box((9, 50), (-100, -44), (-72, -36)),
        box((0, 98), (-134, -54), (-72, -36)),
        box((8, 30), (-72, -50), (-40, -26)),
        box((0, 6), (-72, -56), (-34, -12)),
    ):
        markers[region & tissue] = _CEREBELLUM
    medulla = (abs(template.x) <= 7) & (abs(template.y + 36 - 0.45 * (template.z + 48)) <= 5)
    for region in (
        medulla & (template.z <= -44),
        ellipsoid((0, -27, -34), (16, 14, 14)),
        ellipsoid((0, -22, -14), (16, 11, 7)),
        box((0, 17), (-32, -9), (-12, -7)),
    ):
        markers[region & tissue] = _BRAINSTEM
    markers[template.t1 == 0] = _OUTSIDE
    walls = 255 - ndimage.gaussian_filter(template.t1, 0.6)
    basin = ndimage.watershed_ift(walls, markers)
    # The template is symmetric but the flooding is not: it breaks ties by memory order.
    middle = -_ORIGIN_MM[0]
    basin[:middle] = basin[:middle:-1]
    # The opening takes off the film of partial volume along the tentorium.
    cerebellum = ndimage.binary_opening((basin == _CEREBELLUM) & tissue, iterations=2)
    return (basin == _CEREBRUM) & tissue, cerebellum


def _lateral_ventricles(template: _Template) -> Mask:
    """Dark fluid around the seeds in the bodies of both lateral ventricles."""
    fluid = (template.t1 < 125) & template.box((1, 40), (-60, 38), (-16, 32))
    fluid = ndimage.binary_opening(fluid)
    parts, _ = ndimage.label(fluid)
    seeds = template.box((6, 14), (-10, 10), (18, 24)) & fluid
    wanted = np.unique(parts[seeds])
    return np.isin(parts, wanted[wanted > 0])


def _deep_grey(template: _Template) -> Mask:
    """Caudate, putamen with pallidum, thalamus: between white matter and fluid in brightness."""
    around = (
        template.ellipsoid((13, 8, 8), (11, 19, 20))
        | template.ellipsoid((16, -8, 21), (7, 14, 8))
        | template.ellipsoid((24, 0, 1), (10, 23, 15))
        | template.ellipsoid((11, -17, 8), (13, 17, 11))
    )
    smooth = ndimage.gaussian_filter(template.t1.astype(np.float32), 0.6)
    grey = (smooth < 204) & (template.t1 > 140) & around
    parts, _ = ndimage.label(ndimage.binary_opening(grey))
    seeds = (
        template.box((10, 14), (8, 14), (4, 10))
        | template.box((24, 27), (-2, 8), (-2, 6))
        | template.box((6, 12), (-22, -14), (6, 12))
    )
    wanted = np.unique(parts[seeds])
    return np.isin(parts, wanted[wanted > 0])


def _crop(map_XYZ: npt.NDArray[np.uint16] | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Cut the window and turn RAS (X, Y, Z) into LPS (D, H, W)."""
    x, y = (
        slice(low - origin, high - origin + 1)
        for (low, high), origin in zip((_CROP_X_MM, _CROP_Y_MM), _ORIGIN_MM[:2], strict=True)
    )
    return np.ascontiguousarray(map_XYZ[x, y][::-1, ::-1].T).astype(np.uint16)


def _picture(t1: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Stretch the window to uint8 between the 1st and 99.5th percentile of the head."""
    cropped = _crop(t1).astype(np.float32)
    low, high = np.percentile(cropped[cropped > 0], (1, 99.5))
    stretched = np.clip((cropped - low) / (high - low), 0, 1)
    return np.asarray(np.rint(255 * stretched), dtype=np.uint8)
