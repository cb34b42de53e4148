"""What may change in a student's input beside what is cached for it."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["photometric"]


def photometric(image: Tensor, generator: np.random.Generator, *, strength: float) -> Tensor:
    """Random gamma, contrast, brightness and noise per image; geometry stays. uint8 in and out.

    Only this may change in a student's input: the cached features belong to this geometry.
    """
    if strength == 0:
        return image
    count = image.shape[0]
    draw = torch.from_numpy(generator.uniform(-1, 1, (3, count, 1, 1, 1)).astype(np.float32))
    unit = (image.float() / 255).clamp(min=1e-6) ** torch.exp(0.4 * strength * draw[0])
    unit = (unit - 0.5) * (1 + 0.3 * strength * draw[1]) + 0.5 + 0.1 * strength * draw[2]
    noise = generator.standard_normal(tuple(unit.shape), dtype=np.float32)
    sigma = generator.uniform(0, 0.04 * strength)
    return ((unit + float(sigma) * torch.from_numpy(noise)) * 255).round().clamp(0, 255).byte()
