"""Whole scans through a model: preparing, embedding, segmenting in windows, and back onto the scan's own grid."""

from __future__ import annotations

import itertools
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


def prepared(encoder: Any, source: Any) -> Volume:
    """The checked scan on the grid that the encoder was trained on, 0..1; an encoder without spec takes the default."""
    return prepare(check(read(source)), encoder.spec.preprocess if encoder.spec else Preprocess())


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


@torch.inference_mode()
def segment(model: Segmenter, source: Any, *, overlap: float = 0.5, progress: bool = False) -> Volume:
    """See `Segmenter.segment`."""
    from monai.inferers.utils import sliding_window_inference

    volume = read(source)
    scan = prepared(model.encoder, volume)
    image = torch.from_numpy(scan.array)[None, None]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    logits = sliding_window_inference(
        image,
        model.window,
        1,
        model,
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device="cpu",
        progress=progress,
    )
    model.train(training)
    assert isinstance(logits, Tensor)
    probabilities = logits[0].float().softmax(0).numpy()
    return Volume(onto(probabilities, scan.affine, volume), volume.affine, volume.name)


def onto(probabilities: np.ndarray, affine: np.ndarray, volume: Volume) -> np.ndarray:
    """`(classes, x, y, z)` on a working grid -> uint8 labels `(X, Y, Z)` on the scan's own grid."""
    best = np.zeros(volume.shape, np.float32)
    labels = np.zeros(volume.shape, np.uint8)
    for number, one in enumerate(probabilities):
        here = resample(one, affine, volume.shape, volume.affine, fill=float(number == 0))
        better = here > best
        labels[better], best[better] = number, here[better]
    return labels
