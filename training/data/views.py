"""Turn crops of prepared scans into the views of a task.

`crops_of` takes crops out of one scan (numpy, in the loader's processes; `training.data.resident` does the same on a
device), `compose` mirrors and changes a whole batch of them (torch, on any device).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctssl.sampling import crop_at, random_start, tissue_start
from ctssl.zoo import Preprocess
from training.data.axes import along, blur, boxes_at, each, mean_over, resample
from training.data.draws import Draws
from training.data.lesions import LUNG_HU

LUNG = 0.2  # share of lung in a crop that shows the lung
TRIES = 12  # corners that are drawn before a crop may show no lung


@dataclass(frozen=True)
class Views:
    """How crops become views. A task with one view gets the mirrored crop; a task with two gets two of these.

    Attributes:
        shift: largest distance between the views' corners, as a share of the crop.
        zoom: views show a cube up to this much larger or smaller.
        intensity: largest scaling and shift of the values (0..1).
        gamma: largest exponent.
        noise: largest standard deviation (0..1).
        blur: largest sigma in voxels.
        holes: number of boxes that are set to one value.
        spacing: range of the spacing in mm that is drawn for each sample; None keeps that of the corpus.
        thick: largest slice thickness, in voxels; half of the samples are blurred along one axis up to it.
    """

    shift: float = 0.25
    zoom: float = 1.25
    intensity: float = 0.15
    gamma: float = 1.4
    noise: float = 0.04
    blur: float = 1.0
    holes: int = 0
    spacing: tuple[float, float] | None = None
    thick: float = 1.0

    def spacing_at(self, share: Any, own: float) -> Any:
        """Return the spacing of a sample in mm for a uniform number, or a tensor of them; `own` is that of the corpus."""
        if self.spacing is None:
            return own + 0 * share
        low, high = self.spacing
        return low * (high / low) ** share


@dataclass(frozen=True)
class Crops:
    """The crops that a task needs of each sample.

    Attributes:
        count: how many.
        twins: they show about the same place, each at a zoom of its own; else each is drawn for itself.
        in_lung: share of the samples that are looked for in the lung.
    """

    count: int = 1
    twins: bool = False
    in_lung: float = 0.0


def crops_for(task: Any) -> Crops:
    """Return what a task needs: its `crops`, or those of its number of `views`."""
    views = getattr(task, "views", 1)
    return getattr(task, "crops", Crops(views, twins=views > 1))


def crops_of(
    scan: np.ndarray, *, crop: int, crops: Crops, how: Views, preprocess: Preprocess, seed: int
) -> tuple[Tensor, float]:
    """Return crops `(count, S, S, S)` float32 0..1 of a prepared scan `(X, Y, Z)`, and their spacing in mm."""
    rng = np.random.default_rng(seed)
    spacing = how.spacing_at(rng.random(), preprocess.spacing_mm)
    size = max(2, round(crop * spacing / preprocess.spacing_mm))
    wanted = rng.random() < crops.in_lung
    start: tuple[int, ...] = ()
    cubes = []
    for number in range(crops.count):
        if number == 0 or not crops.twins:
            start = lung_start(scan, size, preprocess, rng, wanted=wanted)
        corner, edge = start, size
        if crops.twins:
            edge = max(2, round(size * how.zoom ** rng.uniform(-1, 1)))
            drift = rng.uniform(-how.shift / 2, how.shift / 2, 3) * size + (size - edge) / 2
            corner = tuple(round(float(s + d)) for s, d in zip(start, drift, strict=True))
        cube = torch.from_numpy(crop_at(scan, corner, edge).astype(np.float32))
        cubes.append(resample(cube[None], torch.tensor([edge]), crop)[0] if edge != crop else cube)
    return torch.stack(cubes), float(spacing)


def lung_start(
    scan: np.ndarray,
    size: int,
    preprocess: Preprocess,
    rng: np.random.Generator,
    *,
    wanted: bool,
) -> tuple[int, ...]:
    """Draw a corner whose crop shows lung, if that is `wanted` and the scan has any; else `tissue_start`."""
    bounds = lung_values(preprocess)
    if wanted and bounds:
        for _ in range(TRIES):
            start = random_start(scan.shape, size, rng)
            values = crop_at(scan, start, size)[::4, ::4, ::4]
            if ((values > bounds[0]) & (values < bounds[1])).mean() > LUNG:
                return start
    return tissue_start(scan, size, rng)


def lung_values(preprocess: Preprocess) -> tuple[float, ...]:
    """Return the values 0..1 between which the lung lies; nothing if the window does not show it."""
    low, high = preprocess.window_hu
    return tuple((hu - low) / (high - low) for hu in LUNG_HU) if low < LUNG_HU[1] else ()


def compose(
    task: Any, crops: Tensor, spacing_mm: Tensor, *, how: Views, preprocess: Preprocess, draws: Draws
) -> tuple[Tensor, ...]:
    """Return the views of a batch, each `(B, 1, S, S, S)`: what the task's own `compose` makes of its crops, else
    mirrored crops, changed where there are several.

    Args:
        task: the task.
        crops: `(B, count, S, S, S)` in 0..1.
        spacing_mm: `(B,)`.
        how: how crops become views.
        preprocess: the HU window.
        draws: random numbers.
    """
    if hasattr(task, "compose"):
        views = task.compose(crops, spacing_mm, how=how, preprocess=preprocess, draws=draws)
    else:
        views = views_of(crops, how, draws)
    return tuple(view[:, None] for view in views)


def views_of(crops: Tensor, how: Views, draws: Draws) -> list[Tensor]:
    """Return the views `(B, S, S, S)` of crops `(B, count, S, S, S)`: mirrored, and changed where there are several."""
    if crops.shape[1] == 1:
        return mirror([crops[:, 0]], draws)
    return [change(crop, None, how, draws)[0] for crop in crops.unbind(1)]


def change(image: Tensor, labels: Tensor | None, how: Views, draws: Draws) -> tuple[Tensor, Any]:
    """Mirror images `(B, S, S, S)` 0..1 (and their labels alike, if there are any), blur them, and change their values."""
    size = image.shape[-1]
    if how.thick > 1:
        width = torch.where(draws.chance(0.5), draws.uniform(1.0, how.thick).round().long(), 1)
        axis = draws.integers(3)
        image = along(image, *(mean_over(torch.where(axis == k, width, 1), size, image) for k in range(3)))
    image, *others = mirror([image] if labels is None else [image, labels], draws)
    if how.intensity:
        image = image * (1 + each(draws.uniform(-how.intensity, how.intensity)))
        image = (image + each(draws.uniform(-how.intensity, how.intensity))).clamp(0, 1)
    image = image.clamp_min(0) ** each(how.gamma ** draws.uniform(-1.0, 1.0))
    if how.blur:
        sigma = draws.uniform(0.0, how.blur) * draws.chance(0.5)
        image = along(image, blur(sigma, size))
    if how.noise:
        image = image + draws.normal(size, size, size) * each(draws.uniform(0.0, how.noise))
    for _ in range(how.holes):
        low = draws.integers(size * 3 // 4, 3)
        hole = boxes_at(low, torch.full_like(low, size // 4), size)
        image = torch.where(hole, each(draws.uniform()), image)
    return image.clamp(0, 1), others[0] if others else None


def mirror(volumes: list[Tensor], draws: Draws) -> list[Tensor]:
    """Mirror the samples of all `volumes` `(B, S, S, S)` alike, along random axes."""
    for axis in (1, 2, 3):
        flip = each(draws.chance(0.5))
        volumes = [torch.where(flip, volume.flip(axis), volume) for volume in volumes]
    return volumes
