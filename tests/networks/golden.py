"""The rules of tests/golden/README.md: weights, frames and prompts of the golden outputs."""

import json
import os
import re
import zlib
from pathlib import Path

import numpy as np
import torch

from efficient_medsam2.images.preprocess import to_network_input

FOLDER = Path(os.environ.get("MEDSAM2_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")

HALVED = (
    "embed",
    "pos_embed_window",
    "token",
    "tokens",
    "tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    *(f"point_embeddings.{digit}" for digit in range(10)),
)


def stated(pattern, default):
    """A constant from the folder's README, where it states one."""
    readme = FOLDER / "README.md"
    found = re.search(pattern, readme.read_text()) if readme.is_file() else None
    return found[1] if found else default


def salt():
    return stated(r'\bSALT\s*=\s*`?"([^"]*)"', "s4")


def image_seed():
    return int(stated(r"\bIMAGE_SEED\s*=\s*`?(\d+)", "1"))


def shapes():
    return {
        name: tuple(shape)
        for name, shape in json.loads((FOLDER / "medsam2_state_dict.json").read_text()).items()
    }


def arrays():
    with np.load(FOLDER / "golden_medsam2.npz") as file:
        return dict(file)


def weight(name, shape):
    x = np.random.default_rng(zlib.crc32((salt() + name).encode("ascii"))).standard_normal(shape)
    if name.endswith("gaussian_matrix"):
        pass
    elif name.removesuffix(".weight").endswith(HALVED):
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
    y, x = np.mgrid[:512, :512]
    return torch.from_numpy((y - 240) ** 2 + (x - 260) ** 2 < 60**2).float()[None, None]
