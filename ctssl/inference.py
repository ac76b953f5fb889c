"""Whole scans through a model: preparing, embedding, segmenting in windows, and back onto the scan's own grid."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctssl.lint import check
from ctssl.volume import Volume, prepare, read, resample
from ctssl.zoo import Preprocess

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter

TILE = 96  # voxels along each side of a piece that goes through an encoder at once


def prepared(encoder: Any, source: Any, *, spacing_mm: float | None = None) -> Volume:
    """The checked scan on the grid that the encoder was trained on (or of `spacing_mm`), 0..1; an encoder without spec takes
    the default."""
    known = encoder.spec.preprocess if encoder.spec else Preprocess()
    return prepare(check(read(source)), replace(known, spacing_mm=spacing_mm) if spacing_mm else known)


def preprocess(encoder: Any, source: Any) -> Tensor:
    """See `encoder.preprocess`."""
    return torch.from_numpy(prepared(encoder, source).array)[None, None]


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
    maps = [torch.zeros(c, *[-(-n // s) for n in size]) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
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
    image = preprocess(encoder, source)
    features = feature_maps(encoder, image, progress=progress)[-1]
    stride = encoder.strides[-1]
    tissue = torch.nn.functional.max_pool3d(image, stride, ceil_mode=True)[0, 0] > 0
    chosen = features[:, tissue] if tissue.any() else features.flatten(1)
    return chosen.mean(1)


def segment(
    model: Segmenter, source: Any, *, overlap: float = 0.5, tta: bool = False, progress: bool = False
) -> Volume:
    """See `Segmenter.segment`."""
    volume = read(source)
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    return Volume(onto(found, affine, volume), volume.affine, volume.name)


def probabilities(model: Segmenter, source: Any, *, overlap: float = 0.5, tta: bool = False,
                  progress: bool = False) -> dict[str, Volume]:  # fmt: skip
    """See `Segmenter.probabilities`."""
    volume = read(source)
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    return {name: Volume(resample(found[k], affine, volume.shape, volume.affine), volume.affine, f"{volume.name} {name}")
            for k, name in model.labels.items()}  # fmt: skip


@torch.inference_mode()
def windowed(
    model: Segmenter, volume: Volume, *, overlap: float, tta: bool, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(classes, x, y, z)` on the model's own grid, and its affine. Windows of nothing but air cost nothing: the
    network's answer to one of them serves for all."""
    from monai.inferers.utils import sliding_window_inference

    scan = prepared(model.encoder, volume)
    image = torch.from_numpy(scan.array)[None, None]
    training, air = model.training, None
    model.eval()

    def answer(window: Tensor) -> Tensor:
        nonlocal air
        if window.any():
            return mirrored(model, window) if tta else model(window)
        if air is None:
            air = mirrored(model, window) if tta else model(window)
        return air.clone()  # MONAI weights it in place

    logits = sliding_window_inference(image, model.window, 1, answer, overlap=overlap, mode="gaussian", device="cpu",
                                      sw_device=next(model.parameters()).device, progress=progress)  # fmt: skip
    model.train(training)
    assert isinstance(logits, Tensor)
    return logits[0].float().softmax(0).numpy(), scan.affine


def mirrored(model: Segmenter, window: Tensor) -> Tensor:
    """Logits averaged over all eight mirrorings."""
    total = torch.zeros(1)
    for count in range(4):
        for axes in itertools.combinations((2, 3, 4), count):
            total = total.to(window.device) + model(window.flip(axes)).flip(axes)
    return total / 8


def segment_all(model: Segmenter, scans: dict[str, Path], out: Path, *, overlap: float = 0.5, tta: bool = False,
                with_probabilities: bool = False, resume: bool = False, overwrite: bool = False,
                progress: bool = False) -> dict[str, str]:  # fmt: skip
    """Write `out/NAME.nii.gz` (and `NAME.ctssl.json`, `NAME_LABEL.nii.gz`) for every scan; what went wrong with which.

    A scan that fails does not stop the others. `resume` leaves out scans whose mask is there.
    """
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    failed = {}
    for name, path in tqdm(scans.items(), desc="scans", disable=not progress):
        target = out / f"{name}.nii.gz"
        if target.exists() and resume:
            continue
        try:
            write_mask(model, read(path), target, overlap=overlap, tta=tta, with_probabilities=with_probabilities,
                       overwrite=overwrite or resume)  # fmt: skip
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError) as error:
            failed[name] = f"{type(error).__name__}: {error}" if not str(error) else str(error)
    return failed


def write_mask(model: Segmenter, scan: Volume, target: Path, *, overlap: float = 0.5, tta: bool = False,
               with_probabilities: bool = False, overwrite: bool = False,
               progress: bool = False) -> tuple[Volume, dict[str, Any]]:  # fmt: skip
    """The mask as `target`, beside it what it holds as JSON (labels, ml, model), and on demand a map of each label."""
    how: dict[str, Any] = {"overlap": overlap, "tta": tta, "progress": progress}
    folder, name = target.parent, target.name.removesuffix(".gz").removesuffix(".nii")
    maps: dict[str, Volume] = {}
    places = {
        label: folder / f"{name}_{re.sub(r'[^A-Za-z0-9_.-]', '_', label)}.nii.gz" for label in model.labels.values()
    }
    taken = [path for path in (target, *(places.values() if with_probabilities else ())) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; choose another name, or overwrite it on purpose")
    if with_probabilities:
        maps = probabilities(model, scan, **how)
        stack = np.stack([one.array for one in maps.values()])
        numbers = np.array(list(model.labels))[stack.argmax(0)]
        mask = Volume(np.where(stack.max(0) > 1 - stack.sum(0), numbers, 0).astype(np.uint8), scan.affine, scan.name)
    else:
        mask = segment(model, scan, **how)
    ml = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    volumes = {label: round(float((mask.array == k).sum()) * ml, 3) for k, label in model.labels.items()}
    facts = {"labels": model.labels, "volume_ml": volumes, "scan": scan.name, "model": model.spec.name if model.spec else "",
             "sha256": model.spec.sha256 if model.spec else ""}  # fmt: skip
    for label, one in maps.items():
        one.save(places[label], overwrite=overwrite)
    (folder / f"{name}.ctssl.json").write_text(json.dumps(facts, indent=1) + "\n")
    mask.save(target, overwrite=overwrite)  # last: a mask that is there is complete
    return mask, facts


def onto(probabilities: np.ndarray, affine: np.ndarray, volume: Volume) -> np.ndarray:
    """`(classes, x, y, z)` on a working grid -> uint8 labels `(X, Y, Z)` on the scan's own grid."""
    best = np.zeros(volume.shape, np.float32)
    labels = np.zeros(volume.shape, np.uint8)
    for number, one in enumerate(probabilities):
        here = resample(one, affine, volume.shape, volume.affine, fill=float(number == 0))
        better = here > best
        labels[better], best[better] = number, here[better]
    return labels
