"""NIfTI volumes read slice by slice, in the orientation of ``nifti``.

NIfTI stores its first axis fastest. Where D is the last stored axis, slices lie one after another
and are read from the file itself; any other axis order goes through a temporary file, once.
"""

import gzip
import io
from functools import partial
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy

from efficient_medsam2.images.case import Case, Modality, Provenance
from efficient_medsam2.images.merged_planes import MergedPlanes
from efficient_medsam2.images.nifti import check_header, guess_modality, readable_nifti
from efficient_medsam2.images.nifti_grid import affine_dhw, axial_axes, check_grid
from efficient_medsam2.images.objects import as_label_map
from efficient_medsam2.images.planes import MappedPlanes, Planes, StreamedPlanes, TurnedPlanes
from efficient_medsam2.images.streamed import StoredCase

__all__ = ["open_nifti"]


class _StoredVolume:
    """Header of one file.

    Attributes:
        shape: on three stored axes.
        affine: stored voxel index to RAS mm.
        dtype: of the values after scaling; 64-bit floats as 32-bit.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with readable_nifti(file):
            volume = nibabel.load(file, mmap=False)
            self._proxy: Any = volume.dataobj
            # One voxel, scaled: nibabel alone knows which type its scaling gives.
            scaled = self._scaled(np.zeros(1, self._proxy.dtype)).dtype
        self.shape, self.affine = check_header(file, volume, scaled)
        self.dtype = np.dtype(np.float32) if scaled == np.float64 else scaled.newbyteorder("=")

    def planes(self, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Planes:
        """Values along D, given which stored axes D, H and W are and which of them turn round."""
        # Fortran order: in the order of bytes the stored axes are 2, 1, 0.
        by_bytes = tuple(2 - axis for axis in axes)
        is_gzip = self.file.suffix.lower() == ".gz"
        raw = StreamedPlanes(
            shape=self.shape[::-1],
            dtype=self._proxy.dtype,
            open_stream=self._open,
            guard=partial(readable_nifti, self.file),
            can_seek=not is_gzip,
        )
        if by_bytes[0] != 0 or (flips[0] and is_gzip):
            try:
                turned: Planes = TurnedPlanes(raw, axes=by_bytes, flips=flips)
            finally:
                raw.close()
        else:
            turned = _InSlices(raw, by_bytes, flips)
        return MappedPlanes(turned, self.dtype, self._values)

    def _open(self) -> IO[bytes]:
        is_gzip = self.file.suffix.lower() == ".gz"
        stream: Any = gzip.open(self.file) if is_gzip else self.file.open("rb")  # noqa: SIM115
        stream.seek(self._proxy.offset)
        opened: IO[bytes] = stream
        return opened

    def _scaled(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What nibabel makes of stored values: slope and intercept in its own arithmetic."""
        proxy = self._proxy
        header = (stored.shape, stored.dtype, 0, proxy.slope, proxy.inter)
        content = io.BytesIO(stored.tobytes())
        return np.asanyarray(ArrayProxy(content, header, mmap=False, order="C"))

    def _values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        is_raw = (self._proxy.slope, self._proxy.inter) == (1, 0)
        return (stored if is_raw else self._scaled(stored)).astype(self.dtype, copy=False)


class _InSlices:
    """Planes whose own two axes are swapped or turned round, and D where the stream can seek."""

    def __init__(
        self, stored: Planes, axes: tuple[int, ...], flips: tuple[bool, bool, bool]
    ) -> None:
        self._stored = stored
        self._axes = axes
        self._flips = tuple(axis for axis, flip in enumerate(flips) if flip)
        self.shape = tuple(stored.shape[axis] for axis in axes)
        self.dtype = stored.dtype

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if 0 in self._flips:
            depth = self.shape[0]
            start, stop = depth - stop, depth - start
        turned = np.transpose(self._stored.read(start, stop), self._axes)
        return np.ascontiguousarray(np.flip(turned, self._flips))

    def close(self) -> None:
        self._stored.close()


def open_nifti(
    image_file: Path,
    label_files: tuple[Path, ...] = (),
    *,
    case_id: str,
    patient_id: str,
    modality: Modality | None = None,
) -> StoredCase:
    """Open one volume and its label map; the arguments are those of ``nifti.read_nifti``.

    Raises:
        DataError: a file is damaged, is not one 3D volume, or the label lies on another grid.
    """
    stored = _StoredVolume(image_file)
    axes, flips = axial_axes(stored.affine)
    affine = affine_dhw(stored.affine, stored.shape, axes, flips)
    depth, height, width = (float(np.linalg.norm(affine[:3, axis])) for axis in range(3))
    shape = tuple(stored.shape[axis] for axis in axes)
    first = Case(
        case_id=case_id,
        patient_id=patient_id,
        image=np.zeros((min(1, shape[0]), *shape[1:]), stored.dtype),
        label=None,
        boxes=None,
        spacing_mm=(depth, height, width),
        modality=modality or "MR",
        affine=affine,
        source=Provenance(
            files=(image_file, *label_files),
            format="nifti",
            file_affine=stored.affine,
            file_axes=axes,
            file_flips=flips,
        ),
    )
    opened: list[Planes] = []
    try:
        for file in label_files:
            volume = _StoredVolume(file)
            check_grid(file, volume.shape, volume.affine, image_file, stored.shape, stored.affine)
            ids = volume.planes(axes, flips)
            opened.append(MappedPlanes(ids, np.uint16, partial(as_label_map, file=file)))
        label: Planes | None = opened[0] if len(opened) == 1 else None
        notes: tuple[str, ...] = ()
        if len(opened) > 1:
            merged = MergedPlanes(list(zip(label_files, opened, strict=True)))
            label, notes = merged, merged.notes
        image = stored.planes(axes, flips)
    except BaseException:
        for planes in opened:
            planes.close()
        raise
    guess = guess_modality if modality is None and image.dtype != np.uint8 else None
    return StoredCase(first=first, image=image, label=label, guess=guess, notes=notes)
