"""Draw slices, features and masks as PNG files, in the radiological view (patient's right on the left)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.atomic import write_whole
from ctssl.volume.grids import resample, working_grid
from ctssl.volume.volume import Volume

COLOURS = (
    (0.90, 0.15, 0.20),
    (0.10, 0.60, 0.95),
    (0.20, 0.75, 0.30),
    (0.95, 0.70, 0.10),
    (0.65, 0.30, 0.85),
    (0.10, 0.80, 0.80),
    (0.95, 0.45, 0.70),
    (0.60, 0.45, 0.25),
)
"""Colours of labels 1, 2, ...; they repeat after the last one."""


def display_grid(volume: Volume, *others: np.ndarray | Volume, spacing_mm: float = 1.5) -> list[np.ndarray]:
    """Resample a scan, and masks on its grid, to one isotropic RAS+ grid for viewing."""
    shape, affine = working_grid(volume, spacing_mm)
    arrays = [volume.array] + [o.array if isinstance(o, Volume) else o for o in others]
    fills = [float(volume.array.min())] + [0.0] * len(others)
    return [resample(a, volume.affine, shape, affine, fill=f) for a, f in zip(arrays, fills, strict=True)]


@dataclass(frozen=True)
class Cuts:
    """Three slices through a scan, small enough to keep: axial, coronal, sagittal.

    Attributes:
        ct: HU.
        masks: masks by label.
        truth: the true mask; None if there is none.
    """

    ct: list[np.ndarray]
    masks: dict[int, list[np.ndarray]]
    truth: list[np.ndarray] | None


def cut_slices(volume: Volume, mask: Volume, truth: Volume | None = None) -> Cuts:
    """Cut a scan along each axis where most of the truth, or else of the mask, is visible."""
    labels = _labels(mask)
    arrays = display_grid(
        volume, *(Volume((mask.array == k).astype(np.float32), mask.affine) for k in labels)
    )
    ct, masks = arrays[0], [m > 0.5 for m in arrays[1:]]
    true = None
    if truth is not None:
        true = display_grid(volume, Volume((truth.array > 0).astype(np.float32), truth.affine))[1]
    where = _centre(np.any(masks, 0) if masks else np.zeros_like(ct, bool), true)

    def cuts(array: np.ndarray) -> list[np.ndarray]:
        return [as_image(array, axis, where[axis]) for axis in (2, 1, 0)]

    by_label = {k: cuts(one) for k, one in zip(labels, masks, strict=True)}
    return Cuts(cuts(ct), by_label, None if true is None else cuts(true))


def draw_cuts(
    cuts: Cuts,
    path: str | os.PathLike | BytesIO,
    *,
    window_hu: tuple[float, float] = (-160.0, 240.0),
    title: str = "",
    names: Mapping[int, str] | None = None,
) -> None:
    """Draw slices with the mask in one colour per label, and the truth as a white line.

    Args:
        cuts: result of `cut_slices`.
        path: PNG file, or a buffer.
        window_hu: HU shown as black and as white.
        title: title of the picture.
        names: name of each label, for a legend.
    """
    figure, axes = _figure(3)
    for number, (name, ax) in enumerate(zip(("axial", "coronal", "sagittal"), axes, strict=True)):
        picture = grey(cuts.ct[number], window_hu)
        for label, masks in cuts.masks.items():
            chosen = masks[number]
            picture[chosen] = 0.55 * picture[chosen] + 0.45 * np.array(colour_of(label))
        ax.imshow(picture)
        if cuts.truth is not None and (cuts.truth[number] > 0.5).any():
            ax.contour(cuts.truth[number], levels=[0.5], colors="white", linewidths=0.8)
        ax.set_title(name, fontsize=9)
        mark_left(ax, name)
    if names and cuts.masks:
        add_legend(
            figure, list(cuts.masks), names, loc="outside lower center", outline=cuts.truth is not None
        )
    _write(figure, path, title)


def mark_left(ax: Any, view: str) -> None:
    """Write which side of the patient is at the left edge of a slice: R (right), in a sagittal one A (front)."""
    ax.text(
        0.02,
        0.5,
        "A" if view == "sagittal" else "R",
        transform=ax.transAxes,
        color="white",
        fontsize=8,
        va="center",
    )


def overlay(
    volume: Volume,
    mask: Volume,
    path: str | os.PathLike | BytesIO,
    *,
    window_hu: tuple[float, float] = (-160.0, 240.0),
    title: str = "",
    outline: Volume | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Draw three slices through the largest cut of a mask, with the mask in colour.

    `outline` (the truth) is a white line. For the other arguments see `draw_cuts`.
    """
    draw_cuts(cut_slices(volume, mask, outline), path, window_hu=window_hu, title=title, names=names)


def features(
    volume: Volume,
    colours: np.ndarray,
    path: str | os.PathLike,
    *,
    affine: np.ndarray,
    window_hu: tuple[float, float] = (-500.0, 500.0),
    title: str = "",
) -> None:
    """Draw an axial and a coronal slice, each next to the features at the same place.

    Args:
        volume: the scan in HU.
        colours: `(x, y, z, 3)` in 0..1 on the grid `affine`.
        path: PNG file.
        affine: 4x4, voxels of `colours` to RAS+ mm.
        window_hu: HU shown as black and as white.
        title: title of the picture.
    """
    shape, view = working_grid(volume, 1.5)
    ct = resample(volume.array, volume.affine, shape, view, fill=float(volume.array.min()))
    paint = np.stack([resample(colours[..., c], affine, shape, view) for c in range(3)], -1)
    figure, axes = _figure(4)
    for axis, pair, name in ((2, axes[:2], "axial"), (1, axes[2:], "coronal")):
        middle = shape[axis] // 2
        pair[0].imshow(grey(as_image(ct, axis, middle), window_hu))
        pair[0].set_title(f"{name} slice", fontsize=9)
        pair[1].imshow(np.clip(np.stack([as_image(paint[..., c], axis, middle) for c in range(3)], -1), 0, 1))
        pair[1].set_title("its features", fontsize=9)
    _write(figure, path, title)


def principal_colours(feature_map: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Return the first three principal components of features over the tissue as colours, air black.

    Args:
        feature_map: `(C, x, y, z)`.
        tissue: `(x, y, z)` bool.

    Returns:
        `(x, y, z, 3)` in 0..1.
    """
    rows = feature_map[:, tissue].T.astype(np.float64)  # (tissue voxels, C)
    centred = rows - rows.mean(0)
    _, _, axes = np.linalg.svd(np.cov(centred.T))
    scores = centred @ axes[:3].T
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.zeros((*tissue.shape, 3), np.float32)
    colours[tissue] = np.clip((scores - low) / np.maximum(high - low, 1e-9), 0.05, 1)
    return colours


def add_legend(
    figure: Any, labels: Sequence[int], names: Mapping[int, str], *, loc: str, outline: bool = False
) -> None:
    """Add the colours and names of labels to a figure, at `loc`. `outline`: also the white line around the true mask."""
    from matplotlib.patches import Patch

    patches = [Patch(color=colour_of(k), label=names.get(k, f"label {k}")) for k in labels]
    if outline:
        patches.append(Patch(facecolor="0.3", edgecolor="white", label="white line: the true mask"))
    legend = figure.legend(handles=patches, loc=loc, ncols=min(6, len(patches)), fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names may hold $


def colour_of(label: int) -> tuple[float, float, float]:
    """Return the colour of a label."""
    return COLOURS[(label - 1) % len(COLOURS)]


def _labels(mask: Volume) -> list[int]:
    return [int(v) for v in np.unique(mask.array) if v > 0]


def _centre(mask: np.ndarray, truth: np.ndarray | None) -> list[int]:
    """Return the index of the slice along each axis that shows most of the mask (of the truth, if given)."""
    shown = truth > 0.5 if truth is not None and (truth > 0.5).any() else mask
    if not shown.any():
        return [n // 2 for n in mask.shape]
    return [int(shown.sum(tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]


def as_image(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return a slice as an image: rows downwards, patient's right on the left (axial: front up)."""
    return np.take(array, index, axis).T[::-1, ::-1]


def grey(cut: np.ndarray, window_hu: tuple[float, float]) -> np.ndarray:
    """Return a slice in HU as a grey RGB image, 0..1."""
    low, high = window_hu
    return np.repeat(np.clip((cut - low) / (high - low), 0, 1)[..., None], 3, -1)


def _figure(columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * columns, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns)
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def _write(figure, path: str | os.PathLike | BytesIO, title: str) -> None:
    if title:
        width = int(12 * figure.get_size_inches()[0])  # characters
        title = "\n".join(textwrap.wrap(title, width))
        figure.suptitle(title, fontsize=10, parse_math=False)  # names of files may hold $
    if isinstance(path, BytesIO):
        figure.savefig(path, dpi=110, format="png")
    else:
        write_whole(Path(path), lambda part: figure.savefig(part, dpi=110, format="png"))
