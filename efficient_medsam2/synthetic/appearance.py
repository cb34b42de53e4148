"""Random pictures of a map of regions: contrast, texture and the artefacts of MR, CT and US.

Shape letters: D, H, W volume axes; R regions.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficient_medsam2.synthetic.noise import smooth_noise

__all__ = ["Modality", "render"]

Modality = Literal["MR", "CT", "US"]
Floats = npt.NDArray[np.float32]


def render(
    generator: np.random.Generator,
    region: npt.NDArray[np.uint16],
    *,
    brightness_R: Floats,
    visible: npt.NDArray[np.bool_],
    modality: Modality,
) -> npt.NDArray[np.uint8]:
    """Make a picture of ``region``.

    Args:
        generator: source of randomness.
        region: (D, H, W) region numbers; 0 lies outside the body.
        brightness_R: mean of each region, about 0..1.
        visible: (D, H, W), False outside an ultrasound fan.
        modality: whose noise and artefacts to imitate.

    Returns:
        uint8 (D, H, W), stretched between two percentiles of the visible part.

    """
    image = _partial_volume(generator, brightness_R[region])
    image += _texture(generator, region, regions=len(brightness_R))
    if modality == "MR":
        image = _mr_artefacts(generator, image)
    elif modality == "CT":
        image = _ct_artefacts(generator, image)
    else:
        image = _us_artefacts(generator, image)
    return _quantise(generator, image, visible, modality)


def _partial_volume(generator: np.random.Generator, image: Floats) -> Floats:
    """Blur in the slice and mix neighbouring slices, as thick slices do."""
    sigma = generator.uniform(0.35, 1.1)
    image = ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=2.5)
    share = generator.choice((0.0, generator.uniform(0.05, 0.25)))
    if share > 0 and len(image) > 1:
        above = np.concatenate([image[:1], image[:-1]])
        below = np.concatenate([image[1:], image[-1:]])
        image = (1 - 2 * share) * image + share * (above + below)
    return np.asarray(image, np.float32)


def _texture(
    generator: np.random.Generator, region: npt.NDArray[np.uint16], *, regions: int
) -> Floats:
    """Add a coarse and a fine random field whose strength differs from region to region."""
    strength = generator.choice((0.3, 1.0))
    texture = np.zeros(region.shape, np.float32)
    for cells, top in (((4, 10), 0.05), ((14, 40), 0.06)):
        count = int(generator.integers(*cells))
        field = smooth_noise(generator, region.shape, (max(len(region) // 3, 1), count, count))
        amplitude_R = (strength * top * generator.random(regions) ** 2).astype(np.float32)
        texture += amplitude_R[region] * field
    return texture


def _mr_artefacts(generator: np.random.Generator, image: Floats) -> Floats:
    """Bias field, slice gain, Rician noise."""
    bias = smooth_noise(generator, image.shape, (1, 2, 2))
    image = image * np.exp(np.float32(generator.uniform(0, 0.25)) * bias)
    if generator.random() < 0.3:
        gain = 1 + generator.uniform(0, 0.08) * generator.standard_normal((len(image), 1, 1))
        image = image * gain.astype(np.float32)
    noise = np.float32(np.exp(generator.uniform(np.log(0.006), np.log(0.06))))
    real = image + noise * generator.standard_normal(image.shape, dtype=np.float32)
    imaginary = noise * generator.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.sqrt(real * real + imaginary * imaginary), np.float32)


def _ct_artefacts(generator: np.random.Generator, image: Floats) -> Floats:
    """Correlated noise and faint straight streaks."""
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    sigma = generator.uniform(0.0, 0.9)
    if sigma > 0.3:
        noise = ndimage.gaussian_filter(noise, (0, sigma, sigma), truncate=2.5)
        noise /= noise.std()
    amplitude = np.float32(np.exp(generator.uniform(np.log(0.008), np.log(0.08))))
    if generator.random() < 0.25:
        rows, columns = np.indices(image.shape[1:], np.float32)
        angle = np.arctan2(
            rows - generator.uniform(0, image.shape[1]),
            columns - generator.uniform(0, image.shape[2]),
        )
        streaks = np.cos(generator.integers(8, 30) * angle) * np.cos(5 * angle)
        image = image + np.float32(generator.uniform(0.01, 0.03)) * streaks
    return np.asarray(image + amplitude * noise, np.float32)


def _us_artefacts(generator: np.random.Generator, image: Floats) -> Floats:
    """Attenuation with depth, shadows along the beam, multiplicative speckle."""
    height = image.shape[1]
    beam = np.linspace(0, 1, height, dtype=np.float32)[None, :, None]
    # Echoes span decades: squaring makes the contrast survive the speckle.
    image = np.square(np.clip(image, 0.1, None)) * np.exp(
        np.float32(-generator.uniform(0, 0.9)) * beam
    )
    shadow = smooth_noise(generator, image.shape, (2, 1, int(generator.integers(4, 12))))
    image = image * (1 - np.float32(generator.uniform(0, 0.4)) * (shadow > 1.2))
    grain = generator.standard_exponential(image.shape, dtype=np.float32)
    sigma = generator.uniform(0.5, 1.3)
    grain = ndimage.gaussian_filter(grain, (0, 0.6 * sigma, sigma), truncate=2.5)
    # Scanners show the envelope compressed, which evens the grain out.
    speckle = grain ** np.float32(generator.uniform(0.12, 0.45))
    return np.asarray((image * speckle) ** np.float32(generator.uniform(0.7, 1.2)), np.float32)


def _quantise(
    generator: np.random.Generator,
    image: Floats,
    visible: npt.NDArray[np.bool_],
    modality: Modality,
) -> npt.NDArray[np.uint8]:
    """Stretch, sometimes invert, bend by a gamma, and round to uint8."""
    sample = image[visible][::7]
    low, high = np.percentile(sample, (generator.uniform(0.2, 2), generator.uniform(98, 99.8)))
    image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    if modality == "MR" and generator.random() < 0.12:
        image = 1 - image
    image = image ** np.float32(np.exp(generator.uniform(-0.4, 0.4)))
    return np.where(visible, np.rint(255 * image), 0).astype(np.uint8)
