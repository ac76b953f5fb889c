"""Polygons around the pixels of a mask, in one plane; a hole is joined to its outline by a channel of no width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np


def trace_outlines(plane: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a closed polygon for each connected region of a mask.

    The corners lie halfway between the centres of pixels inside and outside (marching squares, of contourpy), so a
    pixel belongs to the mask exactly if its centre lies inside a polygon. Outlines run counter-clockwise, holes
    clockwise, so even-odd and non-zero filling give the same; a region within a hole has a polygon of its own.
    Source of the channel (keyhole) between a hole and its outline: DICOM PS3.3, C.8.8.6.3.

    Args:
        plane: mask `(X, Y)`.

    Yields:
        Corners `(n, 2)` in pixels; centres of pixels are whole numbers. The last corner is not the first again.

    >>> [polygon.tolist() for polygon in trace_outlines(np.array([[0, 0, 0], [0, 1, 0]]))]
    [[[0.5, 1.0], [1.0, 0.5], [1.5, 1.0], [1.0, 1.5]]]
    """
    from contourpy import FillType, contour_generator

    if not plane.any():
        return
    around = np.pad(plane != 0, 1).astype(float).T  # (Y, X): a border, so that every outline is closed
    found = contour_generator(z=around, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    for points, offsets in zip(*found, strict=True):
        outline, *holes = (_corners(points[start : end - 1] - 1.0) for start, end in pairwise(offsets))
        yield _join(outline, holes)


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out the points of a ring `(n, 2)` that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _join(outline: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Join holes to their outline, each by a channel to the right: the polygon goes there and back on one line.

    The line runs a quarter of a pixel beside the centres, so that no centre lies on it.
    """
    for hole in sorted(holes, key=lambda ring: -ring[:, 0].max()):  # what lies on the right is joined already
        y = np.floor(hole[hole[:, 0].argmax(), 1]) + 0.25
        edges, places = _crossings(hole, y)
        own, start = edges[places.argmax()], places.max()
        edges, places = _crossings(outline, y)
        beyond = np.where(places > start, places, np.inf)
        other, end = edges[beyond.argmin()], beyond.min()
        there, back = [[end, y], [start, y]], [[start, y], [end, y]]
        around = np.roll(hole, -(own + 1), 0)  # from the channel once around
        outline = np.concatenate([outline[: other + 1], there, around, back, outline[other + 1 :]])
    return outline


def _crossings(ring: np.ndarray, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of a ring `(n, 2)` that cross a horizontal line, by their first corners, and where along x."""
    step = np.roll(ring, -1, 0) - ring
    edges = np.flatnonzero((ring[:, 1] < y) != (ring[:, 1] + step[:, 1] < y))
    x0, y0 = ring[edges].T
    return edges, x0 + (y - y0) / step[edges, 1] * step[edges, 0]
