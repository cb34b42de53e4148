"""A MedSAM2 checkpoint of synthetic weights, in the official naming.

No download: every weight follows from its name and shape by the rule of the golden outputs
(``tests/golden/README.md``), so a network loaded from it costs what the real one costs and gives
the golden answers.

    python -m benchmarks.official_checkpoint OUT.pt [--salt s4]
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

__all__ = ["official_shapes", "synthetic_state", "synthetic_weight", "write_checkpoint"]

SHAPES_FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "medsam2_state_dict.json"
"""Names and shapes of the official state dict."""

DEFAULT_SALT = "s4"

_HALVED = (
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


def official_shapes(file: Path = SHAPES_FILE) -> dict[str, tuple[int, ...]]:
    """Official parameter name → shape."""
    named = json.loads(file.read_text())
    return {name: tuple(shape) for name, shape in named.items()}


def synthetic_weight(name: str, shape: tuple[int, ...], *, salt: str = DEFAULT_SALT) -> Tensor:
    """The float32 weight of one name and shape: ``tests/golden/README.md``, section 1."""
    seed = zlib.crc32((salt + name).encode("ascii"))
    drawn = np.random.default_rng(seed).standard_normal(shape)
    if name.endswith("gaussian_matrix"):
        scaled = drawn
    elif name.removesuffix(".weight").endswith(_HALVED):
        scaled = 0.5 * drawn
    elif name.endswith(".bias"):
        scaled = 0.1 * drawn
    elif len(shape) == 1:
        scaled = 1 + 0.1 * drawn
    else:
        scaled = drawn / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(scaled.astype(np.float32))


def synthetic_state(
    shapes: Mapping[str, tuple[int, ...]], *, salt: str = DEFAULT_SALT
) -> dict[str, Tensor]:
    """Weights of all names."""
    return {name: synthetic_weight(name, shape, salt=salt) for name, shape in shapes.items()}


def write_checkpoint(
    out: Path, *, salt: str = DEFAULT_SALT, shapes_file: Path = SHAPES_FILE
) -> Path:
    """Write ``{"model": state dict}`` as the official release does, and give the path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    torch.save({"model": synthetic_state(official_shapes(shapes_file), salt=salt)}, partial)
    partial.replace(out)
    return out


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--salt", default=DEFAULT_SALT, show_default=True, help="Start of every seed.")
def main(out: Path, salt: str) -> None:
    """Write a MedSAM2 checkpoint of synthetic weights to OUT (156 MB).

    Names and shapes are those of MEDSAM2_GOLDEN_DIR where that is set, else of tests/golden.
    """
    folder = os.environ.get("MEDSAM2_GOLDEN_DIR")
    shapes_file = Path(folder) / SHAPES_FILE.name if folder else SHAPES_FILE
    write_checkpoint(out, salt=salt, shapes_file=shapes_file)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
