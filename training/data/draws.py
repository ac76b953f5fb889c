"""Random numbers for the samples of a batch. torch only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Draws:
    """Draw one row of random numbers for each sample of a batch.

    `Draws.of_samples(seeds)` gives every sample its own generator: what a sample gets does not depend on the batch it is
    in. `Draws.of_batch(count, seed, device)` draws for all of them at once, on their device.
    """

    def __init__(self, generators: list[torch.Generator], count: int, device: torch.device) -> None:
        self.generators, self.count, self.device = generators, count, device

    @classmethod
    def of_samples(cls, seeds: list[int]) -> Draws:
        """Return generators on the CPU, one for each seed."""
        return cls([torch.Generator().manual_seed(seed) for seed in seeds], len(seeds), torch.device("cpu"))

    @classmethod
    def of_batch(cls, count: int, seed: int, device: torch.device) -> Draws:
        """Return one generator for `count` samples."""
        return cls([torch.Generator(device).manual_seed(seed)], count, device)

    def some(self, chosen: Tensor) -> Draws:
        """Return the draws for the samples of the indices `chosen` alone."""
        generators = self.generators
        if len(generators) == self.count:
            generators = [generators[i] for i in chosen.tolist()]
        return Draws(generators, len(chosen), self.device)

    def uniform(self, low: float | Tensor = 0.0, high: float | Tensor = 1.0, *shape: int) -> Tensor:
        """Return `(B, *shape)` uniform numbers; `low` and `high` may be tensors `(B,)`."""
        numbers = self._rows(torch.rand, shape)
        low, high = (_spread(x, numbers) if isinstance(x, Tensor) else x for x in (low, high))
        return low + (high - low) * numbers

    def normal(self, *shape: int) -> Tensor:
        """Return `(B, *shape)` standard normal numbers."""
        return self._rows(torch.randn, shape)

    def chance(self, share: float) -> Tensor:
        """Return `(B,)`, each True with the probability `share`."""
        return self._rows(torch.rand, ()) < share

    def choose(self, shares: tuple[float, ...]) -> Tensor:
        """Return `(B,)` indices; `shares`, which sum to 1, say how often each one comes."""
        edges = torch.tensor(shares[:-1], device=self.device).cumsum(0)
        return (self._rows(torch.rand, ())[:, None] >= edges).sum(1)

    def integers(self, count: int | Tensor, *shape: int) -> Tensor:
        """Return `(B, *shape)` whole numbers from 0 to below `count`, a number or a tensor `(B,)`."""
        return self.uniform(0.0, count, *shape).long().clamp_max(_top(count, len(shape)))

    def rotation(self) -> Tensor:
        """Return `(B, 3, 3)` rotations, uniformly distributed (from unit quaternions)."""
        w, x, y, z = torch.nn.functional.normalize(self.normal(4), dim=1).unbind(1)
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    def _rows(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        if len(self.generators) == 1 or not self.count:
            return draw((self.count, *shape), generator=next(iter(self.generators), None), device=self.device)
        return torch.stack([draw(shape, generator=one) for one in self.generators])


def _spread(x: Tensor, like: Tensor) -> Tensor:
    return x.view(-1, *[1] * (like.ndim - 1))


def _top(count: int | Tensor, dims: int) -> int | Tensor:
    return (count - 1).view(-1, *[1] * dims) if isinstance(count, Tensor) else count - 1
