"""Compare how two networks represent the same crops: centred kernel alignment (CKA) between their blocks.

Linear CKA (arXiv 1905.00414) from minibatches (arXiv 2010.15327) with the unbiased estimate of HSIC (Song
2012): `1/(n(n-3)) [tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2/(n-2) 1'KL1]`, K and L with zero diagonals. The
paper that ctssl follows prints the last factor as 2/(n-1); the sources have 2/(n-2). An example is a crop;
its feature is the block's map, averaged over a grid of 4x4x4 cells and flattened, so that memory is bounded
by the batch size, whatever the number of crops.
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

CELLS = 4  # cells along each side of the grid over which a map is averaged
SIZES = (64, 48, 32, 24, 16)
TRIES = 20  # draws per crop before the scans count as too small
STEADY = 256  # number of crops from which on the result hardly depends on their choice


class TooFewCrops(ValueError):
    """Raised when the scans are too small for the requested number of different crops."""


@dataclass(frozen=True)
class Similarity:
    """CKA between the blocks of two networks.

    Attributes:
        matrix: `matrix[i, j]` is the CKA of block i of the first and block j of the second network.
        crops: number of crops compared.
        names: names of the two networks.
        size: side of a crop in voxels.
        apart: how many of the crops do not overlap; in small scans the others repeat part of their content.
        random: like `matrix`, with the second network's initial weights; None if they were not asked for.
    """

    matrix: np.ndarray
    crops: int
    names: tuple[str, str]
    size: int
    apart: int
    random: np.ndarray | None = None

    def picture(self, path: Any) -> None:
        """Draw a heat map as PNG and, where random weights were compared too, CKA block by block beside theirs."""
        from matplotlib.figure import Figure

        rows, columns = self.matrix.shape
        by_chance = self.random
        beside = 0.0 if by_chance is None else 3.6
        figure = Figure(figsize=(1.8 + 0.32 * columns + beside, 1.4 + 0.32 * rows), layout="constrained")
        if by_chance is not None:
            axes, line = figure.subplots(1, 2, width_ratios=[1.8 + 0.32 * columns, beside])
            self._draw_line(line, by_chance)
        else:
            axes = figure.subplots()
        image = axes.imshow(self.matrix, vmin=0, vmax=1, origin="lower", cmap="magma")
        axes.set(
            xlabel=f"block of {self.names[1]}",
            ylabel=f"block of {self.names[0]}",
            title=f"CKA, {self.crops} crops{'' if self.crops >= STEADY else ' (unsteady)'}, {self.apart} apart",
        )
        axes.set_xticks(range(columns), [str(i + 1) for i in range(columns)])
        axes.set_yticks(range(rows), [str(i + 1) for i in range(rows)])
        figure.colorbar(image, ax=axes)
        write_whole(Path(path), lambda part: figure.savefig(part, dpi=110, format="png"))

    def _draw_line(self, axes: Any, by_chance: np.ndarray) -> None:
        """Draw the CKA of the same block in both networks, against that with random weights."""
        blocks = range(1, min(self.matrix.shape) + 1)
        axes.plot(blocks, np.diag(self.matrix), "o-", label=self.names[1])
        axes.plot(blocks, np.diag(by_chance), "s--", color="grey", label="random weights")
        axes.set(xlabel="block", ylabel=f"CKA with {self.names[0]}", ylim=(-0.05, 1.05))
        axes.set_xticks(blocks)
        axes.legend(fontsize=8)


def hsic(k: Tensor, other: Tensor) -> Tensor:
    """Return the unbiased HSIC of two Gram matrices `(n, n)`, n at least 4."""
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
    """Return the linear CKA of features `(n, p)` and `(n, q)` of the same n examples.

    It is 1 for features equal up to rotation and scale, about 0 for independent ones (the unbiased estimate
    can fall slightly below).

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [5.0, 2.0], [3.0, 3.0]])
    >>> round(cka(x, 2 * x), 4)
    1.0
    """
    total = Minibatches(1, 1)
    total.add([x], [y])
    return float(total.matrix()[0, 0])


class Minibatches:
    """Accumulate CKA between every layer of one network and every layer of another over batches."""

    def __init__(self, rows: int, columns: int) -> None:
        self.cross = torch.zeros(rows, columns, dtype=torch.float64)
        self.own = torch.zeros(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """Add one batch: features `(n, ...)` of each layer for the same n examples."""
        k, other = ([gram(x) for x in side] for side in (first, second))
        for i, one in enumerate(k):
            self.own[0][i] += hsic(one, one)
            for j, two in enumerate(other):
                self.cross[i, j] += hsic(one, two)
        for j, two in enumerate(other):
            self.own[1][j] += hsic(two, two)

    def matrix(self) -> np.ndarray:
        """Return CKA `(rows, columns)`; NaN where a layer gave the same features for every example."""
        scale = (self.own[0].clamp_min(0)[:, None] * self.own[1].clamp_min(0)[None]).sqrt()
        return torch.where(scale > 0, self.cross / scale, torch.nan).numpy()


def gram(x: Tensor) -> Tensor:
    """Return the `(n, n)` inner products of the flattened features, float64."""
    flat = x.flatten(1).double()
    return flat @ flat.t()


def block_features(encoder: Any, images: Tensor) -> list[Tensor]:
    """Return for every block `(n, C, 4, 4, 4)`: its map averaged over a grid of cells."""
    device = next(encoder.parameters()).device
    return [
        F.adaptive_avg_pool3d(m.float(), CELLS).cpu()
        for m in encoder.forward_intermediates(images.to(device))
    ]


def _common(first: Any, second: Any) -> dict[str, Any]:
    """Return spacing and window of the segmenter if exactly one of the two is one, and of two of that which was
    fine-tuned; otherwise None, so each keeps its own.
    """
    tuned = [model for model in (first, second) if hasattr(model, "encoder")]
    tuned = [model for model in tuned if model.parent] if len(tuned) == 2 else tuned
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
    random: bool = False,
    progress: bool = False,
) -> Similarity:
    """Compute CKA between all blocks of two encoders (or the encoders of two segmenters) on crops of scans.

    If one is an encoder and the other a segmenter (such as the same encoder fine-tuned), or one of two segmenters was
    fine-tuned from other weights, both see the scans at its spacing and HU window.

    Args:
        first: an encoder or a segmenter.
        second: an encoder or a segmenter.
        scans: anything that `ctssl.read` accepts.
        other_scans: scans that the second sees instead, one for each of `scans`, with the same anatomy on the
            same grid (such as shifted copies).
        crops: number of different crops; use at least 256 for a stable result (in the tests, batches of 24
            come within 0.02 of all at once).
        batch: smallest number of crops compared at a time (all of them, if there are fewer).
        size: side of a crop in voxels. Default: 64, or less for small scans (48, 32, 24, 16).
        spacing_mm: working spacing for both, for models that were trained at different ones. Default: each
            model's own.
        seed: seed of the crops.
        names: names for the picture. Default: those of the models.
        random: also compare the first with the second's architecture with initial weights, which tells how much of
            the similarity no training explains.
        progress: show a progress bar.

    Raises:
        ValueError: the two would not see the same crops, or the scans hold too few different ones.
    """
    encoders = [blocks_of(getattr(model, "encoder", model)).eval() for model in (first, second)]
    if other_scans is not None and len(other_scans) != len(scans):
        raise ValueError(f"{len(scans)} scans but {len(other_scans)} other scans; give one for one")
    if crops < 4 or batch < 4:
        raise ValueError(f"invalid crops={crops}, batch={batch} (both must be 4 or more)")
    if (size is not None and size < 1) or (spacing_mm is not None and not 0.1 <= spacing_mm <= 20):
        raise ValueError(
            f"invalid size={size} voxels (must be 1 or more) or spacing_mm={spacing_mm} (must be 0.1 to 20)"
        )
    given = _common(first, second)
    given["spacing_mm"] = given["spacing_mm"] if spacing_mm is None else spacing_mm
    left = [prepared(encoders[0], scan, **given).array for scan in scans]
    alike = other_scans is None and (all(given.values()) or _own(encoders[0]) == _own(encoders[1]))
    right = left if alike else [prepared(encoders[1], scan, **given).array for scan in (other_scans or scans)]
    for one, two in zip(left, right, strict=True):
        if one.shape != two.shape:
            raise ValueError(
                f"the two models see a scan on different grids ({one.shape} and {two.shape} voxels); set "
                "a common spacing_mm (--spacing)"
                + ("" if other_scans is None else ", and give other scans on the same grid")
            )
    size, places = sized_crops(left, crops, (size,) if size else SIZES, seed)
    twin = initial(encoders[1], seed) if random else None
    total, by_chance = _accumulate(
        encoders, twin, (left, right), places, size=size, batch=batch, progress=progress
    )
    own = tuple(e.spec.name if e.spec and e.spec.name else type(e).__name__ for e in encoders)
    return Similarity(total, len(places), names or own, size, apart(places, size), by_chance)  # type: ignore[arg-type]


def _accumulate(
    encoders: list[Any],
    twin: Any,
    scans: tuple[list[np.ndarray], list[np.ndarray]],
    places: list[tuple[int, tuple[int, ...]]],
    *,
    size: int,
    batch: int,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the CKA of the first encoder with the second, and with its `twin` (None without one)."""
    networks = [encoders[1]] if twin is None else [encoders[1], twin]
    sums: list[Minibatches] = []
    ends = np.linspace(0, len(places), max(1, len(places) // batch) + 1).astype(int).tolist()
    for first, last in tqdm(list(itertools.pairwise(ends)), desc="comparing", disable=not progress):
        chosen = places[first:last]
        seen, other = (
            torch.from_numpy(np.stack([crop_at(side[number], start, size) for number, start in chosen]))[
                :, None
            ]
            for side in scans
        )
        own = block_features(encoders[0], seen)
        features = [block_features(network, other) for network in networks]
        sums = sums or [Minibatches(len(own), len(one)) for one in features]
        for total, one in zip(sums, features, strict=True):
            total.add(own, one)
    matrices = [total.matrix() for total in sums]
    return matrices[0], matrices[1] if twin is not None else None


def initial(encoder: Any, seed: int) -> Any:
    """Return an encoder of the same architecture and device with initial weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(encoder)(**encoder.config).to(next(encoder.parameters()).device).eval()


def _own(encoder: Any) -> Any:
    return encoder.spec.preprocess if encoder.spec else None


def sized_crops(
    scans: list[np.ndarray], count: int, sizes: tuple[int, ...], seed: int
) -> tuple[int, list[tuple[int, tuple[int, ...]]]]:
    """Choose a crop size and draw the crops.

    Returns the first of `sizes` that fits into most scans and yields `count` different crops, and the crops.
    Raises `TooFewCrops`.
    """
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
    """Draw `count` different crops as (scan number, corner); duplicates would count as two examples that
    agree.

    Raises `TooFewCrops` if the scans hold too few.
    """
    places: dict[tuple[int, tuple[int, ...]], None] = {}
    for _ in range(TRIES * count):
        if len(places) == count:
            break
        number = int(rng.integers(len(scans)))
        places.setdefault((number, tissue_start(scans[number], size, rng)))
    if len(places) < count:
        raise TooFewCrops(
            f"{len(scans)} scans hold about {len(places)} different crops of {size} voxels, fewer than "
            f"the {count} requested; use smaller crops (--size), fewer crops (--crops) or more scans"
        )
    return list(places)


def apart(places: list[tuple[int, tuple[int, ...]]], size: int) -> int:
    """Count crops that share no voxel, chosen greedily from the corner of each scan on."""
    kept: list[tuple[int, tuple[int, ...]]] = []
    for number, start in sorted(places):
        if not any(
            n == number and all(abs(a - b) < size for a, b in zip(s, start, strict=True)) for n, s in kept
        ):
            kept.append((number, start))
    return len(kept)
