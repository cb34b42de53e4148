"""A cache whose teacher answers nothing finite, though every file is as it was recorded."""

from safetensors.torch import load_file, save_file

from cache.repair import cover
from stages.side_files import record


def spoil_decoder(cache):
    """Give the mask decoder in a cache's teacher folder weights that are NaN, and record them."""
    file = cache / "teacher" / "model.safetensors"
    weights = {
        name: value * float("nan") if name.startswith("mask_decoder.") else value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    cover(cache, record)
