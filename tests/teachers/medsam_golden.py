"""The rules of tests/golden_medsam/README.md: weights and image of the golden outputs."""

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.official_checkpoint import synthetic_state

FOLDER = Path(__file__).parents[1] / "golden_medsam"

SALT = "medsam"


def shapes():
    named = json.loads((FOLDER / "medsam_state_dict.json").read_text())
    return {name: tuple(shape) for name, shape in named.items()}


def arrays():
    with np.load(FOLDER / "golden_medsam.npz") as file:
        return dict(file)


def state_dict():
    """Section 1 of tests/golden/README.md with another salt; it holds for SAM 1's names too."""
    return synthetic_state(shapes(), salt=SALT)


def image():
    """(1, 1, 1024, 1024) uint8."""
    rng = np.random.default_rng(3)
    base = np.kron(rng.integers(0, 200, (16, 16)), np.ones((64, 64), np.int64)) + 20
    noisy = (base + rng.integers(0, 32, (1024, 1024))).astype(np.uint8)
    return torch.from_numpy(noisy)[None, None]
