"""Whole scans through a model: preparing, embedding, segmenting in windows, and back onto the scan's own grid."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctssl.files.atomic import apart, disk_is_full, write_whole
from ctssl.files.names import file_name, part_of_name
from ctssl.files.text import read_json
from ctssl.lint import check
from ctssl.volume.grids import prepare, resample, working_grid
from ctssl.volume.volume import Volume, read
from ctssl.zoo import Preprocess

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter

TILE = 96  # voxels along each side of a piece that goes through an encoder at once
MEMORY_GB = 8.0  # ceiling for a run of `segment`
LIBRARIES = 1.2e9  # bytes that Python, torch, MONAI and a model take before the first scan
ACTIVATIONS = 200  # numbers that a network holds for each voxel of a window, at most


def prepared(
    encoder: Any,
    source: Any,
    *,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
) -> Volume:
    """The checked scan on the grid and in the window that the encoder was trained on (or those given), 0..1; an encoder without
    spec takes the default."""
    known = encoder.spec.preprocess if encoder.spec else Preprocess()
    return prepare(
        check(read(source)), Preprocess(spacing_mm or known.spacing_mm, window_hu or known.window_hu)
    )


def preprocess(encoder: Any, source: Any) -> Tensor:
    """See `encoder.preprocess`."""
    return torch.from_numpy(prepared(encoder, source).array)[None, None]


def blocks_of(encoder: Any) -> Any:
    """The encoder, if it has features; nnU-Net's network has none."""
    if not hasattr(encoder, "forward_intermediates"):
        raise ValueError(
            "this model is one network without an encoder of ctssl (nnU-Net's, or one from elsewhere), so it has no "
            "features to embed or to compare; take one with a Swin or ViT, or `ctssl import` yours"
        )
    return encoder


@torch.inference_mode()
def feature_maps(encoder: Any, image: Tensor, *, progress: bool = False) -> list[Tensor]:
    """Every map `(channels[i], x, y, z)` of an image `(1, 1, X, Y, Z)` of any size, piece by piece if it is large.

    Pieces of 96 voxels overlap by a third; each place takes the piece in whose middle it lies.
    """
    from tqdm import tqdm

    stride = encoder.strides[-1]
    device = next(encoder.parameters()).device
    size = image.shape[2:]
    starts = [_starts(n, TILE, TILE * 2 // 3 // stride * stride) for n in size]
    maps = [
        torch.zeros(c, *[-(-n // s) for n in size])
        for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]
    training = encoder.training
    encoder.eval()
    pieces = list(itertools.product(*starts))
    for corner in tqdm(pieces, desc="encoding", disable=not progress or len(pieces) < 2):
        part = image[(..., *[slice(s, min(s + TILE, n)) for s, n in zip(corner, size, strict=True)])]
        for out, found, fine in zip(maps, encoder(part.to(device)), encoder.strides, strict=True):
            into, take = [], []
            for s, count in zip(corner, found.shape[2:], strict=True):
                skip = TILE // 6 // fine if s > 0 else 0  # the first sixth belongs to the piece before
                into.append(slice(s // fine + skip, s // fine + count))
                take.append(slice(skip, count))
            out[(slice(None), *into)] = found[(0, slice(None), *take)].float().cpu()
    encoder.train(training)
    return maps


def _starts(size: int, tile: int, step: int) -> list[int]:
    return [0] if size <= tile else list(range(0, size - tile + step, step))


def embed(encoder: Any, source: Any, *, progress: bool = False) -> Tensor:
    """See `encoder.embed`."""
    image = preprocess(blocks_of(encoder), source)
    features = feature_maps(encoder, image, progress=progress)[-1]
    stride = encoder.strides[-1]
    tissue = torch.nn.functional.max_pool3d(image, stride, ceil_mode=True)[0, 0] > 0
    chosen = features[:, tissue] if tissue.any() else features.flatten(1)
    vector = chosen.mean(1)
    if not torch.isfinite(vector).all():
        raise ValueError("the encoder gives NaN or infinite features for this scan; its weights are no use")
    return vector


def segment(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> Volume:
    """See `Segmenter.segment`."""
    volume = read(source)
    slices = plan(model, volume, max_memory_gb)
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    return replace(volume, array=onto(found, affine, volume, slices, threshold=model.threshold))


def probabilities(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> dict[str, Volume]:
    """See `Segmenter.probabilities`."""
    return mask_and_maps(
        model, source, overlap=overlap, tta=tta, max_memory_gb=max_memory_gb, progress=progress
    )[1]


def mask_and_maps(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> tuple[Volume, dict[str, Volume]]:
    """The mask of `segment` and the maps of `probabilities`, from one run."""
    volume = read(source)
    slices = plan(model, volume, max_memory_gb, maps=len(model.labels))
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    mask = replace(volume, array=onto(found, affine, volume, slices, threshold=model.threshold))
    return mask, {
        name: replace(
            volume,
            array=resample(found[k], affine, volume.shape, volume.affine),
            name=f"{volume.name} {name}",
        )
        for k, name in model.labels.items()
    }


def plan(model: Segmenter, volume: Volume, max_memory_gb: float, *, maps: int = 0) -> int:
    """Slices of the scan's last axis that the mask is brought back at a time, so that a run stays under `max_memory_gb`.

    `maps`: float volumes on the scan's grid that are kept too, with what makes a mask of them. Raises `ValueError` when one
    slice at a time does not fit.
    The mask does not depend on the ceiling.
    """
    own = math.prod(volume.shape)
    shape, _ = working_grid(volume, (model.spec.preprocess if model.spec else Preprocess()).spacing_mm)
    grid = [max(n, model.window) for n in shape]
    fixed = LIBRARIES + own * (4 + 1 + (4 * maps + 14 if maps else 0))  # the scan, the mask
    fixed += math.prod(grid) * (4 + 2 * model.classes)  # the image, probabilities
    fixed += (
        math.prod(grid[1:]) * model.window * 4 * model.classes + model.window**3 * 4 * ACTIVATIONS
    )  # the windows at work
    fixed += max(4 * own, 4 * math.prod(grid))  # a copy while the scan is resampled, or a class
    slice_ = math.prod(volume.shape[:2]) * 4 * 6
    room = int((max_memory_gb * 1e9 - fixed) // slice_)
    if room < 1:
        size = " x ".join(map(str, volume.shape))
        raise ValueError(
            f"{volume.name}: {size} voxels need about {(fixed + slice_) / 1e9:.1f} GB, more than the "
            f"{max_memory_gb:g} GB allowed; allow more (--max-memory), or cut the scan"
        )
    return min(room, volume.shape[2])


@torch.inference_mode()
def windowed(
    model: Segmenter, volume: Volume, *, overlap: float, tta: bool, progress: bool, skip_air: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(classes, x, y, z)` (float16) on the model's own grid, and its affine, blended from overlapping windows.

    Windows follow one another along x, and what no later window touches is finished: only a slab is held in float32. Windows
    of nothing but air cost nothing: the network's answer to one of them serves for all (`skip_air`).
    """
    from tqdm import tqdm

    scan = prepared(model.encoder, volume)
    size, side = scan.shape, model.window
    low = [(max(side - n, 0)) // 2 for n in size]
    image = np.pad(scan.array, [(a, max(side - n, 0) - a) for n, a in zip(size, low, strict=True)])
    starts = [_spread(n, side, overlap) for n in image.shape]
    bell = torch.from_numpy(gaussian(side))
    weight = bell[:, None, None] * bell[:, None] * bell
    totals = [_total(bell, places, n) for places, n in zip(starts, image.shape, strict=True)]
    device = next(model.parameters()).device
    training, air = model.training, None
    model.eval()
    result = np.zeros((model.classes, *image.shape), np.float16)
    slab = torch.zeros(model.classes, side, *image.shape[1:])
    bar = tqdm(total=math.prod(map(len, starts)), desc="segmenting", disable=not progress)
    for x, after in zip(starts[0], [*starts[0][1:], image.shape[0]], strict=True):
        for y, z in itertools.product(*starts[1:]):
            window = torch.from_numpy(image[x : x + side, y : y + side, z : z + side]).to(device)[None, None]
            empty = skip_air and not window.any()
            answer = (
                air
                if empty and air is not None
                else (mirrored(model, window) if tta else model(window))[0].float().cpu()
            )
            if not torch.isfinite(answer).all():
                raise ValueError(
                    f"the model gives NaN or infinite values for {volume.name}; its weights are no use"
                )
            air = answer if empty else air
            slab[:, :, y : y + side, z : z + side] += answer * weight
            bar.update()
        done = after - x
        total = totals[0][x:after, None, None] * totals[1][:, None] * totals[2]
        result[:, x:after] = (slab[:, :done] / total).softmax(0).numpy()
        slab = torch.cat([slab[:, done:], torch.zeros(model.classes, done, *image.shape[1:])], 1)
    bar.close()
    model.train(training)
    inside = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    return result[(slice(None), *inside)], scan.affine


def _spread(size: int, side: int, overlap: float) -> list[int]:
    """Starts of windows that cover `size`, evenly, overlapping by at least `overlap`."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: a share from 0 to below 1")
    count = math.ceil((size - side) / max(1, round(side * (1 - overlap)))) + 1
    return [round(i * (size - side) / max(1, count - 1)) for i in range(count)]


def gaussian(side: int) -> np.ndarray:
    """Weights of the places along a window: 1 in the middle, at least 0.001; their products weight a window (nnU-Net's)."""
    places = (np.arange(side) - (side - 1) / 2) / (side / 8)
    return np.maximum(np.exp(-0.5 * places**2), 1e-3).astype(np.float32)


def _total(bell: Tensor, starts: list[int], size: int) -> Tensor:
    """Sum of the weights at each place along an axis: windows lie on a grid, so their sums are products of these."""
    total = torch.zeros(size)
    for start in starts:
        total[start : start + len(bell)] += bell
    return total


def mirrored(model: Segmenter, window: Tensor) -> Tensor:
    """Logits averaged over all eight mirrorings."""
    total = torch.zeros(1)
    for count in range(4):
        for axes in itertools.combinations((2, 3, 4), count):
            total = total.to(window.device) + model(window.flip(axes)).flip(axes)
    return total / 8


def segment_all(
    model: Segmenter,
    scans: dict[str, Path],
    out: Path,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    with_probabilities: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, str]:
    """Write `out/NAME.nii.gz` (and `NAME.ctssl.json`, `probabilities/NAME_LABEL.nii.gz`) for every scan; what went wrong with
    which.

    A scan that fails does not stop the others, a full disk does (`OSError`). `resume` leaves masks that are there as they are,
    and makes what maps are missing where they are wanted. Raises `ValueError`, before any work, where `out` is the folder of the
    scans themselves, and for masks to go on from that another model or other settings made.
    """
    from tqdm import tqdm

    targets = [out / f"{file_name(name)}.nii.gz" for name in scans]
    apart(targets, list(scans.values()))
    for target in targets:
        if (
            resume
            and target.exists()
            and (why := of_another(target, made_by(model, overlap=overlap, tta=tta)))
        ):
            raise ValueError(
                f"{target} was made otherwise: {why}; choose another folder, or overwrite the masks"
            )
    out.mkdir(parents=True, exist_ok=True)
    maps = out / "probabilities"
    if with_probabilities:
        maps.mkdir(exist_ok=True)
    failed = {}
    for name, path in tqdm(scans.items(), desc="scans", disable=not progress):
        target = out / f"{name}.nii.gz"
        places, masked = maps_of(model, maps, name) if with_probabilities else {}, resume and target.exists()
        if masked and all(file.exists() for file in places.values()):
            continue
        try:
            scan, how = read(path), {"overlap": overlap, "tta": tta, "max_memory_gb": max_memory_gb}
            if masked:  # a mask that is there stays as it is
                for label, one in probabilities(model, scan, **how).items():
                    one.save(places[label], overwrite=True)
                continue
            write_mask(
                model,
                scan,
                target,
                maps_in=maps,
                with_probabilities=with_probabilities,
                overwrite=overwrite or resume,
                **how,
            )
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError, ImportError) as error:
            if disk_is_full(error):  # hours of work for nothing, if it went on
                raise
            failed[name] = f"{type(error).__name__}: {error}" if not str(error) else str(error)
    return failed


def maps_of(model: Segmenter, folder: Path, name: str) -> dict[str, Path]:
    """Where the maps of a scan's labels go."""
    return {label: folder / f"{name}_{part_of_name(label)}.nii.gz" for label in model.labels.values()}


def write_mask(
    model: Segmenter,
    scan: Volume,
    target: Path,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    with_probabilities: bool = False,
    maps_in: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Volume, dict[str, Any]]:
    """The mask as `target`, beside it what it holds as JSON (labels, ml, model), and on demand a map of each label, there too
    or in the folder `maps_in`."""
    how: dict[str, Any] = {
        "overlap": overlap,
        "tta": tta,
        "max_memory_gb": max_memory_gb,
        "progress": progress,
    }
    folder, name = target.parent, target.name.removesuffix(".gz").removesuffix(".nii")
    maps: dict[str, Volume] = {}
    places = maps_of(model, maps_in or folder, name)
    if with_probabilities and len(set(places.values())) < len(model.labels):
        raise ValueError(
            f"the labels {list(model.labels.values())} would share files; give them names that differ in letters"
        )
    taken = [path for path in (target, *(places.values() if with_probabilities else ())) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; choose another name, or overwrite it on purpose")
    if with_probabilities:
        mask, maps = mask_and_maps(model, scan, **how)
    else:
        mask = segment(model, scan, **how)
    ml = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    volumes = {label: round(float((mask.array == k).sum()) * ml, 3) for k, label in model.labels.items()}
    facts = {
        "labels": model.labels,
        "volume_ml": volumes,
        "scan": scan.name,
        "model": model.spec.name if model.spec else "",
        **made_by(model, overlap=overlap, tta=tta),
    }
    for label, one in maps.items():
        one.save(places[label], overwrite=overwrite)
    write_whole(folder / f"{name}.ctssl.json", json.dumps(facts, indent=1) + "\n")
    mask.save(target, overwrite=overwrite)  # last: a mask that is there is complete
    return mask, facts


def made_by(model: Segmenter, *, overlap: float, tta: bool) -> dict[str, Any]:
    """What a mask follows from, beside the scan; it stands beside the mask."""
    return {
        "sha256": model.spec.sha256 if model.spec else "",
        "threshold": model.threshold,
        "overlap": overlap,
        "tta": tta,
    }


def of_another(target: Path, wanted: dict[str, Any]) -> str:
    """In what a mask that is there was made otherwise than is wanted now; empty if in nothing."""
    beside = target.with_name(f"{target.name.removesuffix('.nii.gz')}.ctssl.json")
    told = read_json(beside) if beside.is_file() else None
    if not isinstance(told, dict):
        return f"nothing beside it says what made it ({beside.name} is missing)"
    names = {"sha256": "model"}
    away = [
        f"{names.get(key, key)} {str(told.get(key, value))[:12]}, now {str(value)[:12]}"
        for key, value in wanted.items()
        if told.get(key, value) != value
    ]
    return "; ".join(away)


def likeliest(maps: list[np.ndarray], labels: list[int], threshold: float = 0.5) -> np.ndarray:
    """The label (uint8) whose probability is highest, where it beats that of the background, which is the rest (see `odds`)."""
    total, best, numbers = np.zeros_like(maps[0]), np.zeros_like(maps[0]), np.zeros(maps[0].shape, np.uint8)
    for label, one in zip(labels, maps, strict=True):
        total += one
        better = one > best
        best[better], numbers[better] = one[better], label
    numbers[best <= (1 - total) * odds(threshold)] = 0
    return numbers


def odds(threshold: float) -> float:
    """How many times as likely as the background a label has to be; at a threshold of 0.5 the likeliest of all wins."""
    return threshold / (1 - threshold)


def onto(
    found: np.ndarray,
    affine: np.ndarray,
    volume: Volume,
    slices: int | None = None,
    *,
    threshold: float = 0.5,
) -> np.ndarray:
    """Probabilities `(classes, x, y, z)` on a working grid -> uint8 labels `(X, Y, Z)` on the scan's own grid, the likeliest of
    each voxel that beats the background (see `odds`); `slices` at a time."""
    labels = np.zeros(volume.shape, np.uint8)
    slices = slices or volume.shape[2]
    for first in range(0, volume.shape[2], slices):
        part = labels[:, :, first : first + slices]
        grid = volume.affine.copy()
        grid[:3, 3] += grid[:3, 2] * first
        best = np.zeros(part.shape, np.float32)
        for number, one in enumerate(found):
            here = resample(one, affine, part.shape, grid, fill=float(number == 0))
            here = here if number else here * odds(threshold)
            better = here > best
            part[better], best[better] = number, here[better]
    return labels
