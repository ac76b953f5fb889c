"""Turn a prepared scan into the views of a task. The sample's seed determines everything. numpy only."""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ctssl.sampling import augment, crop_at, tissue_start


@dataclass(frozen=True)
class Views:
    """How crops become views. A task with one view gets the mirrored crop; a task with two gets two of these.

    Attributes:
        shift: largest distance between the views' corners, as a share of the crop.
        zoom: views show a cube up to this much larger or smaller.
        intensity: largest scaling and shift of the values (0..1).
        gamma: largest exponent.
        noise: largest standard deviation (0..1).
        blur: largest sigma in voxels.
        holes: number of boxes that are set to one value.
    """

    shift: float = 0.25
    zoom: float = 1.25
    intensity: float = 0.15
    gamma: float = 1.4
    noise: float = 0.04
    blur: float = 1.0
    holes: int = 0


def sample(scan: np.ndarray, *, crop: int, views: int, how: Views, seed: int) -> list[np.ndarray]:
    """Return `views` arrays `(S, S, S)` float32 0..1 from a prepared scan `(X, Y, Z)`."""
    rng = np.random.default_rng(seed)
    start = tissue_start(scan, crop, rng)
    if views == 1:
        return [augment(crop_at(scan, start, crop), None, rng, intensity=0.0)[0]]
    return [view(scan, start, crop, how, rng) for _ in range(views)]


def view(
    scan: np.ndarray, start: tuple[int, ...], crop: int, how: Views, rng: np.random.Generator
) -> np.ndarray:
    """Return one view near the corner `start`."""
    edge = max(2, round(crop * how.zoom ** rng.uniform(-1, 1)))
    drift = rng.uniform(-how.shift / 2, how.shift / 2, 3) * crop + (crop - edge) / 2
    corner = tuple(round(float(s + d)) for s, d in zip(start, drift, strict=True))
    image = crop_at(scan, corner, edge).astype(np.float32)
    if edge != crop:
        image = stretch(image, crop)
    image, _ = augment(image, None, rng, intensity=how.intensity)
    image = np.power(image, how.gamma ** rng.uniform(-1, 1), dtype=np.float32)
    if how.blur and rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0, how.blur), truncate=2.0)
    if how.noise:
        image = image + gaussian_noise(image.shape, rng) * np.float32(rng.uniform(0, how.noise))
    for _ in range(how.holes):
        low = rng.integers(0, crop * 3 // 4, 3)
        image[tuple(slice(a, a + crop // 4) for a in low)] = rng.random()
    return np.clip(image, 0.0, 1.0, dtype=np.float32)


def gaussian_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return standard normal numbers from a random place in a fixed table of four million, ten times faster
    than drawing them.
    """
    table, count = normal_table(), int(np.prod(shape))
    if count > len(table):
        return rng.standard_normal(shape, dtype=np.float32)
    start = int(rng.integers(len(table) - count + 1))
    return table[start : start + count].reshape(shape)


@functools.cache
def normal_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """Resample a cube to `size` voxels, linearly along each axis in turn."""
    where = np.linspace(0, image.shape[0] - 1, size)
    low = np.minimum(where.astype(int), image.shape[0] - 2)
    weights = np.zeros((size, image.shape[0]), np.float32)
    weights[np.arange(size), low] = 1 - (where - low)
    weights[np.arange(size), low + 1] = where - low
    for axis in range(3):
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image
