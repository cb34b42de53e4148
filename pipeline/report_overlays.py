"""Pictures of samples: the slice with its box, and masks as contours on the neighbourhood of it.

Shape letters: H W rows and columns of a slice.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.report_records import Sample

__all__ = ["COLOURS", "Picture", "overlay_pictures", "png_of_pixels", "whole_slice"]

COLOURS = {
    "box": "#ff7ac6",
    "truth": "#f0e442",
    "teacher": "#56b4e9",
    "baseline": "#e69f00",
    "student": "#00c08b",
}
"""What is drawn in which colour; after Okabe and Ito, told apart with any colour vision."""

_SIDE = 360
_PALETTE = 160
_MARGIN = 0.4
_SMALLEST_WINDOW = 32
_WHOLE_FROM = 0.75


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One PNG.

    Attributes:
        png: its bytes.
        width: pixels.
        height: pixels.
    """

    png: bytes
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Part of a slice in whole pixels; ``bottom`` and ``right`` are the first beyond it."""

    top: int
    bottom: int
    left: int
    right: int


def whole_slice(image: npt.NDArray[np.uint8], sample: Sample) -> Picture:
    """The whole slice (H, W) or (H, W, 3) with the prompt's box."""
    height, width = image.shape[:2]
    window = _Window(top=0, bottom=height, left=0, right=width)
    return _drawn(image, window, box=sample.box, contours=())


def overlay_pictures(
    image: npt.NDArray[np.uint8],
    masks: Mapping[str, npt.NDArray[np.bool_]],
    sample: Sample,
) -> dict[str, Picture]:
    """One picture for each mask: its contour and the truth's.

    Args:
        image: (H, W) or (H, W, 3).
        masks: ``truth``, ``teacher``, ``baseline``, ``student`` → (H, W).
        sample: whose box says what to zoom to.

    Returns:
        The pictures by the keys of ``masks``, all of the same window and size.
    """
    window = _window(image.shape[0], image.shape[1], sample.box)
    truth = masks.get("truth")
    pictures = {}
    for name, mask in masks.items():
        drawn = [(mask, COLOURS[name], 1.8)]
        if name != "truth" and truth is not None:
            drawn.insert(0, (truth, COLOURS["truth"], 1.8))
        pictures[name] = _drawn(image, window, box=None, contours=drawn)
    return pictures


def png_of_pixels(pixels_HW3: npt.NDArray[np.uint8]) -> Picture:
    """Pixels as they are, (H, W, 3)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="PNG", optimize=True)
    height, width = pixels_HW3.shape[:2]
    return Picture(png=buffer.getvalue(), width=width, height=height)


def _window(height: int, width: int, box: Sequence[float]) -> _Window:
    """A square around the box; the whole slice where the square would be most of it."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0 + 1, y1 - y0 + 1) * (1 + 2 * _MARGIN)
    side = max(round(side), _SMALLEST_WINDOW)
    if side >= _WHOLE_FROM * min(height, width):
        return _Window(top=0, bottom=height, left=0, right=width)
    top = round(np.clip((y0 + y1 + 1 - side) / 2, 0, height - side))
    left = round(np.clip((x0 + x1 + 1 - side) / 2, 0, width - side))
    return _Window(top=top, bottom=top + side, left=left, right=left + side)


def _drawn(
    image: npt.NDArray[np.uint8],
    window: _Window,
    *,
    box: Sequence[float] | None,
    contours: Sequence[tuple[npt.NDArray[np.bool_], str, float]],
) -> Picture:
    """Draw a window of ``image`` with (mask, colour, line width) contours."""
    from matplotlib import patheffects
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    height, width = window.bottom - window.top, window.right - window.left
    scale = _SIDE / max(height, width)
    figure = Figure(figsize=(width * scale / 100, height * scale / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bilinear", aspect="auto")
    for mask, colour, line in contours:
        halo = patheffects.withStroke(linewidth=line + 1.2, foreground="#00000070")
        _contour(axes, mask, colour=colour, line=line, halo=halo)
    if box is not None:
        # (x1, y1) is the object's last pixel; a pixel's centre has whole coordinates. Along the
        # picture's border the line is drawn just inside it.
        inside = 0.5 - 2 / scale
        x0, y0 = max(box[0] - 0.5, window.left - inside), max(box[1] - 0.5, window.top - inside)
        x1 = min(box[2] + 0.5, window.right - 1 + inside)
        y1 = min(box[3] + 0.5, window.bottom - 1 + inside)
        drawn = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=COLOURS["box"])
        drawn.set_linewidth(2.4)
        axes.add_patch(drawn)
    axes.set_xlim(window.left - 0.5, window.right - 0.5)
    axes.set_ylim(window.bottom - 0.5, window.top - 0.5)
    canvas.draw()
    return _small_png(np.asarray(canvas.buffer_rgba())[..., :3])


def _contour(
    axes: Any,  # noqa: ANN401 (matplotlib is untyped here)
    mask: npt.NDArray[np.bool_],
    *,
    colour: str,
    line: float,
    halo: Any,  # noqa: ANN401
) -> None:
    if not mask.any():
        return
    # A ring of background closes the contour of a mask that touches the border.
    padded = np.pad(mask, 1).astype(np.float32)
    rows, columns = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
    drawn = axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=line)
    drawn.set(path_effects=[halo])


def _small_png(pixels_HW3: npt.NDArray[np.uint8]) -> Picture:
    """A PNG with a palette: a third of the bytes of a plain one."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    reduced = image.quantize(colors=_PALETTE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="PNG", optimize=True)
    return Picture(png=buffer.getvalue(), width=image.width, height=image.height)
