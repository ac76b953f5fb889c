"""Paste synthetic lesions into crops of unlabelled scans. numpy and scipy only.

The idea is that of the label-free liver tumours of Hu et al. (arXiv 2303.14869), with shapes for the lung too: lobulated
and spiculated, solid, part-solid and ground-glass, some with a cavity or a necrotic core. What lies around decides: a
lesion in the lung ends at the pleura, one in soft tissue at bone, gas and the skin.
"""

import numpy as np
from scipy import ndimage, special

OUTSIDE_HU = -990.0
LUNG_HU = (-980.0, -500.0)
SOFT_HU = (-200.0, 300.0)  # a lesion in soft tissue changes these voxels only
RADIUS_MM = (2.5, 25.0)
REACH = 2.2  # times its radius, a lesion with its spikes ends


def paste(hu: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paste one lesion into a crop.

    Args:
        hu: `(X, Y, Z)` float32 in HU.
        spacing_mm: size of a voxel in mm.
        rng: random generator.

    Returns:
        The new crop, and a boolean mask of the lesion; the mask is empty where the crop holds only air and bone.
    """
    centre, in_lung = _place(hu, spacing_mm, rng)
    mask = np.zeros(hu.shape, bool)
    if centre is None:
        return hu, mask
    largest = min(RADIUS_MM[1], 0.4 * spacing_mm * min(hu.shape))
    radius = (
        RADIUS_MM[0] * max(1.01, largest / RADIUS_MM[0]) ** rng.random() ** 0.7
    )  # rather large than small
    reach = int(np.ceil(REACH * radius / spacing_mm)) + 2
    box = tuple(
        slice(max(0, c - reach), min(n, c + reach + 1)) for c, n in zip(centre, hu.shape, strict=True)
    )
    middle = tuple(c - part.start for c, part in zip(centre, box, strict=True))
    free = ~_thick_tissue(hu, spacing_mm) if in_lung else (hu > SOFT_HU[0]) & (hu < SOFT_HU[1])
    part, free = hu[box], free[box]
    depth, share = _shape(part.shape, middle, radius, spacing_mm, rng, spiculated=in_lung)
    if in_lung:
        changed = _in_lung(part, depth, share, radius, rng)
    else:
        changed = _in_soft_tissue(part, depth, share, radius, middle, rng)
    result = hu.copy()
    result[box] = np.where(free, changed, part)
    mask[box] = (depth > 0) & free
    return result, mask


def _place(
    hu: np.ndarray, spacing_mm: float, rng: np.random.Generator
) -> tuple[tuple[int, ...] | None, bool]:
    """Draw a voxel for the centre, in lung or in soft tissue, whichever is there; half of those in the lung lie near
    tissue.
    """
    margin = max(1, min(hu.shape) // 8)
    inner = tuple(slice(margin, n - margin) for n in hu.shape)
    lung = np.zeros(hu.shape, bool)
    smooth = ndimage.uniform_filter(hu, 3)
    outside = ndimage.uniform_filter((hu < OUTSIDE_HU).astype(np.float32), 7) > 0.2  # skin is no lung
    lung[inner] = ((smooth > LUNG_HU[0]) & (smooth < LUNG_HU[1]) & ~outside)[inner]
    soft = np.zeros(hu.shape, bool)
    soft[inner] = (smooth[inner] > -20) & (smooth[inner] < 180)
    in_lung = lung.sum() > 0.03 * hu.size and (rng.random() < 0.8 or not soft.any())
    candidates = lung if in_lung else soft
    if in_lung and rng.random() < 0.5:
        reach = max(3, round(10 / spacing_mm) | 1)
        near = lung & (ndimage.uniform_filter((hu > -300).astype(np.float32), reach) > 0.15)
        candidates = near if near.any() else lung
    places = np.flatnonzero(candidates)
    if not len(places):
        return None, in_lung
    return tuple(int(i) for i in np.unravel_index(places[rng.integers(len(places))], hu.shape)), in_lung


def _shape(
    shape: tuple[int, ...],
    centre: tuple[int, ...],
    radius: float,
    spacing_mm: float,
    rng: np.random.Generator,
    *,
    spiculated: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a lobulated, perhaps spiculated ellipsoid.

    Returns the depth below its surface in mm (negative outside) and the distance from the centre as a share of the
    radius.
    """
    places = ((np.arange(n, dtype=np.float32) - c) * spacing_mm for n, c in zip(shape, centre, strict=True))
    offsets = np.stack(np.meshgrid(*places, indexing="ij"))
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0].astype(np.float32)
    axes = np.exp(rng.normal(0, 0.22, 3)).astype(np.float32)
    axes /= np.prod(axes) ** (1 / 3)
    turned = np.tensordot(turn / (np.float32(radius) * axes)[:, None], offsets, 1)
    share = np.sqrt((turned**2).sum(0))
    surface = 1 + rng.uniform(0.05, 0.4) * smooth_noise(shape, max(1.5, radius / spacing_mm), rng)
    if spiculated and rng.random() < 0.5:
        surface = surface + _spikes(turned / np.maximum(share, 1e-3), rng)
    return (np.minimum(surface, REACH) - share) * radius, share


def _spikes(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how far the surface is drawn out along each of the unit `directions` `(3, X, Y, Z)`."""
    total = np.zeros(directions.shape[1:], np.float32)
    for _ in range(rng.integers(4, 16)):
        axis = rng.standard_normal(3, dtype=np.float32)
        cosine = np.tensordot(axis / np.linalg.norm(axis), directions, 1)
        length, sharpness = np.float32(rng.uniform(0.2, 0.9)), np.float32(rng.uniform(30, 120))
        np.maximum(total, length * np.exp(sharpness * (cosine - 1)), out=total)
    return total


def _thick_tissue(hu: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return where the chest wall, the mediastinum or another organ is, but not vessels and airways."""
    tissue = hu > -300
    reach = max(3, round(9 / spacing_mm) | 1)
    return tissue & (ndimage.uniform_filter(tissue.astype(np.float32), reach, mode="nearest") > 0.6)


def _in_lung(
    hu: np.ndarray, depth: np.ndarray, share: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the HU of a crop with a lesion of the lung."""
    kind = rng.choice(["solid", "part-solid", "ground-glass"], p=[0.7, 0.2, 0.1])
    solid = _texture(hu.shape, rng.normal(25, 25), rng)
    border = rng.uniform(0.3, 1.2)
    if kind == "solid":
        opacity = _sigmoid(depth / border)
    else:
        haze = rng.uniform(0.2, 0.6) + 0.1 * smooth_noise(hu.shape, 3, rng)
        opacity = np.clip(haze, 0.1, 0.8) * _sigmoid(depth / rng.uniform(0.6, 2.0))
        if kind == "part-solid":
            core = rng.uniform(0.3, 0.7) + 0.2 * smooth_noise(hu.shape, 4, rng)
            nodule = np.minimum(depth, (core - share) * radius)
            opacity = np.maximum(opacity, _sigmoid(nodule / border))
    if radius > 6 and rng.random() < 0.1:  # a cavity
        hole = rng.uniform(0.25, 0.65) + 0.15 * smooth_noise(hu.shape, 4, rng)
        solid = solid + (rng.uniform(-950, -800) - solid) * _sigmoid((hole - share) * radius / border)
    solid = _necrosis(solid, share, radius, rng)
    changed = hu + (solid - hu) * opacity
    return np.maximum(changed, hu) if kind != "solid" or rng.random() < 0.3 else changed  # vessels show


def _in_soft_tissue(
    hu: np.ndarray,
    depth: np.ndarray,
    share: np.ndarray,
    radius: float,
    centre: tuple[int, ...],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the HU of a crop with a lesion of soft tissue: a little denser or less dense than its surroundings."""
    around = tuple(slice(max(0, c - 2), c + 3) for c in centre)
    contrast = rng.choice([-1, 1]) * rng.uniform(15, 60)
    lesion = _texture(hu.shape, float(np.median(hu[around])) + contrast, rng, low=5)
    lesion = _necrosis(lesion, share, radius, rng)
    opacity = rng.uniform(0.7, 1.0) * _sigmoid(depth / rng.uniform(0.4, 2.0))
    return hu + (lesion - hu) * opacity


def _texture(shape: tuple[int, ...], mean: float, rng: np.random.Generator, *, low: float = 10) -> np.ndarray:
    """Return HU around a mean: patches, and noise as of a scanner."""
    coarse = rng.uniform(0, 20) * smooth_noise(shape, rng.uniform(3, 8), rng)
    fine = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), rng.uniform(0.3, 0.9))
    return mean + coarse + rng.uniform(low, 40) * fine / max(float(fine.std()), 1e-6)


def _necrosis(lesion: np.ndarray, share: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    if radius < 8 or rng.random() > 0.25:
        return lesion
    core = rng.uniform(0.4, 0.8) + 0.2 * smooth_noise(share.shape, 5, rng)
    return lesion - rng.uniform(10, 40) * _sigmoid((core - share) * radius)


def smooth_noise(shape: tuple[int, ...], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Return random patches of about `scale` voxels `shape`, with mean 0 and standard deviation about 1."""
    knots = [max(2, int(np.ceil(n / scale)) + 1) for n in shape]
    coarse = rng.standard_normal(knots, dtype=np.float32) * 1.6  # interpolation lowers the deviation
    for axis, n in enumerate(shape):
        coarse = np.moveaxis(np.tensordot(_rows(n, knots[axis]), coarse, (1, axis)), 0, axis)
    return coarse


def _rows(size: int, knots: int) -> np.ndarray:
    """Return `(size, knots)` weights of smooth interpolation between knots."""
    where = np.linspace(0, knots - 1, size)
    low = np.minimum(where.astype(int), knots - 2)
    t = where - low
    t = t * t * (3 - 2 * t)
    rows = np.zeros((size, knots), np.float32)
    rows[np.arange(size), low], rows[np.arange(size), low + 1] = 1 - t, t
    return rows


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return special.expit(np.asarray(x, np.float32))
