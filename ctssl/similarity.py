"""How alike two networks see the same crops: centred kernel alignment (CKA) between their blocks.

Linear CKA (arXiv 1905.00414) from minibatches (arXiv 2010.15327) with the unbiased estimate of HSIC (Song
2012): `1/(n(n-3)) [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1]`, K and L with zero diagonals. The
paper that ctssl follows prints the last factor as 2/(n-1); the sources have 2/(n-2). An example is a crop;
its feature is the block's map, averaged over a grid of 4x4x4 cells and flattened, so that memory is bounded
by the batch, whatever the number of crops.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ctssl.files.atomic import write_whole
from ctssl.inference.features import blocks_of, prepared
from ctssl.sampling import crop_at, tissue_start

CELLS = 4  # along each side of the grid that a map is averaged over
SIZES = (64, 48, 32, 24, 16)
TRIES = 20  # draws for each crop, before the scans are taken to be too small
STEADY = 256  # crops from which the picture does not depend on their choice


class TooFewCrops(ValueError):
    """The scans are too small for so many different crops."""


@dataclass(frozen=True)
class Similarity:
    """`matrix[i, j]`: CKA of block i of the first and block j of the second, over `crops` crops of `size`
    voxels. `apart`: how many of these share no voxel with each other; where scans are small, the others
    repeat what these show."""

    matrix: np.ndarray
    crops: int
    names: tuple[str, str]
    size: int
    apart: int

    def picture(self, path: Any) -> None:
        """A heat map as PNG."""
        from matplotlib.figure import Figure

        rows, columns = self.matrix.shape
        figure = Figure(figsize=(1.8 + 0.32 * columns, 1.4 + 0.32 * rows), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.matrix, vmin=0, vmax=1, origin="lower", cmap="magma")
        axes.set(
            xlabel=f"block of {self.names[1]}",
            ylabel=f"block of {self.names[0]}",
            title=f"CKA, {self.crops} crops{'' if self.crops >= STEADY else ' (unsteady)'}, {self.apart} apart",
        )
        axes.set_xticks(range(columns), [str(i + 1) for i in range(columns)])
        axes.set_yticks(range(rows), [str(i + 1) for i in range(rows)])
        figure.colorbar(image)
        write_whole(Path(path), lambda part: figure.savefig(part, dpi=110, format="png"))


def hsic(k: Tensor, other: Tensor) -> Tensor:
    """Unbiased HSIC of two Gram matrices `(n, n)`, n at least 4."""
    n = len(k)
    if n < 4 or k.shape != other.shape or k.shape[0] != k.shape[1]:
        raise ValueError(
            f"HSIC needs two square Gram matrices of the same 4 or more examples, got {tuple(k.shape)} and "
            f"{tuple(other.shape)}"
        )
    k, other = k.double(), other.double()
    k, other = k - k.diag().diag(), other - other.diag().diag()
    trace = (k * other.t()).sum()
    both = k.sum() * other.sum() / ((n - 1) * (n - 2))
    crossed = 2.0 / (n - 2) * (k.sum(0) @ other.sum(1))
    return (trace + both - crossed) / (n * (n - 3))


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of features `(n, p)` and `(n, q)` of the same n examples; 1 for equal up to rotation and
    scale, about 0 for independent ones (the unbiased estimate can fall slightly below)."""
    total = Minibatches(1, 1)
    total.add([x], [y])
    return float(total.matrix()[0, 0])


class Minibatches:
    """CKA between every layer of one network and every layer of another, summed up over batches."""

    def __init__(self, rows: int, columns: int) -> None:
        self.cross = torch.zeros(rows, columns, dtype=torch.float64)
        self.own = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Features `(n, ...)` of each layer for one batch of the same examples."""
        k, other = ([gram(x) for x in side] for side in (first, second))
        for i, one in enumerate(k):
            self.own[0][i] += hsic(one, one)
            for j, two in enumerate(other):
                self.cross[i, j] += hsic(one, two)
        for j, two in enumerate(other):
            self.own[1][j] += hsic(two, two)

    def matrix(self) -> np.ndarray:
        """`(rows, columns)`; NaN where a layer gave the same features for every example."""
        scale = (self.own[0].clamp_min(0)[:, None] * self.own[1].clamp_min(0)[None]).sqrt()
        return torch.where(scale > 0, self.cross / scale, torch.nan).numpy()


def gram(x: Tensor) -> Tensor:
    """`(n, n)` inner products of the flattened features, float64."""
    flat = x.flatten(1).double()
    return flat @ flat.t()


def block_features(encoder: Any, images: Tensor) -> list[Tensor]:
    """Of every block `(n, C, 4, 4, 4)`: its map averaged over a grid of cells."""
    device = next(encoder.parameters()).device
    return [
        F.adaptive_avg_pool3d(m.float(), CELLS).cpu()
        for m in encoder.forward_intermediates(images.to(device))
    ]


def _common(first: Any, second: Any) -> dict[str, Any]:
    """Spacing and window of the segmenter, where one of the two is one; None: each has its own."""
    tuned = [model for model in (first, second) if hasattr(model, "encoder")]
    known = tuned[0].spec.preprocess if len(tuned) == 1 and tuned[0].spec else None
    return {"spacing_mm": known and known.spacing_mm, "window_hu": known and known.window_hu}


@torch.inference_mode()
def compare(
    first: Any,
    second: Any,
    scans: list[Any],
    *,
    other_scans: list[Any] | None = None,
    crops: int = 256,
    batch: int = 32,
    size: int | None = None,
    spacing_mm: float | None = None,
    seed: int = 0,
    names: tuple[str, str] | None = None,
    progress: bool = False,
) -> Similarity:
    """CKA between all blocks of two encoders (or of the encoders of two segmenters) on crops of scans.

    Args:
        scans: what `ctssl.read` takes.
        other_scans: what the second sees instead, scan by scan the same anatomy on the same grid (shifted
            copies, say).
        crops: different ones, of which at least 256 are needed for a steady picture (in the tests, batches of
            24 come within 0.02 of all at once).
        batch: crops that are compared at a time, at least so many (all, where there are fewer).
        size: voxels along each side of a crop. None: 64, or as much less as small scans ask for (48, 32, 24,
            16).
        spacing_mm: at which both see the scans, for models that were trained at different ones. None: each at
            its own.
        names: for the picture, instead of the models' own.

    An encoder and a segmenter (the same one fine-tuned, say) both see the scans at the segmenter's spacing
    and HU window.

    Raises `ValueError` where the two would not see the same crops, or the scans do not hold so many different
    ones.
    """
    encoders = [blocks_of(getattr(model, "encoder", model)).eval() for model in (first, second)]
    if other_scans is not None and len(other_scans) != len(scans):
        raise ValueError(f"{len(scans)} scans and {len(other_scans)} others: give one for one")
    if crops < 4 or batch < 4:
        raise ValueError(f"crops={crops} in batches of {batch}: at least 4 crops are compared at a time")
    if (size is not None and size < 1) or (spacing_mm is not None and not 0.1 <= spacing_mm <= 20):
        raise ValueError(
            f"size={size} voxels, spacing_mm={spacing_mm}: give 1 or more voxels, and 0.1 to 20 mm or none"
        )
    given = _common(first, second)
    given["spacing_mm"] = given["spacing_mm"] if spacing_mm is None else spacing_mm
    left = [prepared(encoders[0], scan, **given).array for scan in scans]
    alike = other_scans is None and (all(given.values()) or _own(encoders[0]) == _own(encoders[1]))
    right = left if alike else [prepared(encoders[1], scan, **given).array for scan in (other_scans or scans)]
    for one, two in zip(left, right, strict=True):
        if one.shape != two.shape:
            raise ValueError(
                f"the two see a scan on different grids ({one.shape} and {two.shape} voxels): give "
                "spacing_mm (--spacing) for models of different ones, and copies of one grid"
            )
    size, places = sized_crops(left, crops, (size,) if size else SIZES, seed)
    total = None
    ends = np.linspace(0, crops, max(1, crops // batch) + 1).astype(int).tolist()
    for first_one, last in tqdm(list(itertools.pairwise(ends)), desc="comparing", disable=not progress):
        chosen = places[first_one:last]
        pair = [
            np.stack([crop_at(arrays[number], start, size) for number, start in chosen])
            for arrays in (left, right)
        ]
        found = [
            block_features(encoder, torch.from_numpy(side)[:, None])
            for encoder, side in zip(encoders, pair, strict=True)
        ]
        total = total or Minibatches(len(found[0]), len(found[1]))
        total.add(*found)
    assert total is not None
    own = tuple(e.spec.name if e.spec and e.spec.name else type(e).__name__ for e in encoders)
    return Similarity(total.matrix(), len(places), names or own, size, apart(places, size))  # type: ignore[arg-type]


def _own(encoder: Any) -> Any:
    return encoder.spec.preprocess if encoder.spec else None


def sized_crops(
    scans: list[np.ndarray], count: int, sizes: tuple[int, ...], seed: int
) -> tuple[int, list[tuple[int, tuple[int, ...]]]]:
    """The first of the sizes that fits into most scans and of which they hold so many different crops, and
    these. Raises `TooFewCrops`."""
    room = np.median([min(scan.shape) for scan in scans])
    for size in [size for size in sizes[:-1] if size <= room]:
        try:
            return size, different_crops(scans, count, size, np.random.default_rng(seed))
        except TooFewCrops:
            pass
    return sizes[-1], different_crops(scans, count, sizes[-1], np.random.default_rng(seed))


def different_crops(
    scans: list[np.ndarray], count: int, size: int, rng: np.random.Generator
) -> list[tuple[int, tuple[int, ...]]]:
    """Scan and corner of `count` crops, none of them twice: two of the same would count as two examples that
    agree."""
    places: dict[tuple[int, tuple[int, ...]], None] = {}
    for _ in range(TRIES * count):
        if len(places) == count:
            break
        number = int(rng.integers(len(scans)))
        places.setdefault((number, tissue_start(scans[number], size, rng)))
    if len(places) < count:
        raise TooFewCrops(
            f"the scans ({len(scans)}) hold hardly more than {len(places)} different crops of {size} voxels, and "
            f"{count} are wanted: give smaller crops (--size), or more scans"
        )
    return list(places)


def apart(places: list[tuple[int, tuple[int, ...]]], size: int) -> int:
    """How many of these crops share no voxel, taken greedily from the corner of each scan on."""
    kept: list[tuple[int, tuple[int, ...]]] = []
    for number, start in sorted(places):
        if not any(
            n == number and all(abs(a - b) < size for a, b in zip(s, start, strict=True)) for n, s in kept
        ):
            kept.append((number, start))
    return len(kept)
