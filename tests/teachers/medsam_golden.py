"""The rules of tests/golden_medsam/README.md: weights and image of the golden outputs."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "golden_medsam"

_HALVED = ("embed", "token", "tokens", *(f"point_embeddings.{digit}" for digit in range(4)))


def shapes():
    named = json.loads((FOLDER / "medsam_state_dict.json").read_text())
    return {name: tuple(shape) for name, shape in named.items()}


def arrays():
    with np.load(FOLDER / "golden_medsam.npz") as file:
        return dict(file)


def weight(name, shape):
    x = np.random.default_rng(zlib.crc32(f"medsam{name}".encode("ascii"))).standard_normal(shape)
    if name.endswith("gaussian_matrix"):
        pass
    elif name.removesuffix(".weight").endswith(_HALVED):
        x *= 0.5
    elif name.endswith(".bias"):
        x *= 0.1
    elif len(shape) == 1:
        x = 1 + 0.1 * x
    else:
        x /= np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x.astype(np.float32))


def state_dict():
    return {name: weight(name, shape) for name, shape in shapes().items()}


def image():
    """(1, 1, 1024, 1024) uint8."""
    rng = np.random.default_rng(3)
    base = np.kron(rng.integers(0, 200, (16, 16)), np.ones((64, 64), np.int64)) + 20
    noisy = (base + rng.integers(0, 32, (1024, 1024))).astype(np.uint8)
    return torch.from_numpy(noisy)[None, None]
