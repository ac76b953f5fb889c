"""Crop and augment prepared scans, for pretraining and fine-tuning alike. Everything is numpy."""

from typing import Any

import numpy as np
from scipy import ndimage

LEAST = 0.5  # smallest share of an array that `random_part` keeps along each axis
TRIES = 10  # crops that `tissue_start` draws


def crop_at(array: np.ndarray, start: tuple[int, ...], size: int) -> np.ndarray:
    """Return the cube of `size` voxels whose first corner is `start`; voxels outside the array are 0.

    >>> crop_at(np.arange(8).reshape(2, 2, 2), (1, 1, 1), 2).ravel().tolist()
    [7, 0, 0, 0, 0, 0, 0, 0]
    """
    inside = tuple(slice(max(s, 0), min(s + size, n)) for s, n in zip(start, array.shape, strict=True))
    pads = [(max(-s, 0), max(s + size - n, 0)) for s, n in zip(start, array.shape, strict=True)]
    part = np.asarray(array[inside])
    return np.pad(part, pads) if any(map(any, pads)) else part


def random_start(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw a corner for a crop: inside the array where it fits, centred where the array is smaller than the
    crop.
    """
    return tuple(int(rng.integers(n - size + 1)) if n > size else (n - size) // 2 for n in shape)


def random_placement(
    shape: tuple[int, ...], size: int, rng: np.random.Generator, around: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Draw a corner like `random_start`, but place an array smaller than the crop anywhere in it.

    Then the borders of the array do not reveal its middle.

    Args:
        shape: shape of the array.
        size: side of the crop in voxels.
        rng: random generator.
        around: a voxel that the crop must contain, at any place in it.
    """
    start = [int(rng.integers(min(0, n - size), max(0, n - size) + 1)) for n in shape]
    if around is not None:
        start = [
            s if n <= size else int(np.clip(c - rng.integers(size), 0, n - size))
            for s, c, n in zip(start, around, shape, strict=True)
        ]
    return tuple(start)


def random_part(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    around: tuple[int, ...] | None = None,
) -> tuple[slice, ...]:
    """Draw a box in an array, as a tighter field of view would have kept it.

    Args:
        shape: shape of the array.
        rng: random generator.
        around: a voxel that the box must contain.
    """
    box = []
    for axis, n in enumerate(shape):
        kept = max(1, round(n * rng.uniform(LEAST, 1)))
        low, high = (
            (0, n - kept)
            if around is None
            else (max(0, around[axis] - kept + 1), min(around[axis], n - kept))
        )
        start = int(rng.integers(low, high + 1))
        box.append(slice(start, start + kept))
    return tuple(box)


def tissue_start(array: np.ndarray, size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw a corner whose crop is not mostly air.

    Returns the first of ten with at least a quarter of its voxels above 0, otherwise the best.
    """
    best, best_start = -1.0, (0, 0, 0)
    for _ in range(TRIES):
        start = random_start(array.shape, size, rng)
        share = float((crop_at(array, start, size)[::4, ::4, ::4] > 0).mean())
        if share > best:
            best, best_start = share, start
        if share >= 0.25:
            break
    return best_start


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    intensity: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mirror along random axes; scale and shift the intensities (0..1) by up to `intensity`.

    Args:
        image: `(X, Y, Z)` or, with channels, `(C, X, Y, Z)`, in 0..1.
        label: `(X, Y, Z)`, mirrored alike.
        rng: random generator.
        intensity: largest relative scaling, and largest shift.

    Returns:
        New arrays; the inputs are unchanged.
    """
    axes = tuple(int(a) - 3 for a in np.flatnonzero(rng.random(3) < 0.5))
    image = np.array(np.flip(image, axes), np.float32)  # a copy, changed in place
    if intensity:
        each = (image.shape[0], 1, 1, 1) if image.ndim == 4 else ()  # channels stretch on their own
        stretch, move = rng.uniform(-intensity, intensity, (2, *each)).astype(np.float32)
        image *= 1 + stretch
        image += move
        np.clip(image, 0.0, 1.0, out=image)
    return image, np.ascontiguousarray(np.flip(label, axes))


def warp(
    arrays: tuple[np.ndarray, ...],
    centre: np.ndarray,
    size: int,
    matrix: np.ndarray,
    *,
    orders: tuple[int, ...],
) -> list[Any]:
    """Resample cubes of `size` voxels around `centre` through a matrix; 0 outside the array.

    Args:
        arrays: arrays on the same grid.
        centre: centre of the cube in voxels of the array.
        size: side of the cube in voxels.
        matrix: 3x3, from cube to array.
        orders: interpolation order of each array, 1 for images and 0 for labels.
    """
    reach = (
        int(np.ceil(np.abs(matrix).sum(1).max() * (size - 1) / 2)) + 1
    )  # half the side of the cube in the array
    corner = np.floor(centre).astype(int) - reach
    offset: Any = (centre - corner) - matrix @ np.full(3, (size - 1) / 2)
    edge = 2 * reach + 2
    return [
        ndimage.affine_transform(
            crop_at(array, tuple(corner.tolist()), edge).astype(np.float32),
            matrix,
            offset,
            (size,) * 3,
            order=order,
            prefilter=False,
        )
        for array, order in zip(arrays, orders, strict=True)
    ]


def random_matrix(rng: np.random.Generator, *, degrees: float, zoom: float) -> np.ndarray:
    """Draw a matrix for `warp`: rotated about each axis by up to `degrees`, scaled by up to `zoom` either
    way.
    """
    matrix = np.eye(3) * zoom ** rng.uniform(-1, 1)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-degrees, degrees, 3))):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def degrade(image: Any, rng: np.random.Generator, *, chance: float = 0.15) -> np.ndarray:
    """Apply gamma, blur, noise and a lower resolution to an image (0..1), each with probability `chance`
    (after nnU-Net, milder).
    """
    if rng.random() < chance:
        image = np.power(image, 1.4 ** rng.uniform(-1, 1), dtype=np.float32)
    if rng.random() < chance:
        image = ndimage.gaussian_filter(image, rng.uniform(0.4, 1.0), truncate=2.0)
    if rng.random() < chance:
        coarse = ndimage.zoom(image, 1 / rng.uniform(1.2, 2.0), order=1)
        image = ndimage.zoom(coarse, np.array(image.shape) / coarse.shape, order=1)
    if rng.random() < chance:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.05))
        image = np.clip(image + noise, 0.0, 1.0)
    return image
