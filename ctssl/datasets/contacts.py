"""Contact sheets: one axial slice of each case, with the contours of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from ctssl.pictures import add_legend, as_image, colour_of, grey
from ctssl.volume.grids import resample, working_grid
from ctssl.volume.volume import Volume

PIXELS = 192  # of the longer side of a slice
COLUMNS, SIDE, WORDS = 6, 2.2, 0.6  # slices in a row; inches of each, and of the words above it
LONGEST = 26  # characters of a name that fit


@dataclass(frozen=True)
class Tile:
    """One slice of a case, seen from the feet, front up: HU, and the label that fills most of each pixel."""

    ct: np.ndarray
    labels: np.ndarray


def cut_tile(scan: Volume, mask: Volume, labels: Sequence[int]) -> Tile:
    """Cut the axial slice that shows most of the first of the labels (the middle one where there is none), without
    the air around it."""
    axis = int(np.abs(scan.affine[2, :3]).argmax())
    number = scan.shape[axis] // 2
    if labels:
        number = int((mask.array == labels[0]).sum(tuple(a for a in range(3) if a != axis)).argmax())
    shown = np.take((scan.array > -500) | (mask.array > 0), [number], axis)
    box = [_extent(shown, other) for other in range(3)]
    box[axis] = slice(number, number + 1)
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    ct, drawn = scan.array[tuple(box)], mask.array[tuple(box)]
    longest = max(n * s for n, s in zip(ct.shape, scan.spacing_mm, strict=True))
    shape, grid = working_grid(Volume(ct, affine), longest / PIXELS)

    def image(array: np.ndarray, fill: float) -> np.ndarray:
        return as_image(resample(array, affine, shape, grid, fill=fill), 2, shape[2] // 2)

    hu = image(ct, -1024.0).astype(np.int16)
    chart = np.zeros(hu.shape, np.uint8)
    for label in labels:
        chart[image(drawn == label, 0.0) > 0.5] = label
    return Tile(hu, chart)


def draw_sheet(
    tiles: Mapping[str, Tile],
    out: BytesIO,
    *,
    notes: Mapping[str, Sequence[str]],
    names: Mapping[int, str],
    window_hu: tuple[float, float],
    title: str = "",
) -> None:
    """Draw slices side by side.

    Args:
        tiles: by the name of the case.
        out: buffer for a PNG file.
        notes: up to two lines below each name.
        names: name of each label, for the legend.
        window_hu: HU shown as black and as white.
        title: title of the sheet, may have several lines.
    """
    from matplotlib.figure import Figure

    rows = max(1, -(-len(tiles) // COLUMNS))
    shown = {name: [int(k) for k in np.unique(tile.labels) if k] for name, tile in tiles.items()}
    labels = sorted({label for own in shown.values() for label in own})
    head, foot = 0.1 + 0.2 * (title.count("\n") + bool(title)), 0.2 + 0.22 * -(-len(labels) // 6)
    high = head + rows * (WORDS + SIDE) + foot
    figure = Figure(figsize=(COLUMNS * SIDE, high), facecolor="white")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    figure.subplots_adjust(
        0.005, foot / high, 0.995, 1 - (head + WORDS) / high, wspace=0.03, hspace=WORDS / SIDE
    )
    for ax in axes:
        ax.set_axis_off()
        ax.set_anchor("N")
    for ax, (name, tile) in zip(axes, tiles.items(), strict=False):
        ax.imshow(grey(tile.ct.astype(np.float32), window_hu))
        for label in shown[name]:
            inside = tile.labels == label
            if min(inside.shape) > 1 and not inside.all():  # what has an outline
                ax.contour(inside, levels=[0.5], colors=[colour_of(label)], linewidths=1.1)
        words = "\n".join(map(_short, [name, *notes[name]]))
        ax.set_title(words, fontsize=8, parse_math=False)
    if labels:
        add_legend(figure, labels, names, loc="lower center")
    figure.suptitle(title, y=1 - 0.05 / high, fontsize=9, parse_math=False)
    figure.savefig(out, dpi=110, format="png")


def _extent(shown: np.ndarray, axis: int) -> slice:
    """Return the slice of an axis in which something is shown; all of it if nothing is."""
    there = np.flatnonzero(shown.any(tuple(a for a in range(3) if a != axis)))
    return slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, shown.shape[axis])


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}...{name[-LONGEST // 2 + 3 :]}"
