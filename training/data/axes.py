"""Change crops by one matrix along each axis: resampling, means, blur, smooth noise. torch only.

Every sample of a batch has its own matrices, so that one call serves crops of different spacing.
"""

import torch
from torch import Tensor

from training.data.draws import Draws


def along(volumes: Tensor, *weights: Tensor | None) -> Tensor:
    """Multiply volumes `(B, X, Y, Z)` by weights `(B, S, n)` along each axis; one for all axes, or three (None: as
    it is).
    """
    first, second, third = weights * 3 if len(weights) == 1 else weights
    if first is not None:
        volumes = torch.einsum("bsx,bxyz->bsyz", first, volumes)
    if second is not None:
        volumes = torch.einsum("bsy,bxyz->bxsz", second, volumes)
    if third is not None:
        volumes = torch.einsum("bsz,bxyz->bxys", third, volumes)
    return volumes


def resample(cubes: Tensor, edges: Tensor, size: int) -> Tensor:
    """Resample cubes `(B, E, E, E)`, of which the first `edges` `(B,)` voxels count, to `(B, size, size, size)`.

    Linear; averages where the grid gets coarser.
    """
    edge, place = edges[:, None].float(), torch.arange(size, device=cubes.device)[None]
    fine = edge <= size
    where = torch.where(fine, place * (edge - 1) / max(1, size - 1), (place + 0.5) * edge / size - 0.5)
    reach = torch.where(fine, torch.ones_like(edge), edge / size)
    voxel = torch.arange(cubes.shape[-1], device=cubes.device)
    weights = (1 - (where[..., None] - voxel).abs() / reach[..., None]).clamp_min(0)
    weights = weights * (voxel < edge[..., None])
    return along(cubes, weights / weights.sum(2, keepdim=True))


def mean_over(voxels: Tensor | int, size: int, like: Tensor) -> Tensor:
    """Return the weights `(B, size, size)` of a moving mean over an odd number of `voxels` `(B,)`; the border shortens it."""
    width = torch.as_tensor(voxels, device=like.device).expand(len(like))
    near = _distance(size, like) <= (width // 2)[:, None, None]
    return near / near.sum(2, keepdim=True)


def blur(sigma: Tensor, size: int) -> Tensor:
    """Return the weights `(B, size, size)` of a Gaussian with `sigma` `(B,)` in voxels."""
    near = torch.exp(-0.5 * (_distance(size, sigma) / sigma.clamp_min(0.05)[:, None, None]) ** 2)
    return near / near.sum(2, keepdim=True)


def smooth_noise(size: int, scale: Tensor, draws: Draws, *, finest: float = 3.0) -> Tensor:
    """Return random patches of about `scale` `(B,)` voxels, at least `finest`, with mean 0 and standard deviation about 1.

    The result is `(B, size, size, size)`.
    """
    knots = int(size / finest) + 3
    place = torch.arange(size, device=scale.device) / scale.clamp_min(finest)[:, None]
    low = place.floor()
    t = place - low
    t = (t * t * (3 - 2 * t))[..., None]
    knot = torch.arange(knots, device=scale.device)
    weights = (knot == low[..., None]) * (1 - t) + (knot == low[..., None] + 1) * t
    return along(draws.normal(knots, knots, knots) * 1.6, weights)  # interpolation lowers the deviation


def each(values: Tensor) -> Tensor:
    """Turn one value for each sample, `(B,)`, into `(B, 1, 1, 1)`."""
    return values[:, None, None, None]


def boxes_at(corner: Tensor, sides: Tensor, size: int) -> Tensor:
    """Return where a box lies in each sample, `(B, size, size, size)`, from its corner and sides, both `(B, 3)`."""
    place = torch.arange(size, device=corner.device)
    x, y, z = ((place >= corner[:, k, None]) & (place < (corner + sides)[:, k, None]) for k in range(3))
    return x[:, :, None, None] & y[:, None, :, None] & z[:, None, None, :]


def _distance(size: int, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device)
    return (place[:, None] - place[None]).abs()[None]
