"""Draw labelled voxels from scans, and describe each by features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ctssl.datasets.case import Case, read_case
from ctssl.datasets.splits import patients
from ctssl.sampling import crop_at
from ctssl.volume.grids import prepare, resample
from ctssl.zoo import Preprocess

CUBE, CUBES, PER_CUBE = 32, 8, 25  # voxels a side; cubes a patient; voxels of each class in a cube


class ProbedScan(NamedTuple):
    """A prepared scan 0..1 and its tumour, on one grid."""

    patient: str
    image: np.ndarray
    tumour: np.ndarray


class Rows(NamedTuple):
    """Voxels: features `(N, D)`, whether tumour `(N,)`, the patient's number `(N,)` in the order of `splits.patients`."""

    features: Tensor
    tumour: Tensor
    patient: Tensor


class Cube(NamedTuple):
    """A piece of a scan `(S, S, S)`, the voxels `(n, 3)` taken from it, and whether each is tumour."""

    image: np.ndarray
    voxels: np.ndarray
    tumour: np.ndarray


Features = Callable[[list[Cube]], Tensor]  # -> (all voxels of all cubes, D)


def read_scans(
    cases: list[Case], preprocess: Preprocess, *, label: int | None, progress: bool
) -> list[ProbedScan]:
    """Return the cases, prepared. Those without labelled voxels, or without other tissue, at the working spacing are left out."""
    found = []
    for case in tqdm(cases, desc="reading scans", disable=not progress):
        scan, mask = read_case(case)
        image = prepare(scan, preprocess)
        wanted = mask.array > 0 if label is None else mask.array == label
        inside = resample(wanted, mask.affine, image.shape, image.affine) > 0.5
        if inside.any() and (~inside & (image.array > 0)).any():
            found.append(ProbedScan(case.patient or case.name, image.array, inside))
    return found


def cubes(scan: ProbedScan, rng: np.random.Generator) -> list[Cube]:
    """Return pieces in which some tumour voxel lies at a random place; as many voxels of the tumour as of other
    tissue in each."""
    found, inside = [], np.argwhere(scan.tumour)
    room = np.maximum(np.array(scan.image.shape) - CUBE, 0)
    for _ in range(CUBES):
        corner = tuple(
            np.clip(inside[rng.integers(len(inside))] - rng.integers(CUBE, size=3), 0, room).tolist()
        )
        image, tumour = (crop_at(array, corner, CUBE) for array in (scan.image, scan.tumour))
        sides = [np.argwhere(side) for side in (tumour, ~tumour & (image > 0))]
        count = min(PER_CUBE, *map(len, sides))
        voxels = np.concatenate([side[rng.permutation(len(side))[:count]] for side in sides])
        found.append(Cube(image, voxels, np.repeat([True, False], count)))
    return found


def encoded(encoder: Any) -> Features:
    """Return the features of voxels: all maps, trilinear."""

    device = next(iter(encoder.parameters()), torch.zeros(0)).device

    @torch.inference_mode()
    def features(pieces: list[Cube]) -> Tensor:
        images = torch.from_numpy(np.stack([cube.image for cube in pieces]))[:, None]
        maps = [found.cpu() for found in encoder(images.to(device))]
        rows = []
        for number, cube in enumerate(pieces):
            columns = []
            for m, stride in zip(maps, encoder.strides, strict=True):
                where = (
                    torch.from_numpy(cube.voxels).float() + 0.5
                ) / stride  # in cells, corners at whole numbers
                where = 2 * where / torch.tensor(m.shape[2:]) - 1
                grid = where.flip(-1)[None, :, None, None]  # grid_sample counts the axes backwards
                sampled = F.grid_sample(m[number, None], grid, align_corners=False, padding_mode="border")
                columns.append(sampled[0, :, :, 0, 0].t())
            rows.append(torch.cat(columns, 1))
        return torch.cat(rows)

    return features


def intensity(pieces: list[Cube]) -> Tensor:
    """Return the value of each voxel, and of its neighbourhood at three scales."""
    rows = []
    for cube in pieces:
        blurred = [cube.image, *(ndimage.gaussian_filter(cube.image, s) for s in (1, 2, 4))]
        rows.append(np.stack([b[tuple(cube.voxels.T)] for b in blurred], 1))
    return torch.from_numpy(np.concatenate(rows)).float()


def position(pieces: list[Cube]) -> Tensor:
    """Return where in its cube each voxel lies: coordinates, their squares and products, the distance from the
    middle."""
    x = torch.from_numpy(np.concatenate([cube.voxels for cube in pieces]) + 0.5).float() * 2 / CUBE - 1
    first, second = torch.triu_indices(3, 3)
    products = x[:, first] * x[:, second]
    return torch.cat([x, products, x.norm(dim=1, keepdim=True)], 1)


def rows(group: list[ProbedScan], each: Sequence[Features]) -> Iterator[Rows]:
    """Yield one `Rows` a seed, by the features of that seed."""
    for seed, features in enumerate(each):
        parts = []
        people = patients(group)
        for number, scan in enumerate(group):
            pieces = cubes(scan, np.random.default_rng([seed, number]))
            tumour = torch.from_numpy(np.concatenate([cube.tumour for cube in pieces]))
            parts.append((features(pieces), tumour, torch.full((len(tumour),), people.index(scan.patient))))
        yield Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))
