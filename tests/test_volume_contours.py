"""Polygons around masks, against two independent ways to fill them."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from ctssl.volume.contours import trace_outlines
from ctssl.volume.dicom_masks import _toggle


def even_odd(polygons, shape):
    filled = np.zeros(shape, bool)
    for polygon in polygons:
        _toggle(filled, polygon)
    return filled


def non_zero(polygons, shape):
    """The union of polygons that matplotlib fills by their winding."""
    centres = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2)
    filled = np.zeros(shape, bool)
    for polygon in polygons:
        closed = Outline(np.concatenate([polygon, polygon[:1]]), closed=True)
        filled |= closed.contains_points(centres).reshape(shape)
    return filled


def area(polygon):
    x, y = polygon.T
    return 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))


def test_one_pixel_by_hand():
    plane = np.zeros((5, 4), np.uint8)
    plane[3, 1] = 1
    (polygon,) = trace_outlines(plane)
    assert sorted(map(tuple, polygon.tolist())) == [(2.5, 1.0), (3.0, 0.5), (3.0, 1.5), (3.5, 1.0)]
    assert area(polygon) == 0.5  # counter-clockwise


def test_a_ring_is_one_polygon_with_a_channel_beside_the_centres():
    plane = np.ones((7, 5), bool)
    plane[3, 2] = False
    (polygon,) = trace_outlines(plane)
    assert area(polygon) == 7 * 5 - 4 * 0.125 - 0.5  # corners are cut, and the hole
    channel = polygon[polygon[:, 1] == 2.25].tolist()
    assert channel == [[6.5, 2.25], [3.25, 2.25], [3.25, 2.25], [6.5, 2.25]]


def test_islands_in_holes_and_holes_in_one_row():
    plane = np.zeros((21, 9), bool)
    plane[1:20, 1:8] = True
    plane[3:6, 3:6] = plane[8:11, 3:6] = plane[13:18, 2:7] = False
    plane[15, 4] = True
    polygons = list(trace_outlines(plane))
    assert len(polygons) == 2
    for fill in (even_odd, non_zero):
        assert np.array_equal(fill(polygons, plane.shape), plane)


def test_an_empty_plane_has_no_outline_and_a_full_one_has_one():
    assert list(trace_outlines(np.zeros((4, 5), bool))) == []
    (polygon,) = trace_outlines(np.ones((4, 5), bool))
    assert len(polygon) == 8 and polygon.min() == -0.5


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_random_masks_come_back_exactly_whatever_the_rule(share):
    rng = np.random.default_rng(int(share * 10))
    for _ in range(20):
        plane = rng.random((17, 23)) < share
        polygons = list(trace_outlines(plane))
        for fill in (even_odd, non_zero):
            assert np.array_equal(fill(polygons, plane.shape), plane)
        assert all(area(polygon) > 0 for polygon in polygons)
