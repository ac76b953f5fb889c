"""The input of a task: crops, and randomness that belongs to the samples rather than to the process."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ctssl.encoders.layers import DropPath


@dataclass(frozen=True)
class Batch:
    """Some samples of a step.

    Attributes:
        views: one tensor `(B, 1, S, S, S)` in 0..1 for each view of the task.
        seeds: `(B,)`, a number that belongs to the sample, whichever process works on it.
        patients: `(B,)`, the same number for samples of the same patient.
        progress: finished share of the run, 0..1, for schedules.
    """

    views: tuple[Tensor, ...]
    seeds: Tensor
    patients: Tensor
    progress: float = 0.0

    @property
    def image(self) -> Tensor:
        return self.views[0]

    def __len__(self) -> int:
        return len(self.seeds)

    def random(self, *shape: int, salt: int) -> Tensor:
        """Return `(B, *shape)` uniform numbers in 0..1 that depend only on each sample's seed and `salt`."""
        rows = []
        for seed in self.seeds.tolist():
            generator = torch.Generator().manual_seed(seed * 1_000_003 + salt)
            rows.append(torch.rand(shape, generator=generator))
        return torch.stack(rows).to(self.image.device)

    def to(self, device: torch.device) -> "Batch":
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        return replace(self, views=views, seeds=self.seeds, patients=self.patients.to(device))


def seed_drop_path(encoder: nn.Module, batch: Batch, *, salt: int) -> None:
    """Make stochastic depth draw per sample too, for the next view."""
    layers = [module for module in encoder.modules() if isinstance(module, DropPath)]
    for i, layer in enumerate(layers):
        layer.drawn = batch.random(salt=salt + i) if layer.rate and layer.training else None
