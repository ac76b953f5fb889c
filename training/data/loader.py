"""Load batches of prepared scans.

Sample number n is always the same, so resuming skips and repeats nothing.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ctssl.files.running import leave_signals
from training.data.cache import Corpus
from training.data.views import sample
from training.pretext.batch import Batch
from training.recipe import Run


class Samples(Dataset):
    """Dataset whose sample `n` is its views, seed and patient.

    Every scan appears once in each pass over the corpus, in a new order.
    """

    def __init__(self, corpus: Corpus, task: Any, run: Run, *, seed: int | None = None) -> None:
        self.corpus, self.seed = corpus, run.seed if seed is None else seed
        own = getattr(task, "sample", None)
        draw: Any = own or partial(sample, views=getattr(task, "views", 1))
        self.draw = partial(draw, crop=run.crop, how=run.views, preprocess=run.preprocess)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> tuple[list[np.ndarray], int, int]:
        turn, place = divmod(number, len(self.corpus))
        if self._order[0] != turn:
            self._order = turn, np.random.default_rng([self.seed, turn]).permutation(len(self.corpus))
        scan = int(self._order[1][place])
        seed = int(
            np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(24)
        )
        return self.draw(self.corpus.scan(scan), seed=seed), seed, self.corpus.patient(scan)


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


def collate(samples: list[tuple[list[np.ndarray], int, int]]) -> Batch:
    views, seeds, patients = zip(*samples, strict=True)
    stacked = tuple(torch.from_numpy(np.stack(view))[:, None] for view in zip(*views, strict=True))
    return Batch(stacked, torch.tensor(seeds), torch.tensor(patients))


def loader(samples: Samples, places: Places, *, workers: int) -> Any:
    """Return batches in order; `workers` processes prepare them in advance."""
    ahead: dict[str, Any] = dict(prefetch_factor=4, persistent_workers=False) if workers else {}
    return DataLoader(
        samples,
        batch_sampler=places,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=torch.cuda.is_available(),
        **ahead,
    )
