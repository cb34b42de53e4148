"""The rules of tests/golden/README.md: weights, frames and prompts of the golden outputs."""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch

from benchmarks.official_checkpoint import synthetic_state
from efficient_medsam2.images.preprocess import to_network_input

OWN = Path(__file__).parents[1] / "golden"
"""The project's own set."""

FOLDER = Path(os.environ.get("MEDSAM2_GOLDEN_DIR") or OWN)
"""The set that is tested."""

NUMBER = r"(-?\d+(?:\.\d+)?)"
POINT = rf"[(\[]\s*{NUMBER}\s*,\s*{NUMBER}\s*[)\]]\s*,?\s*label\s+(\d)"


def stated(name, value):
    """What the folder's README gives for ``NAME = value``, as the pattern's groups.

    A set that does not state one means the project's own.
    """
    pattern = rf"\b(?<!_){name}\b`?\s*=\s*{value}"
    for folder in (FOLDER, OWN):
        readme = folder / "README.md"
        found = re.search(pattern, readme.read_text()) if readme.is_file() else None
        if found:
            return found.groups()
    raise AssertionError(f"{OWN / 'README.md'} does not state {name}")


def salt():
    return stated("SALT", r"[`\"']*([^`\"'\s,;.)]+)")[0]


def image_seed():
    return int(stated("IMAGE_SEED", r"`?(\d+)")[0])


def box(name):
    """(1, 4) as (x0, y0, x1, y1)."""
    numbers = rf"`?[\[(]\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}"
    return torch.tensor([[float(number) for number in stated(name, numbers)]])


def clicks(name):
    """Points (1, N, 2) as (x, y) and their labels (1, N)."""
    text = stated(name, rf"([^\n]*?{POINT}(?:[^\n]*{POINT})?)")[0]
    found = re.findall(POINT, text)
    points = torch.tensor([[[float(x), float(y)] for x, y, _ in found]])
    return points, torch.tensor([[int(label) for _, _, label in found]])


def shapes():
    return {
        name: tuple(shape)
        for name, shape in json.loads((FOLDER / "medsam2_state_dict.json").read_text()).items()
    }


def arrays():
    with np.load(FOLDER / "golden_medsam2.npz") as file:
        return dict(file)


def state_dict():
    return synthetic_state(shapes(), salt=salt())


def frames():
    """(4, 512, 512) uint8."""
    rng = np.random.default_rng(image_seed())
    base = np.kron(rng.integers(0, 224, (16, 16)), np.ones((32, 32), np.int64))
    return np.stack(
        [
            np.roll(base, (4 * t, 6 * t), axis=(0, 1)) + rng.integers(0, 32, (512, 512))
            for t in range(4)
        ]
    ).astype(np.uint8)


def network_inputs():
    """Four (1, 3, 512, 512) float32."""
    return [to_network_input(torch.from_numpy(frame)[None, None]) for frame in frames()]


def disc():
    """(1, 1, 512, 512) float32 mask prompt."""
    row, column, radius = (
        float(number)
        for number in stated(
            "DISC",
            rf"[^\n]*?\(y - {NUMBER}\)(?:\^2|²) \+ \(x - {NUMBER}\)(?:\^2|²) < {NUMBER}(?:\^2|²)",
        )
    )
    y, x = np.mgrid[:512, :512]
    return torch.from_numpy((y - row) ** 2 + (x - column) ** 2 < radius**2).float()[None, None]
