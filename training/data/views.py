"""Turn a prepared scan into the views of a task. The sample's seed determines everything. numpy only."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ctssl.sampling import augment, crop_at, random_start, tissue_start
from ctssl.zoo import Preprocess
from training.data.lesions import LUNG_HU


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
        spacing: range of the spacing in mm that is drawn for each sample; None keeps that of the corpus.
        thick: largest slice thickness, in voxels; half of the samples are blurred along one axis up to it.
    """

    shift: float = 0.25
    zoom: float = 1.25
    intensity: float = 0.15
    gamma: float = 1.4
    noise: float = 0.04
    blur: float = 1.0
    holes: int = 0
    spacing: tuple[float, float] | None = None
    thick: float = 1.0

    def draw_spacing(self, own: float, rng: np.random.Generator) -> float:
        """Return the spacing of a sample in mm; `own` is that of the corpus."""
        if self.spacing is None:
            return own
        low, high = self.spacing
        return float(low * (high / low) ** rng.random())

    def draw_size(self, crop: int, own: float, rng: np.random.Generator) -> tuple[int, float]:
        """Return the side in voxels of the cube that becomes a crop of `crop` voxels, and the crop's spacing."""
        spacing = self.draw_spacing(own, rng)
        return max(2, round(crop * spacing / own)), spacing


def sample(
    scan: np.ndarray, *, crop: int, views: int, how: Views, preprocess: Preprocess, seed: int
) -> list[np.ndarray]:
    """Return `views` arrays `(S, S, S)` float32 0..1 from a prepared scan `(X, Y, Z)`."""
    rng = np.random.default_rng(seed)
    size, _ = how.draw_size(crop, preprocess.spacing_mm, rng)
    start = tissue_start(scan, size, rng)
    if views == 1:
        return [augment(rescale(crop_at(scan, start, size), crop), None, rng, intensity=0.0)[0]]
    return [view(scan, start, crop, size, how, rng) for _ in range(views)]


def view(
    scan: np.ndarray, start: tuple[int, ...], crop: int, size: int, how: Views, rng: np.random.Generator
) -> np.ndarray:
    """Return one view `(crop, crop, crop)` of about the cube of `size` voxels at the corner `start`."""
    edge = max(2, round(size * how.zoom ** rng.uniform(-1, 1)))
    drift = rng.uniform(-how.shift / 2, how.shift / 2, 3) * size + (size - edge) / 2
    corner = tuple(round(float(s + d)) for s, d in zip(start, drift, strict=True))
    image, _ = change(rescale(crop_at(scan, corner, edge).astype(np.float32), crop), None, how, rng)
    return image


def change(
    image: np.ndarray, mask: np.ndarray | None, how: Views, rng: np.random.Generator
) -> tuple[np.ndarray, Any]:
    """Mirror an image (and its mask alike, if there is one) and change its values; returns new arrays."""
    if how.thick > 1 and rng.random() < 0.5:
        image = ndimage.uniform_filter1d(image, round(rng.uniform(1, how.thick)), axis=int(rng.integers(3)))
    image, mask = augment(image, mask, rng, intensity=how.intensity)
    image = np.power(image, how.gamma ** rng.uniform(-1, 1), dtype=np.float32)
    if how.blur and rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0, how.blur), truncate=2.0)
    if how.noise:
        image = image + gaussian_noise(image.shape, rng) * np.float32(rng.uniform(0, how.noise))
    for _ in range(how.holes):
        low = rng.integers(0, len(image) * 3 // 4, 3)
        image[tuple(slice(a, a + len(image) // 4) for a in low)] = rng.random()
    return np.clip(image, 0.0, 1.0, dtype=np.float32), mask


def lung_start(
    scan: np.ndarray,
    size: int,
    preprocess: Preprocess,
    rng: np.random.Generator,
    *,
    wanted: bool,
    tries: int = 12,
) -> tuple[int, ...]:
    """Draw a corner whose crop shows lung, if that is `wanted` and the scan has any; else `tissue_start`."""
    low, high = preprocess.window_hu
    if wanted and low < LUNG_HU[1]:
        bounds = [(hu - low) / (high - low) for hu in LUNG_HU]
        for _ in range(tries):
            start = random_start(scan.shape, size, rng)
            values = crop_at(scan, start, size)[::4, ::4, ::4]
            if ((values > bounds[0]) & (values < bounds[1])).mean() > 0.2:
                return start
    return tissue_start(scan, size, rng)


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


def rescale(image: np.ndarray, size: int) -> np.ndarray:
    """Resample a cube to `size` voxels, linearly along each axis in turn; averaging where it gets coarser."""
    edge = image.shape[0]
    if edge == size:
        return image
    if edge <= size:
        where, reach = np.linspace(0, edge - 1, size), 1.0
    else:
        where, reach = (np.arange(size) + 0.5) * edge / size - 0.5, edge / size
    weights = np.clip(1 - np.abs(where[:, None] - np.arange(edge)) / reach, 0, None)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    for axis in range(3):
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image
