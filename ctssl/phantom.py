"""A synthetic chest CT with known HU and spacing, generated in a second. For demonstrations and tests."""

import numpy as np

from ctssl.volume.volume import AIR_HU, Volume

FAT, MUSCLE, LUNG, BLOOD, BONE, TUMOUR = -100.0, 45.0, -830.0, 150.0, 600.0, 35.0  # HU


def phantom(spacing_mm: float = 2.5, *, seed: int = 0, noise_hu: float = 12.0) -> tuple[Volume, Volume]:
    """Return a scan (HU) and its tumour mask: body, lungs, vessels, bones, one tumour in the left lung; 320 x
    240 x 240 mm.

    The tumour is a sphere of 18 mm radius centred at (70, 10, 10) mm, so its volume is known.

    Args:
        spacing_mm: isotropic voxel size in mm.
        seed: seed of the noise, the only random part.
        noise_hu: standard deviation of the noise in HU.

    >>> scan, tumour = phantom(8.0)
    >>> scan.shape
    (40, 30, 30)
    """
    shape = tuple(round(length / spacing_mm) for length in (320, 240, 240))
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * spacing_mm for n in shape]
    x, y, z = np.meshgrid(
        *[(np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape], indexing="ij", sparse=True
    )
    ct = np.full(shape, AIR_HU, np.float32)

    def fill(inside: np.ndarray, hu: float) -> None:
        ct[np.broadcast_to(inside, shape)] = hu

    def ellipsoid(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float) -> np.ndarray:
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1

    body = (x / 145) ** 2 + (y / 100) ** 2
    fill((body <= 1) & (z == z), FAT)
    fill((body <= 0.8) & (z == z), MUSCLE)
    for side in (-1, 1):
        fill(ellipsoid(side * 65, 5, 15, 52, 68, 98), LUNG)
        for k in range(-3, 4):  # branching vessels
            along = (side * (x - side * 22)).clip(0)
            radius = np.maximum(4.0 - along / 22, 1.2)
            centre_y, centre_z = 12.0 * k * along / 80, 14.0 * k
            tube = (y - 5 - centre_y) ** 2 + (z - 15 - centre_z) ** 2 <= radius**2
            fill(tube & (side * x > 22) & (side * x < 100) & ellipsoid(side * 65, 5, 15, 52, 68, 98), BLOOD)
    fill(ellipsoid(18, 20, -20, 44, 38, 45), MUSCLE)  # heart
    fill(ellipsoid(18, 20, -20, 30, 26, 32), BLOOD)
    fill(((x - 12) ** 2 + (y + 40) ** 2 <= 12**2) & (z == z), BLOOD)  # aorta
    fill((x**2 + (y + 68) ** 2 <= 16**2) & (np.mod(z, 26) < 22), BONE)  # vertebrae
    shell = (x / 122) ** 2 + (y / 84) ** 2
    fill((shell <= 1.06) & (shell >= 0.94) & (np.mod(z + 0.35 * np.abs(x), 28) < 9), BONE)  # ribs
    tumour = np.broadcast_to(ellipsoid(70, 10, 10, 18, 18, 18), shape)
    fill(tumour, TUMOUR)
    inside = np.broadcast_to(body <= 1, shape)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * noise_hu
    ct[inside] += noise[inside]
    return Volume(ct, affine, "phantom"), Volume(tumour.astype(np.uint8), affine, "phantom tumour")
