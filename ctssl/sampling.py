"""Crops and augmentation of prepared scans, for pretraining and fine-tuning alike. Everything is numpy."""

import numpy as np


def crop_at(array: np.ndarray, start: tuple[int, ...], size: int, *, fill: float = 0.0) -> np.ndarray:
    """The cube of `size` voxels whose first corner is `start`; whatever lies outside the array is `fill`."""
    inside = tuple(slice(max(s, 0), min(s + size, n)) for s, n in zip(start, array.shape, strict=True))
    pads = [(max(-s, 0), max(s + size - n, 0)) for s, n in zip(start, array.shape, strict=True)]
    part = np.asarray(array[inside])
    return np.pad(part, pads, constant_values=fill) if any(map(any, pads)) else part


def random_start(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A corner for a crop: inside the array where it fits, centred where the array is smaller than the crop."""
    return tuple(int(rng.integers(n - size + 1)) if n > size else (n - size) // 2 for n in shape)


def tissue_start(array: np.ndarray, size: int, rng: np.random.Generator, *, tries: int = 10) -> tuple[int, ...]:
    """A corner whose crop is not mostly air: the first of `tries` with a quarter of its voxels above 0, else the best."""
    best, found = -1.0, (0, 0, 0)
    for _ in range(tries):
        start = random_start(array.shape, size, rng)
        share = float((crop_at(array, start, size)[::4, ::4, ::4] > 0).mean())
        if share > best:
            best, found = share, start
        if share >= 0.25:
            break
    return found


def augment(image: np.ndarray, label: np.ndarray | None, rng: np.random.Generator, *, mirror: bool = True,
            intensity: float = 0.1) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Mirror along random axes; stretch and move the intensities (0..1) by up to `intensity`."""
    axes = tuple(int(a) for a in np.flatnonzero(rng.random(3) < 0.5)) if mirror else ()
    image = np.array(np.flip(image, axes), np.float32)  # a copy, changed in place
    if intensity:
        stretch, move = rng.uniform(-intensity, intensity, 2).astype(np.float32)
        image *= 1 + stretch
        image += move
        np.clip(image, 0.0, 1.0, out=image)
    return image, None if label is None else np.ascontiguousarray(np.flip(label, axes))
