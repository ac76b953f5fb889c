"""Keep all scans in a device's memory and draw the crops there: a GPU waits for no loader.

The crops are those of `training.data.views.crops_of`, drawn for a whole batch at once.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctssl.devices import free_memory
from training.data.axes import resample
from training.data.cache import Corpus
from training.data.draws import Draws
from training.data.views import LUNG, Crops, compose, crops_for, lung_values
from training.pretext.batch import Batch
from training.recipe import Run

TRIES = 12  # places that are looked at for each sample
LATTICE = 8  # voxels along each side that are looked at
AT_ONCE = 1024  # samples that are drawn together, of crops of 64 voxels at most
TISSUE = 0.25  # share of a crop that should not be air


class Resident:
    """The scans of a corpus in one piece of memory.

    Args:
        corpus: prepared scans.
        device: where they are kept.
    """

    def __init__(self, corpus: Corpus, device: torch.device) -> None:
        scans = [corpus.scan(number) for number in range(len(corpus))]
        sizes = torch.tensor([scan.size for scan in scans])
        if device.type == "cuda":
            free, wanted = free_memory(device), 2 * int(sizes.sum())
            if wanted > free / 2:
                raise SystemExit(
                    f"the scans take {wanted / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; set resident=False"
                )
        self.device, self.count = device, len(scans)
        self.shapes = torch.tensor([scan.shape for scan in scans], device=device)
        self.starts = (sizes.cumsum(0) - sizes).to(device)
        self.patients = torch.tensor([corpus.patient(n) for n in range(len(scans))], device=device)
        self.voxels = torch.empty(int(sizes.sum()), dtype=torch.float16, device=device)
        for scan, start in zip(scans, self.starts.tolist(), strict=True):
            self.voxels[start : start + scan.size] = torch.from_numpy(np.array(scan)).flatten()

    def values(self, scan: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Return the voxels at `x`, `y`, `z`, each `(..., n)`, of scans `(...,)`, as float32 `(..., n, n, n)`; 0 outside."""
        shape, index = self.shapes[scan], self.starts[scan][..., None, None, None]
        inside = torch.ones((), dtype=torch.bool, device=self.device)
        for axis, place in enumerate((x, y, z)):
            length = shape[..., axis, None]
            view = [*place.shape[:-1], *(place.shape[-1] if k == axis else 1 for k in range(3))]
            step = shape[..., axis + 1 :].prod(-1)[..., None]
            index = index + (place.clamp_min(0).minimum(length - 1) * step).view(view)
            within = ((place >= 0) & (place < length)).view(view)
            inside = inside & within
        return self.voxels[index].float() * inside

    def crops(self, draws: Draws, run: Run, crops: Crops) -> tuple[Tensor, Tensor, Tensor]:
        """Return crops `(B, count, S, S, S)`, their spacing `(B,)` in mm and the scan of each sample `(B,)`."""
        scan = draws.integers(self.count)
        spacing = run.views.spacing_at(draws.uniform(), run.preprocess.spacing_mm)
        size = (run.crop * spacing / run.preprocess.spacing_mm).round().long().clamp_min(2)
        wanted = draws.chance(crops.in_lung)
        start, cubes = None, []
        for _ in range(crops.count):
            if start is None or not crops.twins:
                start = self.start(scan, size, draws, wanted, lung_values(run.preprocess))
            corner, edge = start, size
            if crops.twins:
                edge = (size * run.views.zoom ** draws.uniform(-1.0, 1.0)).round().long().clamp_min(2)
                drift = draws.uniform(-run.views.shift / 2, run.views.shift / 2, 3)
                corner = (start + drift * size[:, None] + (size - edge)[:, None] / 2).round().long()
            place = corner[..., None] + torch.arange(int(edge.max()), device=self.device)
            cubes.append(resample(self.values(scan, *place.unbind(1)), edge, run.crop))
        return torch.stack(cubes, 1), spacing, scan

    def start(self, scan: Tensor, size: Tensor, draws: Draws, wanted: Tensor, lung: tuple) -> Tensor:
        """Draw corners `(B, 3)` of cubes that show lung where that is `wanted` and found, and are not mostly air."""
        room = (
            self.shapes[scan] - size[:, None]
        )  # negative where a scan is smaller than the cube: centred then
        share = draws.uniform(0.0, 1.0, TRIES, 3)
        tries = (share * (room.clamp_min(0) + 1)[:, None]).long() + (room.clamp_max(0) // 2)[:, None]
        steps = (torch.arange(LATTICE, device=self.device) + 0.5) / LATTICE
        place = tries[..., None] + (steps * size[:, None]).long()[:, None, None]
        seen = self.values(scan[:, None].expand(-1, TRIES), *place.unbind(2)).flatten(2)
        score = (seen > 0).float().mean(2).clamp_max(TISSUE)
        if lung:
            found = ((seen > lung[0]) & (seen < lung[1])).float().mean(2) > LUNG
            score = score + (found & wanted[:, None])
        best = score.argmax(1)  # all good ones are alike, and in random order
        return tries[torch.arange(len(tries), device=self.device), best]


def resident_batches(
    corpus: Corpus,
    task: Any,
    run: Run,
    device: torch.device,
    *,
    first: int,
    last: int,
    rank: int,
    at_once: int = AT_ONCE,
) -> Iterator[Batch]:
    """Yield the batches of steps `first` to `last`, `run.accumulate` for each; the same whenever they are asked for.

    A GPU draws about `at_once` samples together: the many small operations cost it the same for 8 as for a thousand. Of
    crops above 64 voxels it draws as many voxels.
    """
    at_once = min(at_once, at_once * 64**3 // run.crop**3)
    scans, crops = Resident(corpus, device), crops_for(task)
    together = max(1, at_once // run.batch) if device.type != "cpu" else 1  # batches
    count = together * run.batch
    numbers = range(first * run.accumulate, last * run.accumulate)
    if not numbers:
        return
    for block in range(numbers[0] // together, numbers[-1] // together + 1):
        state = np.random.SeedSequence([run.seed, block, rank]).generate_state(1 + count, np.uint64)
        seeds = torch.from_numpy((state >> np.uint64(24)).astype(np.int64))
        draws = Draws.of_batch(count, int(seeds[0]), device)
        with torch.no_grad():
            cubes, spacing, scan = scans.crops(draws, run, crops)
            views = compose(task, cubes, spacing, how=run.views, preprocess=run.preprocess, draws=draws)
        parts = (x.split(run.batch) for x in (*views, seeds[1:], scans.patients[scan]))
        for place, (*some, own, patients) in enumerate(zip(*parts, strict=True)):
            if block * together + place in numbers:
                yield Batch(tuple(some), own, patients)
