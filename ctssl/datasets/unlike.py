"""Cases whose labels are unlike those of the other cases: masks of another scan, moved ones, flipped ones.

On 570 cases of sarcoma, lung tumours, lung nodules and seven organs of the head and neck the limits gave five false
alarms: air in the oesophagus or the larynx. They find every left-right flip and nearly every mask that was moved by
15 mm across the body in the head and neck, a quarter of those moved off large lung tumours, and hardly any of sarcoma
or of lung nodules, whose HU say little. A surface that lies on no edge of the image is no sign: true masks of sarcoma
have it as often as moved ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctssl.volume.volume import Volume

MANY = 15  # cases with a label, from which they say how it usually is
HU, TIMES = (
    100.0,
    2.5,
)  # a median is odd from so far from the others' on: in HU, and times the distance of 90% of them
ASIDE_MM, ONE_SIDE = (
    15.0,
    0.95,
)  # a label has a side if it lies so far from the middle, in this share of the cases
MIRRORED = 0.75  # of that distance, on the other side
TISSUE_HU = -500.0
SIDES = (("left of", "right of"), ("behind", "in front of"))


@dataclass(frozen=True)
class Sign:
    """What is remembered of a label in one case: the median in HU, and the place of its centre in RAS+ mm from the
    middle of the body, along x and y."""

    hu: float
    place_mm: tuple[float, float]


def signs(scan: Volume, mask: Volume, labels: set[int]) -> dict[int, Sign]:
    """Measure each label of a case."""
    from scipy import ndimage

    boxes, found = ndimage.find_objects(mask.array), {}
    middle = _middle_of_body(scan)
    for label in sorted(labels):
        box = boxes[label - 1]
        inside = mask.array[box] == label
        start = np.array([part.start for part in box])
        place = scan.affine[:3, :3] @ (start + _centre(inside)) + scan.affine[:3, 3] - middle
        values = scan.array[box][inside]
        found[label] = Sign(
            float(np.median(values[:: 1 + values.size // 100_000])), (float(place[0]), float(place[1]))
        )
    return found


def unlike_others(cases: dict[str, dict[int, Sign]]) -> dict[str, list[str]]:
    """Return what is odd about the labels of each case, compared with the same labels of the other cases."""
    found: dict[str, list[str]] = {}
    for label in sorted({label for own in cases.values() for label in own}):
        held = {name: own[label] for name, own in cases.items() if label in own}
        if len(held) < MANY:
            continue
        values = [np.array([one.hu for one in held.values()])]
        values += [np.array([one.place_mm[axis] for one in held.values()]) for axis in (0, 1)]
        for number, name in enumerate(held):
            own, others = [float(v[number]) for v in values], [np.delete(v, number) for v in values]
            told = [_odd_hu(own[0], others[0])]
            told += [_mirrored(own[1 + axis], others[1 + axis], axis) for axis in (0, 1)]
            found.setdefault(name, []).extend(f"label {label} {text}" for text in told if text)
    return {name: told for name, told in found.items() if told}


def _odd_hu(own: float, others: np.ndarray) -> str:
    usual = float(np.median(others))
    if abs(own - usual) <= max(HU, TIMES * float(np.percentile(np.abs(others - usual), 90))):
        return ""
    return f"has a median of {own:.0f} HU, in the other {len(others)} cases {usual:.0f} HU"


def _mirrored(own: float, others: np.ndarray, axis: int) -> str:
    usual = float(np.median(others))
    aside = abs(usual) >= ASIDE_MM and (np.sign(others) == np.sign(usual)).mean() >= ONE_SIDE
    if not aside or own * np.sign(usual) > -abs(usual) * MIRRORED:
        return ""
    here, there = (f"{abs(mm):.0f} mm {SIDES[axis][mm > 0]}" for mm in (own, usual))
    return f"lies {here} the middle of the body, in the other {len(others)} cases {there} it"


def _centre(inside: np.ndarray) -> np.ndarray:
    """Return the mean voxel index of a mask."""
    sums = [inside.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([float((np.arange(len(s)) * s).sum() / s.sum()) for s in sums])


def _middle_of_body(scan: Volume) -> np.ndarray:
    """Return the middle of all but the outermost tissue, in RAS+ mm; that of the scan where there is no tissue."""
    step = max(1, round((scan.array.size / 1e6) ** (1 / 3)))
    tissue = np.argwhere(scan.array[::step, ::step, ::step] > TISSUE_HU) * step
    if not len(tissue):
        tissue = np.array([[0, 0, 0], scan.shape])
    places = tissue @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    return np.percentile(places, [1, 99], axis=0).mean(0)
