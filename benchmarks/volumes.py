"""Generated CT-like volumes in the challenge's npz layout.

Written plane by plane, so that a long volume does not need its size in memory.

Letters: D slices, H = W = side.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["write_volume", "write_volumes"]

Uint8 = npt.NDArray[np.uint8]

_BODY, _ORGAN, _LESION = np.uint8(120), np.uint8(160), np.uint8(90)
_NOISE = 24


def write_volumes(
    folder: Path, *, cases: int, depth: int, side: int, labelled: int, seed: int = 0
) -> Path:
    """Write ``cases`` files ``3D_case*.npz``; see ``write_volume``."""
    for number in range(cases):
        write_volume(
            folder / f"3D_case{number:05d}.npz",
            depth=depth,
            side=side,
            labelled=labelled,
            seed=seed + number,
        )
    return folder


def write_volume(file: Path, *, depth: int, side: int, labelled: int, seed: int) -> Path:
    """Write one volume: a body with two organs, and a lesion on ``labelled`` middle slices.

    Args:
        file: the npz to be written, not compressed.
        depth: D.
        side: H and W.
        labelled: slices that the one object is on.
        seed: of noise and places.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    first = (depth - labelled) // 2
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, _NOISE, (2 * side, 2 * side), dtype=np.uint8)
    place = rng.uniform(0.4, 0.6, 2)
    rows, columns = np.mgrid[:side, :side] / side
    body = (rows - 0.5) ** 2 / 0.16 + (columns - 0.5) ** 2 / 0.2 < 1
    organs = ((rows - 0.45) ** 2 + (columns - 0.35) ** 2 < 0.015) | (
        (rows - 0.5) ** 2 + (columns - 0.7) ** 2 < 0.01
    )
    lesion = (rows - place[0]) ** 2 + (columns - place[1]) ** 2 < 0.006
    plain = np.where(organs, _ORGAN, body * _BODY)

    def image(index: int) -> Uint8:
        down, over = rng.integers(0, side, 2)
        here = np.where(lesion, _LESION, plain) if first <= index < first + labelled else plain
        made: Uint8 = here + noise[down : down + side, over : over + side]
        return made

    def label(index: int) -> Uint8:
        made: Uint8 = lesion.astype(np.uint8) * (first <= index < first + labelled)
        return made

    shape = (depth, side, side)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "imgs", shape, (image(index) for index in range(depth)))
        _add(archive, "gts", shape, (label(index) for index in range(depth)))
        spacing = io.BytesIO()
        np.save(spacing, np.array([0.8, 0.8, 3.0]))
        archive.writestr("spacing.npy", spacing.getvalue())
    return file


def _add(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], planes: Iterator[Uint8]
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for plane in planes:
            member.write(plane.tobytes())
