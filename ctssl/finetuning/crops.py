"""The crops that a training draws."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ctssl.files.running import leave_signals
from ctssl.finetuning.settings import Settings
from ctssl.sampling import augment, crop_at, degrade, random_matrix, random_part, random_placement, warp


class PreparedCase(NamedTuple):
    """A prepared case: image `(C, X, Y, Z)` float16 0 to 1, labels `(X, Y, Z)` uint8, on the working grid `affine`.

    `labelled`: whether its mask holds any label, also one too small for that grid.
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    name: str
    labelled: bool = True


def batches(
    scans: list[PreparedCase], settings: Settings, start: int, *, rank: int = 0, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return an endless iterator over the results of `draw` from step `start` on; `workers` processes draw ahead."""
    steps: Any = itertools.count(start)
    own = torch.Generator()  # not the global one, which the network may draw from
    crops = _Steps(scans, settings, rank)
    how: Any = {"sampler": steps, "num_workers": workers, "worker_init_fn": leave_signals}
    return iter(DataLoader(crops, batch_size=None, generator=own, **how))


def workers_for(device: torch.device) -> int:
    """Return the number of processes that draw crops: this process's share of the cores less one, at most 8, beside a
    GPU; 0 on a CPU, whose cores the training needs."""
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1
    return max(0, min(8, share)) if device.type == "cuda" else 0


class _Steps(Dataset[tuple[Tensor, Tensor]]):
    """The crops of every step, by its number."""

    def __init__(self, scans: list[PreparedCase], settings: Settings, rank: int) -> None:
        self.scans, self.settings, self.rank = scans, settings, rank

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return draw(self.scans, self.settings, step, rank=self.rank)


def draw(scans: list[PreparedCase], settings: Settings, step: int, *, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the images `(B, C, S, S, S)` and labels `(B, 1, S, S, S)` of a step. Each crop depends on the scans, the
    settings, the step and its number alone."""
    pairs, full, empty = [], scans, []
    if settings.empty:
        empty = [scan for scan in scans if not scan.labelled]
        full = [scan for scan in scans if scan.labelled]
    for number in range(rank * settings.batch, (rank + 1) * settings.batch):
        rng = np.random.default_rng([settings.seed, step, number])
        chosen = empty if empty and (not full or rng.random() < settings.empty) else full
        image, label, *_ = chosen[rng.integers(len(chosen))]
        pairs.append(augmented(image, label, settings, rng))
    images, labels = (np.stack(column) for column in zip(*pairs, strict=True))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))[:, None]


def labelled(label: np.ndarray, settings: Settings, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Draw a labelled voxel for the crop to hold, in a share `settings.foreground` of the calls; otherwise None."""
    if rng.random() >= settings.foreground or not label.any():
        return None
    found = np.flatnonzero(label)
    return tuple(int(c) for c in np.unravel_index(found[rng.integers(len(found))], label.shape))


def augmented(
    image: np.ndarray, label: np.ndarray, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one augmented crop `(C, S, S, S)` of a scan, and its labels."""
    size, around = settings.crop, labelled(label, settings, rng)
    if rng.random() < settings.trim:
        box = random_part(label.shape, rng, around)
        image, label = image[(slice(None), *box)], label[box]
        around = (
            None if around is None else tuple(c - part.start for c, part in zip(around, box, strict=True))
        )
    start = random_placement(label.shape, size, rng, around)
    if rng.random() < settings.warp:
        middle = np.array(start) + (size - 1) / 2
        matrix = random_matrix(rng, degrees=settings.degrees, zoom=settings.zoom)
        orders = (*(1 for _ in image), 0)
        *parts, two = warp((*image, label), middle, size, matrix, orders=orders)
    else:
        parts, two = [crop_at(channel, start, size) for channel in image], crop_at(label, start, size)
    one, moved = augment(np.stack(parts), two, rng, intensity=settings.intensity)
    return np.stack([degrade(channel, rng, chance=settings.degrade) for channel in one]), moved
