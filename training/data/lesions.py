"""Paste synthetic lesions into crops of unlabelled scans. torch only, whole batches at once.

The idea is that of the label-free liver tumours of Hu et al. (arXiv 2303.14869), with shapes for the lung too: lobulated
and spiculated, solid, part-solid and ground-glass, some with a cavity or a necrotic core. What lies around decides: a
lesion in the lung ends at the pleura, one in soft tissue at bone, gas and the skin.
"""

import torch
from torch import Tensor

from training.data.axes import along, blur, each, mean_over, smooth_noise
from training.data.draws import Draws

OUTSIDE_HU = -990.0
LUNG_HU = (-980.0, -500.0)
SOFT_HU = (-200.0, 300.0)  # a lesion in soft tissue changes these voxels only
RADIUS_MM = (2.5, 25.0)
REACH = 2.2  # times its radius, a lesion with its spikes ends
SPIKES = (4, 15)


def paste(hu: Tensor, spacing_mm: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Paste one lesion into each crop.

    Args:
        hu: `(B, S, S, S)` in HU.
        spacing_mm: size of a voxel of each crop `(B,)` in mm.
        draws: random numbers.

    Returns:
        The new crops, and boolean masks of the lesions; a mask is empty where the crop holds only air and bone.
    """
    size = hu.shape[-1]
    centre, in_lung, found = _place(hu, spacing_mm, draws)
    largest = (0.4 * spacing_mm * size).clamp_max(RADIUS_MM[1])
    radius = RADIUS_MM[0] * (largest / RADIUS_MM[0]).clamp_min(1.01) ** (
        draws.uniform() ** 0.7
    )  # rather large than small
    depth, share = _shape(size, centre, radius, spacing_mm, draws, spiculated=in_lung)
    free, changed = torch.zeros_like(hu, dtype=torch.bool), hu.clone()
    for chosen in (torch.nonzero(in_lung & found)[:, 0], torch.nonzero(~in_lung & found)[:, 0]):
        if len(chosen):
            one, deep, far, size_mm = hu[chosen], depth[chosen], share[chosen], radius[chosen]
            own = draws.some(chosen)
            if in_lung[chosen[0]]:
                free[chosen] = ~_thick_tissue(one, spacing_mm[chosen])
                changed[chosen] = _in_lung(one, deep, far, size_mm, own)
            else:
                free[chosen] = (one > SOFT_HU[0]) & (one < SOFT_HU[1])
                changed[chosen] = _in_soft_tissue(one, deep, far, size_mm, centre[chosen], own)
    return torch.where(free & (share < REACH + 2), changed, hu), free & (depth > 0)


def _place(hu: Tensor, spacing_mm: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a voxel for the centre, in lung or in soft tissue, whichever is there; half of those in the lung lie near
    tissue.

    Returns voxels `(B, 3)`, whether they lie in the lung `(B,)` and whether there is such a voxel at all `(B,)`.
    """
    size = hu.shape[-1]
    smooth = along(hu, mean_over(3, size, hu))
    outside = along((hu < OUTSIDE_HU).float(), mean_over(7, size, hu)) > 0.2  # skin is no lung
    place = torch.arange(size, device=hu.device)
    margin = max(1, size // 8)
    within = (place >= margin) & (place < size - margin)
    inner = within[:, None, None] & within[:, None] & within
    lung = (smooth > LUNG_HU[0]) & (smooth < LUNG_HU[1]) & ~outside & inner
    soft = (smooth > -20) & (smooth < 180) & inner
    some_soft = soft.flatten(1).any(1)
    in_lung = (lung.flatten(1).float().mean(1) > 0.03) & (draws.chance(0.8) | ~some_soft)
    reach = _odd(10 / spacing_mm)
    near = lung & (along((hu > -300).float(), mean_over(reach, size, hu)) > 0.15)
    prefer_near = draws.chance(0.5) & near.flatten(1).any(1)
    lung = torch.where(each(prefer_near), near, lung)
    candidates = torch.where(each(in_lung), lung, soft).flatten(1)
    scores = draws.uniform(0.0, 1.0, size**3) * candidates
    best = scores.argmax(1)
    centre = torch.stack([best // size**2, best // size % size, best % size], 1)
    return centre, in_lung, candidates.any(1)


def _shape(
    size: int, centre: Tensor, radius: Tensor, spacing_mm: Tensor, draws: Draws, *, spiculated: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a lobulated, perhaps spiculated ellipsoid.

    Returns the depth below its surface in mm (negative outside) and the distance from the centre as a share of the
    radius.
    """
    place = torch.arange(size, device=centre.device)
    x, y, z = ((place - centre[:, axis, None]) * spacing_mm[:, None] for axis in range(3))
    axes = torch.exp(0.22 * draws.normal(3))
    axes = axes / axes.prod(1, keepdim=True) ** (1 / 3)
    turn = draws.rotation() / (radius[:, None] * axes)[:, :, None]
    turned = [
        each(turn[:, i, 0]) * x[:, :, None, None]
        + each(turn[:, i, 1]) * y[:, None, :, None]
        + each(turn[:, i, 2]) * z[:, None, None, :]
        for i in range(3)
    ]
    share = (turned[0] ** 2 + turned[1] ** 2 + turned[2] ** 2).sqrt()
    surface = 1 + each(draws.uniform(0.05, 0.4)) * smooth_noise(size, radius / spacing_mm, draws, finest=1.5)
    spiky = torch.nonzero(spiculated & draws.chance(0.5))[:, 0]
    if len(spiky):
        directions = torch.stack([t[spiky] for t in turned], 1) / share[spiky].clamp_min(1e-3)[:, None]
        surface[spiky] += _spikes(directions, draws.some(spiky))
    return (surface.clamp_max(REACH) - share) * each(radius), share


def _spikes(directions: Tensor, draws: Draws) -> Tensor:
    """Return how far the surface is drawn out along each of the unit `directions` `(B, 3, S, S, S)`."""
    count = SPIKES[0] + draws.integers(SPIKES[1] - SPIKES[0] + 1)
    flat, total = directions.flatten(2), torch.zeros_like(directions[:, 0])
    for number in range(SPIKES[1]):
        axis = torch.nn.functional.normalize(draws.normal(3), dim=1)
        length = draws.uniform(0.2, 0.9) * (count > number)
        bend = draws.uniform(30.0, 120.0) / 8
        cosine = torch.bmm(axis[:, None], flat).view_as(total)
        spike = (1 + each(bend) * (cosine - 1)).clamp_min_(0)  # its 8th power: about exp(8 bend (cosine - 1))
        for _ in range(3):
            spike = spike.mul_(spike)
        total = torch.maximum(total, each(length) * spike)
    return total


def _thick_tissue(hu: Tensor, spacing_mm: Tensor) -> Tensor:
    """Return where the chest wall, the mediastinum or another organ is, but not vessels and airways."""
    tissue = hu > -300
    return tissue & (along(tissue.float(), mean_over(_odd(9 / spacing_mm), hu.shape[-1], hu)) > 0.6)


def _in_lung(hu: Tensor, depth: Tensor, share: Tensor, radius: Tensor, draws: Draws) -> Tensor:
    """Return the HU of crops with a lesion of the lung."""
    size = hu.shape[-1]
    kind = draws.choose((0.7, 0.2, 0.1))  # solid, part-solid, ground-glass
    solid = _texture(size, 25 + 25 * draws.normal(), draws)
    border = each(draws.uniform(0.3, 1.2))
    sharp = torch.sigmoid(depth / border)
    haze = each(draws.uniform(0.2, 0.6)) + 0.1 * _patches(size, 3, draws)
    haze = haze.clamp(0.1, 0.8) * torch.sigmoid(depth / each(draws.uniform(0.6, 2.0)))
    core = each(draws.uniform(0.3, 0.7)) + 0.2 * _patches(size, 4, draws)
    nodule = torch.minimum(depth, (core - share) * each(radius))
    mixed = torch.maximum(haze, torch.sigmoid(nodule / border))
    opacity = torch.where(each(kind == 0), sharp, torch.where(each(kind == 1), mixed, haze))
    hole = each(draws.uniform(0.25, 0.65)) + 0.15 * _patches(size, 4, draws)
    cavity = each((radius > 6) & draws.chance(0.1))
    gas = torch.sigmoid((hole - share) * each(radius) / border) * cavity
    solid = solid + (each(draws.uniform(-950.0, -800.0)) - solid) * gas
    solid = _necrosis(solid, share, radius, draws)
    changed = hu + (solid - hu) * opacity
    through = each((kind != 0) | draws.chance(0.3))  # vessels show
    return torch.where(through, torch.maximum(changed, hu), changed)


def _in_soft_tissue(
    hu: Tensor, depth: Tensor, share: Tensor, radius: Tensor, centre: Tensor, draws: Draws
) -> Tensor:
    """Return the HU of crops with a lesion of soft tissue: a little denser or less dense than its surroundings."""
    size = hu.shape[-1]
    x, y, z = centre.unbind(1)
    around = along(hu, mean_over(5, size, hu))[torch.arange(len(hu), device=hu.device), x, y, z]
    contrast = draws.uniform(15.0, 60.0) * torch.where(draws.chance(0.5), 1.0, -1.0)
    lesion = _necrosis(_texture(size, around + contrast, draws, low=5.0), share, radius, draws)
    opacity = each(draws.uniform(0.7, 1.0)) * torch.sigmoid(depth / each(draws.uniform(0.4, 2.0)))
    return hu + (lesion - hu) * opacity


def _texture(size: int, mean: Tensor, draws: Draws, *, low: float = 10.0) -> Tensor:
    """Return HU around a mean `(B,)`: patches, and noise as of a scanner."""
    coarse = each(draws.uniform(0.0, 20.0)) * smooth_noise(size, draws.uniform(3.0, 8.0), draws)
    fine = along(draws.normal(size, size, size), blur(draws.uniform(0.3, 0.9), size))
    fine = fine / each(fine.flatten(1).std(1))
    return each(mean) + coarse + each(draws.uniform(low, 40.0)) * fine


def _necrosis(lesion: Tensor, share: Tensor, radius: Tensor, draws: Draws) -> Tensor:
    core = each(draws.uniform(0.4, 0.8)) + 0.2 * _patches(lesion.shape[-1], 5, draws)
    drop = draws.uniform(10.0, 40.0) * ((radius >= 8) & draws.chance(0.25))
    return lesion - each(drop) * torch.sigmoid((core - share) * each(radius))


def _patches(size: int, scale: float, draws: Draws) -> Tensor:
    return smooth_noise(size, torch.full((draws.count,), scale, device=draws.device), draws)


def _odd(voxels: Tensor) -> Tensor:
    """Return odd whole numbers, at least 3."""
    return (voxels.round().long() | 1).clamp_min(3)
