"""Load batches of prepared scans.

Sample number n is always the same, so resuming skips and repeats nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ctssl.files.running import leave_signals
from training.data.cache import Corpus
from training.data.draws import Draws
from training.data.views import compose, crops_for, crops_of
from training.pretext.batch import Batch
from training.recipe import Run

Sample = tuple[Tensor, float, int, int]


class Samples(Dataset):
    """Dataset whose sample `n` is its crops, their spacing, its seed and its patient.

    Every scan appears once in each pass over the corpus, in a new order.
    """

    def __init__(self, corpus: Corpus, task: Any, run: Run, *, seed: int | None = None) -> None:
        self.corpus, self.run, self.seed = corpus, run, run.seed if seed is None else seed
        self.crops, own = crops_for(task), getattr(type(task), "compose", None)
        self.task = type(task) if own else None  # workers need no weights
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> Sample:
        turn, place = divmod(number, len(self.corpus))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng([self.seed, turn]).permutation(len(self.corpus))
        scan = int(self._order[1][place])
        seed = int(
            np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(24)
        )
        about: Any = dict(crop=self.run.crop, crops=self.crops, how=self.run.views)
        cubes, spacing = crops_of(self.corpus.scan(scan), preprocess=self.run.preprocess, seed=seed, **about)
        return cubes, spacing, seed, self.corpus.patient(scan)

    def batch(self, samples: list[Sample]) -> Batch:
        """Make views of the crops of some samples."""
        cubes, spacing, seeds, patients = zip(*samples, strict=True)
        views = compose(
            self.task,
            torch.stack(cubes),
            torch.tensor(spacing),
            how=self.run.views,
            preprocess=self.run.preprocess,
            draws=Draws.of_samples(list(seeds)),
        )
        return Batch(views, torch.tensor(seeds), torch.tensor(patients))


class Places:
    """The sample numbers of one process: a list for each piece of each step from `first` on."""

    def __init__(self, *, batch: int, pieces: int, rank: int, world: int, first: int, last: int) -> None:
        self.batch, self.pieces, self.rank, self.world, self.first, self.last = (
            batch,
            pieces,
            rank,
            world,
            first,
            last,
        )

    def __len__(self) -> int:
        return (self.last - self.first) * self.pieces

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            for piece in range(self.pieces):
                start = ((step * self.world + self.rank) * self.pieces + piece) * self.batch
                yield list(range(start, start + self.batch))


def loader(samples: Samples, places: Places, *, workers: int) -> Any:
    """Return batches in order; `workers` processes prepare them in advance."""
    ahead: dict[str, Any] = dict(prefetch_factor=4, persistent_workers=False) if workers else {}
    return DataLoader(
        samples,
        batch_sampler=places,
        collate_fn=samples.batch,
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
        **ahead,
    )
